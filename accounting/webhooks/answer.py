"""The answer to a request, and what it says of the events."""

from dataclasses import dataclass
from typing import Final

from accounting.webhooks.attempts import Attempt
from accounting.webhooks.message import Outcome, Request

UNSENT: Final = frozenset({"url", "name", "address", "connect", "tls"})
"""Reasons for which no byte of a request was sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A request, the record of it, and what the answer means."""

    request: Request
    attempt: Attempt
    outcome: Outcome
    retry_after_seconds: float | None = None
    is_unsent: bool = False

    @property
    def is_surely_refused(self) -> bool:
        """Whether nothing of the request was taken. After a 5xx something may have been."""
        status = self.attempt.status
        return self.is_unsent or (status is not None and 400 <= status < 500)
