"""What every format does, by which the delivery knows it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from accounting.feed.reader import FeedEvent
from accounting.webhooks.message import Outcome, Refusal, Request, Response


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
