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

    @property
    def is_success(self) -> bool:
        """Whether it is a 2xx: the receiver has taken the request."""
        return 200 <= self.status < 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An event that the endpoint will never take. ``reason``: in words, for an operator."""

    event: FeedEvent
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an answer means. ``failure``: why all but ``taken`` must be sent again; None: need not.

    ``taken``: the number of leading events that need not be sent again, those refused included.
    ``again``: None, or the request to send at once, with those events that neither were taken nor
    are refused: a receiver may reject a whole batch for one of its events. Those that it doesn't
    have are settled, wherever they were in the batch.
    """

    taken: int
    refusals: Sequence[Refusal] = ()
    failure: str | None = None
    again: Request | None = None


class Format(Protocol):
    """How events become requests of one kind of receiver. Pure: no clock, no network.

    Its requests are neither signed nor authorized. It is made for a batch of events, whose
    customers were looked up before (``customers``).
    """

    @property
    def repeat_seconds(self) -> float | None:
        """How long after the first attempt the receiver recognizes a repeated event.

        None: for ever, or it is the receiver's own affair. After that time, an event of which it
        is not known whether it was taken must not be sent again without a person's decision.
        """

    def requests(self, events: Sequence[FeedEvent], now: datetime) -> Sequence[Request | Refusal]:
        """What to do with these events, in order; events that are in neither need nothing.

        A refusal here is of an event that can't be sent, such as one without a customer.
        """

    def outcome(self, request: Request, response: Response) -> Outcome:
        """What the answer to a request means for its events."""
