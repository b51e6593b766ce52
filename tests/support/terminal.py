"""A pseudo-terminal with a command in it: what its screen shows, keys, sizes, and how it ends."""

import fcntl
import os
import pty
import re
import struct
import tempfile
import termios
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from accounting.waiting import wait_until
from tests.support.command import TIMEOUT_SECONDS, environment, run_in_terminal
from tests.support.fork_server import FORK_SERVER

_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_FRAME: Final = re.compile(r"\x1b\[H([^\x00]*?)\x1b\[J")


class Terminal:
    """A terminal, and the process that has it as its controlling terminal."""

    def __init__(
        self, arguments: Sequence[str], environ: Mapping[str, str], *, columns: int, lines: int
    ) -> None:
        self._master, self._slave = pty.openpty()
        self.resize(columns, lines)
        self.modes = self._modes()
        self.shown = bytearray()
        self._directory = tempfile.TemporaryDirectory(prefix="ta-test-")
        self.err = Path(self._directory.name, "err")
        self._process = FORK_SERVER.Process(
            target=run_in_terminal,
            args=(tuple(arguments), dict(environ), Path(os.ttyname(self._slave)), self.err),
        )
        self._process.start()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # EIO: nobody has the terminal any more
            while data := os.read(self._master, 65536):
                self.shown += data

    def _modes(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def text(self) -> str:
        """Everything that was written, without colours."""
        return _COLOUR.sub("", self.shown.decode(errors="replace"))

    def frame(self) -> str:
        """The newest whole frame; '' before the first one."""
        frames = _FRAME.findall(self.text)
        lines = frames[-1].replace("\x1b[K", "").split("\r\n") if frames else []
        return "".join(f"{line.rstrip()}\n" for line in lines)

    def wait_for(self, text: str) -> str:
        """Wait until a frame has this text; returns the frame."""
        found = wait_until(lambda: text in self.frame(), TIMEOUT_SECONDS)
        assert found, (text, self.shown[-5000:], self.err.read_text())
        return self.frame()

    def wait_for_text(self, text: str) -> None:
        """Wait until this was written."""
        assert wait_until(lambda: text in self.text, TIMEOUT_SECONDS), self.shown[-5000:]

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """The kernel sends SIGWINCH to the processes of the terminal."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def hang_up(self) -> None:
        """Close the terminal's window: the kernel sends SIGHUP, and writing fails."""
        os.close(self._slave)
        self._slave = -1
        master, self._master = self._master, -1
        os.close(master)

    def is_stopped(self) -> bool:
        """Whether the process is suspended."""
        stat = Path(f"/proc/{self.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"

    def exit_code(self) -> int:
        """Wait for the end of the process."""
        self._process.join(TIMEOUT_SECONDS)
        assert self._process.exitcode is not None, "it does not end"
        return self._process.exitcode

    def is_restored(self) -> bool:
        """Whether the modes are those of before, and the screen, cursor and wrapping too."""
        wait_until(lambda: self.text.endswith("\x1b[?1049l"), 1)
        return (
            self._modes() == self.modes
            and self.text.count("\x1b[?1049h") == self.text.count("\x1b[?1049l")
            and self.text.endswith("\x1b[?7h\x1b[?25h\x1b[?1049l")
        )

    def close(self) -> None:
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        self._process.close()
        for descriptor in (self._slave, self._master):
            if descriptor != -1:
                with suppress(OSError):
                    os.close(descriptor)
        self._reader.join(TIMEOUT_SECONDS)
        self._directory.cleanup()


@contextmanager
def open_terminal(
    *arguments: str,
    columns: int = 80,
    lines: int = 24,
    variables: Mapping[str, str] | None = None,
    **settings: str,
) -> Iterator[Terminal]:
    """Run ``turn-accounting`` in a terminal of that size."""
    environ = {**environment(settings), "TERM": "xterm", "NO_COLOR": "1", **(variables or {})}
    terminal = Terminal(arguments, environ, columns=columns, lines=lines)
    try:
        yield terminal
    finally:
        terminal.close()
