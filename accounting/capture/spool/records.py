"""The values that the collector writes to the spool and the loader reads from it.

All times are whole microseconds since the Unix epoch, UTC.
"""

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Self

from accounting.domain.server_identity import UNKNOWN_SERVER, ServerIdentity

Message = tuple[int, int, bytes, bytes]
"""received_at, database, channel, payload"""

SpooledRow = tuple[int, int, int, bytes, bytes]
"""packed origin, position (rises strictly within its epoch), received_at, channel, payload.

As SQLite returns it: a class would double the cost of reading, and each value is a tenth of it.
"""


ESTIMATED_ORIGIN: Final = 1
"""In the packed origin of a message whose time of receipt is an estimate."""


class MessageOrigin(NamedTuple):
    """Where a spooled message is from; mostly the same as of the message before it."""

    epoch: int
    database: int
    estimated: bool

    @classmethod
    def unpack(cls, packed: int) -> Self:
        """Unpack the first value of a SpooledRow."""
        return cls(packed >> 35, packed >> 1 & (1 << 34) - 1, bool(packed & ESTIMATED_ORIGIN))


CaptureMode = Literal["replication", "subscribe"]

MAX_MESSAGE_BYTES: Final = 8 << 10
"""Of channel and payload together; larger messages are dropped, so that a batch fits into memory.

coturn's channels have some 700 bytes and its payloads fewer, but any client that may publish can
use such a channel.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """A place in a replication stream, right after which a source can resume.

    ``offset`` counts the bytes of the history named ``replication_id``. ``database`` is the one
    selected there, None before the first SELECT: the server does not repeat it.
    """

    replication_id: str
    offset: int
    database: int | None


class RawKeySighting(NamedTuple):
    """A status key that a scan found, unparsed.

    The scan started at ``scan_started_at`` and saw the key at ``seen_at``, idle for
    ``idle_seconds``. The spool sets ``number``, and places the sighting after the message at
    ``position`` of ``epoch``; all three are 0 before that.
    """

    scan_started_at: int
    seen_at: int
    database: int
    key: bytes
    idle_seconds: int
    number: int = 0
    epoch: int = 0
    position: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """A run of rising positions; ``token`` names it outside this file.

    ``server``: the one that it was captured from, empty when that is not known.
    """

    number: int
    token: str
    started_at: int
    cause: str
    server: ServerIdentity = UNKNOWN_SERVER


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A period, [from_at, to_at), in which messages may have been lost.

    It lies after the message at ``position`` of ``epoch``. ``to_at`` is None while it is open.
    ``number`` is unique in this file; outside of it the epoch's token and the number name a gap.
    """

    number: int
    epoch: int
    position: int
    from_at: int
    to_at: int | None
    cause: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolState:
    """How far messages are captured, loaded and pruned.

    Every message received from ``captured_from`` on and before ``captured_until`` is in the spool,
    or was lost within a gap; both are None until a source was attached for the first time.
    ``loaded_epoch`` is 0 until something was loaded. Messages up to ``pruned_position`` of
    ``pruned_epoch`` are deleted, and the last of them was received at ``pruned_received_at``; all
    three are 0 before that. ``server_run_id`` is that of the Redis last captured from. In
    replication, positions are offsets, and ``replication_id`` and ``stream_database`` belong to
    ``captured_position``. ``holder`` is the random name of this file.

    The clock of the times is ``clock_offset`` ahead of the steady clock of the machine, in the
    start of the machine that ``boot`` names. Times after ``unconfirmed_from`` are of a clock that
    was not compared with the database's; None when every time is confirmed.
    """

    source: str
    captured_from: int | None
    captured_until: int | None
    captured_epoch: int
    captured_position: int
    last_received_at: int
    loaded_epoch: int
    loaded_position: int
    pruned_epoch: int
    pruned_position: int
    pruned_received_at: int
    replication_id: str | None
    stream_database: int | None
    server_run_id: str | None
    mode: CaptureMode | None
    holder: str
    boot: str | None
    clock_offset: int | None
    unconfirmed_from: int | None

    @property
    def newest_at(self) -> int:
        """The last time that is stored: of a message or of a checkpoint."""
        return max(self.last_received_at, self.captured_until or 0)

    @property
    def confirmed_until(self) -> int:
        """The last stored time of a clock that was compared with the database's."""
        if self.unconfirmed_from is None:
            return self.newest_at
        return min(self.newest_at, self.unconfirmed_from)

    @property
    def resume_point(self) -> ResumePoint | None:
        """Where a replication stream can resume; None when it can't."""
        if self.mode != "replication" or self.replication_id is None:
            return None
        return ResumePoint(
            replication_id=self.replication_id,
            offset=self.captured_position,
            database=self.stream_database,
        )
