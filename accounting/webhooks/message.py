"""What is exchanged with an endpoint: a request for some events, its answer, and the verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from accounting.errors import AccountingError
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


FailureReason = Literal[
    "url", "name", "address", "connect", "tls", "deadline", "closed", "protocol", "size",
    "redirect",
]  # fmt: skip


class SendFailed(AccountingError):
    """A request has no answer that counts. The server may have taken it all the same.

    ``status``: that of an answer which was refused, a redirect.
    """

    def __init__(self, text: str, reason: FailureReason, status: int | None = None) -> None:
        super().__init__(text)
        self.reason: Final = reason
        self.status: Final = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An event that the endpoint will never take. ``reason``: in words, for an operator."""

    event: FeedEvent
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an answer means. ``failure``: why all but ``taken`` must be sent again; None: need not.

    ``taken``: the number of leading events that need not be sent again, those refused included.
    ``rest``: where a receiver rejected a whole batch for some of its events: the request to send at
    once with the others. Then all events that are not in ``rest`` need not be sent again.
    """

    taken: int
    refusals: Sequence[Refusal] = ()
    failure: str | None = None
    rest: Request | None = None
