"""Progress on standard error: one line on a terminal, silent elsewhere (cron, pipes).

The line says what is being done, how far it is, and how long it still takes. It is drawn with
carriage returns and spaces alone, so that any terminal shows it. It makes way for all other output.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from accounting.cli import output
from accounting.cli.terminal_text import split_text, text_width
from accounting.domain.human_text import human_seconds, visible
from accounting.progress import Progress, no_progress

TICK_SECONDS: Final = 0.5
"""The line is drawn again after this, since the time on it goes on."""
MIN_DRAW_SECONDS: Final = 0.1
MIN_ESTIMATE_SECONDS: Final = 1.0
"""A step has to last this long before its rate says how long the rest takes."""
BAR_WIDTH: Final = 20


@contextmanager
def progress_line(doing: str) -> Iterator[Progress]:
    """Show the progress that is reported within the block. ``doing``: the first step."""
    if not sys.stderr.isatty():
        yield no_progress
        return
    line = _ProgressLine(doing)
    with output.making_way(line.hide), line.ticking():
        yield line


class _ProgressLine:
    """A line at the bottom of the terminal. Its own thread draws it while nothing is reported."""

    def __init__(self, doing: str) -> None:
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._width = 0
        self._drawn_at = 0.0
        self._doing = doing
        self._done = 0.0
        self._total: int | None = None
        self._detail = ""
        self._began_at = self._reported_at = time.monotonic()

    def __call__(
        self, done: float, total: int | None = None, /, *, doing: str = "", detail: str = ""
    ) -> None:
        with self._lock:
            now = time.monotonic()
            is_new = bool(doing) and doing != self._doing
            if is_new:
                self._doing, self._began_at = doing, now
            self._done, self._total, self._detail, self._reported_at = done, total, detail, now
            if is_new or now - self._drawn_at >= MIN_DRAW_SECONDS:
                self._draw()

    @contextmanager
    def ticking(self) -> Iterator[None]:
        """Draw the line until the block ends, then remove it."""
        thread = threading.Thread(target=self._tick, name="progress", daemon=True)
        self._draw()
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
            with self._lock:
                self._draw()  # the last state, which came soon after another
                self.hide()

    def hide(self) -> None:
        """Remove the line, until it is drawn again."""
        with self._lock:
            if self._width:
                self._write(f"\r{' ' * self._width}\r")
                self._width = 0

    def _tick(self) -> None:
        while not self._ended.wait(TICK_SECONDS):
            with self._lock:
                self._draw()

    def _draw(self) -> None:
        """Draw the line. The caller holds the lock, unless the thread has not begun."""
        self._drawn_at = time.monotonic()
        text = split_text(visible(self._text()), max(1, _terminal_width() - 1))[0]
        width = text_width(text)
        self._write(f"\r{text}{' ' * (self._width - width)}")
        self._width = max(width, self._width)

    def _text(self) -> str:
        parts = [self._doing]
        if self._total:
            done = min(self._done, self._total)
            full = int(BAR_WIDTH * done / self._total)
            parts += [f"[{'=' * full}{' ' * (BAR_WIDTH - full)}]", f"{int(done):,}/{self._total:,}"]
        elif self._done:
            parts.append(f"{int(self._done):,}")
        return "  ".join(filter(None, [*parts, self._time(), self._detail]))

    def _time(self) -> str:
        """How long the step still takes, by its rate; until that is known, how long it has."""
        now, worked_seconds = time.monotonic(), self._reported_at - self._began_at
        if self._total and self._done and worked_seconds >= MIN_ESTIMATE_SECONDS:
            left_seconds = worked_seconds * (self._total / self._done - 1)
            left_seconds -= now - self._reported_at
            return f"{human_seconds(max(0, round(left_seconds)))} left"
        return human_seconds(int(now - self._began_at))

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def _terminal_width() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80
