"""What a source of messages is: the small interface between Redis and the spool.

Owns the words that the collector and every source share. Must not know how a source does it.
A subscription can't go on where it stopped: every attachment after the first ends a gap. A source
that can (the replication stream) finds its position in the state that it is attached with.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import Event
from typing import NamedTuple, Protocol

from accounting.capture.spool.records import CaptureMode, Message, ResumePoint, SpoolState
from accounting.errors import ConnectionLost


class Batch(NamedTuple):
    """Messages in the order of the wire, to be stored together.

    `captured_until` (microseconds): with these messages stored, everything published before that
    time is; None when this batch proves nothing new. A source that can go on gives the position
    after each message, and the place that is reached with all of them. The first `estimated` of
    them were missed and come late: their times are estimates.
    """

    messages: Sequence[Message]
    captured_until: int | None
    positions: Sequence[int] | None = None
    resume_point: ResumePoint | None = None
    estimated_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """How a stream began.

    at: everything published from this time on (microseconds) is in the stream.
    server_run, server_began_at: the run id of the server, which changes with every start, and when
    (microseconds) that start was; None when it isn't told.
    resume: the place where the stream begins, for a source that can go on there.
    continued: that is the place where the last one ended: nothing that this server had was missed.
    """

    mode: CaptureMode
    captured_from: int
    server_run_id: str | None
    server_started_at: int | None
    resume_point: ResumePoint | None = None
    continued: bool = False


class SourceLost(ConnectionLost):
    """The stream ended, or could not be begun.

    `cause` is the short word for `capture_gaps`; `advice` says what an operator has to do, and is
    empty where trying again is enough.
    """

    def __init__(self, cause: str, text: str, advice: str = "") -> None:
        super().__init__(text)
        self.cause = cause
        self.advice = advice


class SourceRefused(SourceLost):
    """The server does not give its stream to us, and won't when asked again."""


class NoReply(SourceLost):
    """The server ended the connection instead of answering."""


class Stream(Protocol):
    """One connection's worth of messages."""

    @property
    def attachment(self) -> Attachment: ...

    def batches(self, stop: Event) -> Iterator[Batch]:
        """Yield what arrives until `stop` is set, then the rest and a last tick.

        Raises SourceLost when the connection ends, after everything that came over it was yielded.
        """
        ...


class Source(Protocol):
    """Where messages come from."""

    def attach(self, state: SpoolState, stop: Event, /) -> AbstractContextManager[Stream]:
        """Connect, and go on from `state` where the source can.

        Raises SourceLost, also when `stop` is set before that is done.
        """
        ...
