"""Which events an endpoint has taken: up to a number all, and some after it."""

from collections import deque
from collections.abc import Collection, Iterable

from accounting.webhooks.leases import Page


class Position:
    """The position of a delivery that is under way. ``seq``: all up to it is done."""

    def __init__(self, seq: int, seqs_ahead: Iterable[int] = ()) -> None:
        self.seq = seq
        self._ahead = set(seqs_ahead)
        self._pending: deque[int] = deque()
        self._last_seq = seq

    @property
    def seqs_ahead(self) -> Collection[int]:
        """The events after ``seq`` that are done."""
        return self._ahead

    def open_page(self, page: Page) -> None:
        """The next events: those after ``seq`` that are not done."""
        self._pending = deque(event.seq for event in page.events)
        self._last_seq = page.last_seq
        self._advance()

    def add_done(self, seqs: Iterable[int]) -> None:
        """These events of the page are done, in any order."""
        self._ahead.update(seqs)
        self._advance()

    def _advance(self) -> None:
        while self._pending and self._pending[0] in self._ahead:
            self.seq = self._pending.popleft()
        if not self._pending:
            self.seq = self._last_seq
        self._ahead = {seq for seq in self._ahead if seq > self.seq}
