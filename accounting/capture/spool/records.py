"""What the spool holds, as values.

Owns the shapes that the collector writes and the loader reads; must not touch a file or a clock.
All times are whole microseconds since the Unix epoch, UTC.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

# received_at, database, channel, payload
Message = tuple[int, int, bytes, bytes]

# origin, position (rises strictly within its epoch), received_at, channel, payload. As SQLite makes
# it: a class of its own would cost as much again as reading it, and each value a tenth of that.
SpooledRow = tuple[int, int, int, bytes, bytes]


class MessageOrigin(NamedTuple):
    """Where a spooled message is from, and whether its time is an estimate: mostly as the last."""

    epoch: int
    database: int
    estimated: bool

    @classmethod
    def unpack(cls, origin: int) -> Self:
        """Out of the one number that it is in a SpooledRow."""
        return cls(origin >> 35, origin >> 1 & (1 << 34) - 1, bool(origin & 1))


CaptureMode = Literal["replication", "subscribe"]

# coturn's channels have some 700 bytes, its payloads less. Whoever may publish can say more under
# such a name; what is larger than this is not kept, or a batch of it would not fit into memory.
MAX_MESSAGE_BYTES = 8 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """A place in a replication stream: what to ask for, to go on right after it.

    `offset` counts the bytes of the history that `replication_id` names. `database` is the one
    selected there, None before the first SELECT: the server does not repeat it.
    """

    replication_id: str
    offset: int
    database: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RawKeySighting:
    """A status key that a scan found. The scan began at `began_at`; the key was looked at at
    `seen_at`, and nobody had touched it for `idle_seconds`.
    """

    scan_started_at: int
    seen_at: int
    database: int
    key: bytes
    idle_seconds: int


class Sighting(NamedTuple):
    """A seen key as it lies in the spool: after the messages up to `position` of `epoch`."""

    sighting: int
    epoch: int
    position: int
    began_at: int
    seen_at: int
    database: int
    key: bytes
    idle_seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """A stretch of positions that rise; `token` is its name outside this file."""

    number: int
    token: str
    started_at: int
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A stretch of time, [from_at, to_at), in which messages may have been lost.

    The last message before it is the one at `position` of `epoch`. `to_at` is None while it is
    open. Numbers are those of one file: outside of it a gap is named by its epoch's token and its
    number together.
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
    """What is captured, how far that is proven, and what is loaded.

    Every message received from `captured_from` on and before `captured_until` is in the spool, or
    lost within a gap; both are None until the source was attached for the first time.
    `loaded_epoch` is 0 until something was loaded. Messages up to `pruned_position` of
    `pruned_epoch` are deleted, 0 while none is; the last of them was received at
    `pruned_received_at`. `server_run` is the run id of the Redis last captured from, `mode` how.
    In replication positions are offsets, and `replication_id` and `stream_database` go with
    `captured_position`. `holder` is the random name of this file, the same for as long as it lives.
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

    @property
    def resume_point(self) -> ResumePoint | None:
        """Where a replication stream goes on; None when there is no such place."""
        if self.mode != "replication" or self.replication_id is None:
            return None
        return ResumePoint(
            replication_id=self.replication_id,
            offset=self.captured_position,
            database=self.stream_database,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolCounts:
    """How much lies in the spool. Counting reads the whole file: for `doctor`, not for a loop."""

    messages: int
    unloaded_messages: int
    gaps: int
    open_gaps: int
