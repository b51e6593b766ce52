"""What the record of a receiver must be like: every event at least once, in order, few repeats."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from tests.support.webhook_receiver import RecordedRequest

LATE_NS: Final = 2_000_000_000
"""So long after its sender was killed a request may be received, on a busy machine."""
PAUSE: Final = "pause"
"""The kind of a fault in which a sender stood still for longer than its lease."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A sender, the receiver or the database was down. Times are as in the record."""

    kind: str
    began_at: int
    ended_at: int


def describe_violations(
    expected: Sequence[str],
    requests: Sequence[RecordedRequest],
    faults: Collection[Fault],
    *,
    is_ordered: bool = True,
) -> list[str]:
    """What is wrong about the requests to one endpoint, which asked for these events, in order.

    An event that was taken may be sent again only if something was down between the two requests,
    as the answer may have been lost then: so each fault explains one repeat. In order: each request
    has the events that follow one another, it begins where the one before began or later, all
    events before its first are taken by then, and the request before it has ended. A sender that
    stood still for longer than its lease may still send one request, that it had begun.
    """
    review = _Review(expected, faults, is_ordered=is_ordered)
    for request in requests:
        review.add(request)
    missing = [position for position in range(len(expected)) if position not in review.taken]
    return [*review.violations, *(f"event {each} was not delivered" for each in missing)]


class _Review:
    """The requests to one endpoint so far. Events are numbered in the order of the feed."""

    def __init__(
        self, expected: Sequence[str], faults: Collection[Fault], *, is_ordered: bool
    ) -> None:
        self._numbers = {event_id: number for number, event_id in enumerate(expected)}
        self._faults = set(faults)
        self._used_pauses: set[Fault] = set()
        self._is_ordered = is_ordered
        self._first = 0
        self._taken_until = 0
        self._previous: RecordedRequest | None = None
        self.taken: dict[int, RecordedRequest] = {}
        """The last request that took each event."""
        self.violations: list[str] = []

    def add(self, request: RecordedRequest) -> None:
        if not request.is_verified:
            self._report(request, "its signature is wrong")
        if unknown := [each for each in request.event_ids if each not in self._numbers]:
            self._report(request, f"not asked for: {unknown}")
            return
        sent = [self._numbers[event_id] for event_id in request.event_ids]
        for number in set(sent) & self.taken.keys():
            if not self._is_explained(self.taken[number], request):
                self._report(request, f"event {number} again after {self.taken[number].number}")
        if self._is_ordered:
            self._check_order(request, sent)
        if request.is_taken:
            self.taken |= dict.fromkeys(sent, request)

    def _check_order(self, request: RecordedRequest, sent: Sequence[int]) -> None:
        first = sent[0]
        if sent != list(range(first, first + len(sent))):
            self._report(request, f"events {sent} do not follow one another")
        if first < self._first:
            if not self._is_of_paused_sender(request):
                self._report(request, f"event {first} again after {self._first}")
            return
        self._first = first
        while self._taken_until in self.taken:
            self._taken_until += 1
        if first > self._taken_until:
            self._report(request, f"event {first} before {self._taken_until}")
        before, self._previous = self._previous, request
        if before is None or (before.ended_at or request.received_at + 1) <= request.received_at:
            return
        if not self._is_explained(before, request):
            self._report(request, f"while {before.number} was under way")

    def _is_of_paused_sender(self, request: RecordedRequest) -> bool:
        """Whether it may be the one request of a sender that stood still until then."""
        for fault in self._faults - self._used_pauses:
            until = fault.ended_at + LATE_NS
            if fault.kind == PAUSE and fault.began_at <= request.received_at <= until:
                self._used_pauses.add(fault)
                return True
        return False

    def _is_explained(self, before: RecordedRequest, after: RecordedRequest) -> bool:
        return any(
            fault.began_at <= after.received_at and before.received_at <= fault.ended_at + LATE_NS
            for fault in self._faults
        )

    def _report(self, request: RecordedRequest, text: str) -> None:
        self.violations.append(f"{request.number}: {text}")
