"""The callback to which long operations, such as an audit or an export, report their progress."""

from typing import Protocol


class Progress(Protocol):
    """Called with the number of units done so far, and their total if it is known."""

    def __call__(self, done: int, total: int | None = None, /) -> None: ...


def no_progress(_done: int, _total: int | None = None, /) -> None:
    """Ignore progress: the default where nothing displays it."""
