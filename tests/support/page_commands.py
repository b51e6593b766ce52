"""The shell commands of a page of the documentation, and a shell that runs them in order."""

import os
import re
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

ROOT: Final = Path(__file__).resolve().parents[2]
_BLOCK: Final = re.compile(
    r"^<!-- (?:\w+: )?([\w ]+) -->\n```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE
)
_DONE: Final = "--- done ---"
_FAILED: Final = "--- failed ---"
"""Not the end of the output, which background jobs keep open."""


def command_blocks(page: str) -> dict[str, str]:
    """The blocks of commands of a page, such as ``docs/billing.md``, by the comments above them."""
    return dict(_BLOCK.findall((ROOT / page).read_text()))


class PageShell:
    """One shell, as a reader has it: variables, background jobs and the directory stay.

    A command that fails ends it, and the test with it.
    """

    def __init__(self, directory: Path, environ: Mapping[str, str]) -> None:
        self._errors = directory / "shell-errors"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-s"],
                cwd=directory,
                env=dict(environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                process_group=0,
            )
        self._write(f"trap 'echo {_FAILED}' EXIT")

    def run(self, commands: str) -> str:
        """Run commands; return what they write to standard output."""
        assert self._process.stdout is not None
        self._write(f"{commands}\necho {_DONE}")
        shown = ""
        for line in self._process.stdout:
            if line == f"{_DONE}\n":
                return shown
            if line == f"{_FAILED}\n":
                break
            shown += line
        raise AssertionError(f"{commands}\n{shown}\n{self._errors.read_text()[-2000:]}")

    def _write(self, commands: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{commands}\n")
        self._process.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(ProcessLookupError):  # the commands ended all
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate(timeout=10)
