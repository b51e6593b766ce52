"""The callback to which long operations, such as an audit or an export, report their progress."""

from typing import Protocol


class Progress(Protocol):
    """Called with the number of units done so far, and their total if it is known.

    ``doing`` names the step in progress and its units, such as "recomputing sessions". ``detail``
    is anything else to show.
    """

    def __call__(
        self, done: float, total: int | None = None, /, *, doing: str = "", detail: str = ""
    ) -> None: ...


def no_progress(
    _done: float, _total: int | None = None, /, *, doing: str = "", detail: str = ""
) -> None:
    """Ignore progress: the default where nothing displays it."""
