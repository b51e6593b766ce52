"""The handshake of a replica: from the first word to the answer to PSYNC.

Owns what we ask for, who may refuse us and what that means, and where the stream begins by the
server's answer. Must not read the stream itself: that is `following`'s.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from threading import Event

from redis.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from accounting.capture.redis.connection import (
    ServerInfo,
    execute_command,
    read_server_info,
    to_source_lost,
)
from accounting.capture.redis.receiver import Receiver
from accounting.capture.replication import protocol
from accounting.capture.replication.backlog_times import OffsetTime
from accounting.capture.replication.protocol import Continued, FullResync, PsyncReply, StreamError
from accounting.capture.source import Attachment, NoReply, SourceLost, SourceRefused
from accounting.capture.spool.records import ResumePoint, SpoolState

# Redis itself sends a newline a second while it makes a snapshot, and PING every ten seconds later.
MAX_SILENCE_SECONDS = 60.0

# What an error means that isn't for ever: the server is starting, or has no master itself.
TRANSIENT_ERRORS = ("LOADING", "NOMASTERLINK", "MASTERDOWN", "BUSY", "TRYAGAIN")

ACL_ADVICE = (
    "give this user the commands psync, replconf, ping and info,"
    " or set ACCOUNTING_CAPTURE=subscribe"
)


def check_is_master(
    connection: AbstractConnection, clock: Callable[[], int], *, by_sentinels: bool
) -> ServerInfo:
    """What the server tells of itself. Raises Refused where there is no stream to be had.

    `by_sentinels`: they named it, and will name another one where it is no master.
    """
    try:
        server = read_server_info(connection, clock)
    except ResponseError as error:
        raise to_error(str(error)) from None
    except (RedisError, OSError) as error:
        raise to_source_lost(error) from None
    if server.is_cluster:
        raise SourceRefused(
            "redis_unreachable",
            "a Redis in cluster mode does not replicate what is published",
            "set ACCOUNTING_CAPTURE=subscribe, or give coturn a Redis that is no cluster",
        )
    if server.role != "master":
        if by_sentinels:
            # In the midst of a failover; they will name the master soon.
            raise SourceLost("redis_unreachable", "the sentinels name a server that is no master")
        raise SourceRefused(
            "redis_unreachable",
            "this Redis is a replica: what coturn publishes is in the stream of its master",
            "set ACCOUNTING_REDIS_URL to the master, or to the sentinels that know it",
        )
    return server


def psync_command(resume: ResumePoint | None) -> bytes:
    """PSYNC for what follows that place, or for a beginning."""
    name, offset = ("?", -1) if resume is None else (resume.replication_id, resume.offset + 1)
    words = [b"PSYNC", name.encode(), b"%d" % offset]
    return b"*3\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def send_replconf(connection: AbstractConnection) -> None:
    """Say what we can do. Raises Refused where a replica is not welcome."""
    try:
        execute_command(connection, "REPLCONF", "listening-port", "0")
        execute_command(connection, "REPLCONF", "capa", "eof", "capa", "psync2")
        with suppress(ResponseError):  # before Redis 7: the snapshot comes with the data, then
            execute_command(connection, "REPLCONF", "rdb-filter-only", "")
    except ResponseError as error:
        raise to_error(str(error)) from None
    except (RedisError, OSError) as error:
        raise to_source_lost(error) from None


def to_error(text: str) -> SourceLost:
    """What an error of the server means: try again, or not."""
    if text.startswith(TRANSIENT_ERRORS):
        return SourceLost("redis_unreachable", f"Redis is not ready: {text}")
    return SourceRefused("redis_unreachable", f"Redis refuses replication: {text}", ACL_ADVICE)


def await_psync_reply(receiver: Receiver, opening: PsyncReply, stop: Event) -> tuple[int, bytes]:
    """When the answer to PSYNC came, and what came with it of the stream.

    Before a snapshot a server may wait for other replicas that want one, 5 s by default.
    """
    heard_at = time.monotonic()
    while not stop.is_set():
        if time.monotonic() - heard_at > MAX_SILENCE_SECONDS:
            raise NoReply("redis_unreachable", "no answer to PSYNC, and not a byte")
        try:
            chunk = receiver.next_chunk(0.1)
        except SourceLost as lost:
            raise NoReply(lost.cause, f"no answer to PSYNC: {lost}") from None
        if chunk:
            heard_at = time.monotonic()
            received_at, data = chunk
            rest = feed_reply(opening, data)
            if opening.outcome is not None:
                return received_at, rest
    raise SourceLost("disconnected", "stopped before Redis had answered")


def feed_reply(opening: PsyncReply, data: bytes) -> bytes:
    """Feed the opening; what is no protocol is a lost connection."""
    try:
        return opening.feed(data)
    except StreamError as error:
        raise SourceLost("disconnected", str(error)) from None


def make_attachment(
    opening: PsyncReply, asked: ResumePoint | None, server: ServerInfo, answered_at: int
) -> Attachment:
    """Where the stream begins, by the answer to PSYNC."""
    continued = False
    match opening.outcome:
        case Continued(name) if asked is not None:
            continued = True
            resume = ResumePoint(
                replication_id=name or asked.replication_id,
                offset=asked.offset,
                database=asked.database,
            )
        case FullResync(name, offset):
            resume = ResumePoint(replication_id=name, offset=offset, database=None)
        case protocol.PsyncError(text):
            raise to_error(text)
        case _:
            raise SourceLost("disconnected", "Redis goes on where nobody was")
    return Attachment(
        mode="replication",
        captured_from=answered_at,
        server_run_id=server.run_id,
        server_started_at=server.started_at,
        resume_point=resume,
        continued=continued,
    )


def last_known_offset(state: SpoolState, attachment: Attachment) -> OffsetTime:
    """The last time of which the offset is known, before what the attachment brings."""
    assert attachment.resume_point is not None
    if attachment.continued:
        at = max(state.captured_until or 0, state.last_received_at)
    else:
        at = attachment.captured_from
    return OffsetTime(at, attachment.resume_point.offset)
