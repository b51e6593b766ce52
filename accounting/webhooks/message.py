"""What is exchanged with an endpoint: a request for some events, its answer, and the verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from accounting.feed.reader import FeedEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A POST. ``events``: those that it carries, in order."""

    url: str
    headers: Mapping[str, str]
    body: bytes
    events: Sequence[FeedEvent]


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An answer. ``body``: its first 64 KiB. ``retry_after_seconds``: None if it asked for none."""

    status: int
    body: bytes
    retry_after_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An event that the endpoint will never take. ``reason``: in words, for an operator."""

    event: FeedEvent
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an answer means. ``failure``: why all but ``taken`` must be sent again; None: need not.

    ``taken``: the number of leading events that need not be sent again, those refused included.
    """

    taken: int
    refusals: Sequence[Refusal] = ()
    failure: str | None = None


class Format(Protocol):
    """How events become requests of one kind of receiver. Pure: no clock, no network."""

    def requests(self, events: Sequence[FeedEvent], now: datetime) -> Sequence[Request]:
        """The requests for these events, in order; events without a request need none."""

    def outcome(self, request: Request, response: Response) -> Outcome:
        """What the answer to a request means for its events."""
