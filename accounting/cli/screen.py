"""A terminal that shows frames and reads keys, and is restored however the process ends.

Frames replace each other on the alternate screen. On a terminal that can't move the cursor
(TERM=dumb) they follow each other. A stop signal ends what runs in the block of :func:`open_screen`
with KeyboardInterrupt; Ctrl-Z suspends the process with the terminal restored.
"""

import atexit
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final

_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The alternate screen, without a cursor and without wrapping; and back.
_ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
_LEAVE: Final = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_HOME: Final = "\x1b[H"
_CLEAR_LINE: Final = "\x1b[K"
_CLEAR_BELOW: Final = "\x1b[J"


class TerminalLost(Exception):
    """The terminal is gone: nothing can be shown any more."""


class Screen:
    """The terminal at standard output, and the keys of the one at standard input."""

    def __init__(self) -> None:
        self.replaces_frames = os.environ.get("TERM", "dumb") not in {"", "dumb"}
        self._keyboard = 0 if _is_terminal(0) else None
        self.is_stopping = False
        self._modes: list[Any] | None = None
        self._signals_reader, self._signals_writer = os.pipe()

    def enter(self) -> None:
        """Take over the terminal and the signals."""
        os.set_blocking(self._signals_writer, False)
        signal.set_wakeup_fd(self._signals_writer, warn_on_full_buffer=False)
        for stop_signal in _STOP_SIGNALS:
            signal.signal(stop_signal, self._stop)
        signal.signal(signal.SIGWINCH, _interrupt_wait)
        signal.signal(signal.SIGTSTP, self._suspend)
        self._take_terminal()

    def leave(self) -> None:
        """Restore the terminal. Signals do nothing from now on: the process is about to end."""
        for number in (*_STOP_SIGNALS, signal.SIGTSTP, signal.SIGWINCH):
            signal.signal(number, _interrupt_wait)
        atexit.register(_ignore_signals)  # the interpreter would restore their default actions
        signal.set_wakeup_fd(-1)
        self._restore_terminal()
        os.close(self._signals_reader)
        os.close(self._signals_writer)

    def show(self, lines: Sequence[str]) -> None:
        """Show a frame. Raises TerminalLost."""
        if self.replaces_frames:
            # A line is cleared first: after its last column that would clear this column.
            frame = "\r\n".join(_CLEAR_LINE + line for line in lines)
            _write(f"{_HOME}{frame}{_CLEAR_BELOW}")
        else:
            _write("".join(f"{line}\n" for line in (*lines, "")))

    def wait(self, seconds: float) -> str | None:
        """Wait for keys; None after so many seconds, '' when the size has changed.

        Raises TerminalLost when there will be no more keys.
        """
        descriptors = [self._signals_reader]
        if self._keyboard is not None:
            descriptors.append(self._keyboard)
        ready, _, _ = select.select(descriptors, [], [], max(0.0, seconds))
        if self._keyboard in ready:
            try:
                keys = os.read(self._keyboard, 1024)
            except OSError:
                keys = b""
            if not keys:
                raise TerminalLost
            return keys.decode("ascii", "ignore")
        if ready:
            os.read(self._signals_reader, 1024)
            return ""
        return None

    def _take_terminal(self) -> None:
        if self._keyboard is not None:
            self._modes = termios.tcgetattr(self._keyboard)
            tty.setcbreak(self._keyboard, termios.TCSANOW)
        if self.replaces_frames:
            _write(_ENTER)

    def _restore_terminal(self) -> None:
        if self.replaces_frames:
            with suppress(TerminalLost):
                _write(_LEAVE)
        if self._keyboard is not None and self._modes is not None:
            with suppress(termios.error):  # the terminal is gone
                termios.tcsetattr(self._keyboard, termios.TCSANOW, self._modes)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        """End what runs. What that waits for, such as a server, only another Ctrl-C interrupts."""
        if not self.is_stopping or number == signal.SIGINT:
            self.is_stopping = True
            raise KeyboardInterrupt

    def _suspend(self, _number: int, _frame: FrameType | None) -> None:
        self._restore_terminal()
        signal.raise_signal(signal.SIGSTOP)  # goes on here when the shell continues the process
        self._take_terminal()


@contextmanager
def open_screen() -> Iterator[Screen]:
    """A screen until the block ends. Raises KeyboardInterrupt after a stop signal."""
    screen = Screen()
    try:
        screen.enter()
        yield screen
    except Exception:
        # A query that is interrupted may fail in other ways than by KeyboardInterrupt.
        if not screen.is_stopping:
            raise
    finally:
        screen.leave()


def screen_size() -> os.terminal_size:
    """Columns and lines of the terminal at standard output, as they are now."""
    with suppress(OSError):
        size = os.get_terminal_size(1)
        if size.columns and size.lines:
            return size
    return os.terminal_size((80, 24))


def _interrupt_wait(_number: int, _frame: FrameType | None) -> None:
    """A handler: with one, Python writes the signal's number into the pipe."""


def _ignore_signals() -> None:
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def _write(text: str) -> None:
    data = text.encode(sys.stdout.encoding, "backslashreplace")
    try:
        while data:
            data = data[os.write(1, data) :]
    except OSError as error:
        raise TerminalLost from error
