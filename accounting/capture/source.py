"""The interface between a source of messages in Redis and the collector.

A subscription can't resume: every attachment after the first one ends a gap. A replication stream
resumes at the position in the spool's state, which ``Source.attach`` gets.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import Event
from typing import Final, NamedTuple, Protocol

from accounting.capture.spool.records import CaptureMode, Message, ResumePoint, SpoolState
from accounting.domain.server_identity import UNKNOWN_SERVER, ServerIdentity
from accounting.errors import ConnectionLost


class Batch(NamedTuple):
    """Messages in the order of the wire, to be stored together.

    ``captured_until`` (microseconds) is a checkpoint: everything published before that time is
    stored once this batch is; None when the batch proves nothing new. Replication gives the
    position of each message, and the point where the stream resumes after all of them. The first
    ``estimated_count`` messages come from the backlog: their times are estimates.
    """

    messages: Sequence[Message]
    captured_until: int | None
    positions: Sequence[int] | None = None
    resume_point: ResumePoint | None = None
    estimated_count: int = 0


MAX_TEXT: Final = 500
"""Characters of an error: it goes into logs and into ``capture_gaps``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """How a stream began.

    captured_from: everything published from this time on (microseconds) is in the stream.
    server_run_id: changes with every start of the server; None when INFO doesn't give it.
    server: the ids of the server; empty when INFO doesn't give them.
    server_started_at: microseconds; None when INFO doesn't give it.
    resume_point: where the stream begins; None for a subscription.
    continued: the stream begins where the last one ended, so nothing of this server was missed.
    """

    mode: CaptureMode
    captured_from: int
    server_run_id: str | None
    server_started_at: int | None
    resume_point: ResumePoint | None = None
    continued: bool = False
    server: ServerIdentity = UNKNOWN_SERVER


class SourceLost(ConnectionLost):
    """The stream ended, or could not begin.

    ``cause`` is the word for ``capture_gaps``; ``advice`` says what an operator has to do, and is
    empty where a retry is enough. Of ``text``, which may quote the server, MAX_TEXT are kept.
    """

    def __init__(self, cause: str, text: str, advice: str = "") -> None:
        super().__init__(text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}...")
        self.cause = cause
        self.advice = advice


class SourceRefused(SourceLost):
    """The server refuses this kind of stream, and will refuse it again."""


class NoReply(SourceLost):
    """The server closed the connection or sent nothing, instead of a reply."""


class Stream(Protocol):
    """The messages of one connection."""

    @property
    def attachment(self) -> Attachment: ...

    def batches(self, stop: Event) -> Iterator[Batch]:
        """Yield what arrives until ``stop`` is set, then the rest and a last checkpoint.

        Raises SourceLost when the connection ends, after it has yielded everything received.
        """
        ...


class Source(Protocol):
    """A way to get messages out of Redis."""

    def attach(self, state: SpoolState, stop: Event, /) -> AbstractContextManager[Stream]:
        """Connect, and resume from ``state`` where the source can.

        Raises SourceLost, also when ``stop`` is set before the stream begins.
        """
        ...
