"""The command ``turn-accounting`` as its users run it: a process, its output and its exit code.

The processes are forked from one that has imported everything: a command takes a tenth of the time,
and the tests of its surface have many.
"""

import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from accounting.cli.main import main

PATIENCE_SECONDS: Final = 60
PREFIX: Final = "ACCOUNTING_"
FORKS: Final = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["accounting.__main__"])


class Ran(NamedTuple):
    """How a run ended, with all that it said."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What ``--json`` gave: one object a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def complaint(self) -> str:
        """The one line on standard error, where there is nothing else."""
        assert self.out == "", self.out
        assert self.err.count("\n") == 1, self.err
        return self.err.removeprefix("turn-accounting: ").rstrip("\n")


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process' environment with these settings, named in lower case, and no others of ours."""
    inherited = {name: value for name, value in os.environ.items() if PREFIX not in name}
    return inherited | {f"{PREFIX}{name.upper()}": value for name, value in settings.items()}


def turn_accounting(*arguments: str, output: str = "", **settings: str) -> Ran:
    """Run the command to its end. ``output``: the file that takes its standard output, if any."""
    with tempfile.TemporaryDirectory(prefix="ta-test-") as directory:
        out, err = Path(output or Path(directory, "out")), Path(directory, "err")
        process = FORKS.Process(target=_run, args=(arguments, environment(settings), out, err))
        process.start()
        process.join(PATIENCE_SECONDS)
        if process.exitcode is None:
            process.kill()
            raise AssertionError(f"{arguments} does not end: {err.read_text()}")
        code = process.exitcode
        process.close()
        # Not as text files: what ends a line there is for us to see.
        ran = Ran(code, "" if output else out.read_bytes().decode(), err.read_bytes().decode())
    assert "Traceback" not in ran.err, ran.err
    return ran


def _run(arguments: tuple[str, ...], environ: dict[str, str], out: Path, err: Path) -> None:
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = ["turn-accounting", *arguments]
    main()
