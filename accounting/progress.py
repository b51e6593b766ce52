"""Progress of long work: the callback that audits and exports report to."""

from typing import Protocol


class Progress(Protocol):
    """Receives how many units are done so far, and how many there are where that is known."""

    def __call__(self, done: int, total: int | None = None, /) -> None: ...


def no_progress(_done: int, _total: int | None = None, /) -> None:
    """Ignore progress: the default where nothing displays it."""
