"""The handshake of a replica: checks the server, sends REPLCONF and PSYNC, reads the reply."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from threading import Event
from typing import Final

from redis.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from accounting.capture.redis.arguments import StreamError
from accounting.capture.redis.connection import (
    ServerInfo,
    execute_command,
    read_server_info,
    to_source_lost,
)
from accounting.capture.redis.receiver import Receiver
from accounting.capture.replication.backlog_times import OffsetTime
from accounting.capture.replication.failover import FailoverGuard
from accounting.capture.replication.protocol import (
    Continued,
    FullResync,
    PsyncError,
    PsyncReply,
)
from accounting.capture.source import Attachment, NoReply, SourceLost, SourceRefused
from accounting.capture.spool.records import ResumePoint, SpoolState
from accounting.domain.server_identity import valid_id

MAX_SILENCE_SECONDS: Final = 60.0
"""Redis sends a newline every second while it makes a snapshot, later a PING every ten seconds."""

TRANSIENT_ERRORS: Final = ("LOADING", "NOMASTERLINK", "MASTERDOWN", "BUSY", "TRYAGAIN")
"""The server is starting, or is itself a replica without a master."""

ACL_ADVICE: Final = (
    "give this user the commands psync, replconf, ping and info,"
    " or set ACCOUNTING_CAPTURE=subscribe"
)


def check_is_master(
    connection: AbstractConnection,
    clock: Callable[[], int],
    failover_guard: FailoverGuard,
    *,
    by_sentinels: bool,
) -> ServerInfo:
    """Read INFO and check that the server has a usable stream. Raises SourceRefused, SourceLost.

    ``by_sentinels``: sentinels named this server. They may still name a replica in the middle of a
    failover, so that is no reason to give up replication.
    """
    try:
        server = read_server_info(connection, clock)
        if failover_guard.abort_if_hopeless(connection, server):
            server = read_server_info(connection, clock)
    except ResponseError as error:
        raise to_error(str(error)) from None
    except (RedisError, OSError) as error:
        raise to_source_lost(error) from None
    if server.is_cluster:
        raise SourceRefused(
            "redis_unreachable",
            "a Redis in cluster mode does not replicate what is published",
            "set ACCOUNTING_CAPTURE=subscribe, or give coturn a Redis that is not a cluster",
        )
    if server.role != "master":
        if by_sentinels:
            raise SourceLost(
                "redis_unreachable", "the sentinels name a server that is not a master"
            )
        raise SourceRefused(
            "redis_unreachable",
            "this Redis is a replica: what coturn publishes is in the stream of its master",
            "set ACCOUNTING_REDIS_URL to the master, or to its sentinels",
        )
    return server


def psync_command(resume_point: ResumePoint | None) -> bytes:
    """PSYNC for the stream after that point, or for a full resync."""
    replication_id, offset = (
        ("?", -1)
        if resume_point is None
        else (resume_point.replication_id, resume_point.offset + 1)
    )
    words = [b"PSYNC", replication_id.encode(), b"%d" % offset]
    return b"*3\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def send_replconf(connection: AbstractConnection) -> None:
    """Announce a replica and what it can do. Raises SourceRefused without the permission."""
    try:
        execute_command(connection, "REPLCONF", "listening-port", "0")
        execute_command(connection, "REPLCONF", "capa", "eof", "capa", "psync2")
        with suppress(ResponseError):  # Redis before 7 has no filter and sends the data
            execute_command(connection, "REPLCONF", "rdb-filter-only", "")
    except ResponseError as error:
        raise to_error(str(error)) from None
    except (RedisError, OSError) as error:
        raise to_source_lost(error) from None


def to_error(text: str) -> SourceLost:
    """The exception for an error of the server: SourceRefused unless the error is transient."""
    if text.startswith(TRANSIENT_ERRORS):
        return SourceLost("redis_unreachable", f"Redis is not ready: {text}")
    return SourceRefused("redis_unreachable", f"Redis refuses replication: {text}", ACL_ADVICE)


def await_psync_reply(receiver: Receiver, reply: PsyncReply, stop: Event) -> tuple[int, bytes]:
    """Wait for the reply to PSYNC; returns when it came, and the bytes of the stream after it.

    Before a snapshot a server may wait for other replicas that want one, 5 s by default.
    """
    last_byte_at = time.monotonic()
    while not stop.is_set():
        if time.monotonic() - last_byte_at > MAX_SILENCE_SECONDS:
            raise NoReply("redis_unreachable", "Redis sent nothing after PSYNC")
        try:
            chunk = receiver.next_chunk(0.1)
        except SourceLost as lost:
            raise NoReply(lost.cause, f"no reply to PSYNC: {lost}") from None
        if chunk:
            last_byte_at = time.monotonic()
            received_at, data = chunk
            stream_bytes = feed_reply(reply, data)
            if reply.outcome is not None:
                return received_at, stream_bytes
    raise SourceLost("disconnected", "stopped before Redis had answered")


def feed_reply(reply: PsyncReply, data: bytes) -> bytes:
    """Feed received bytes to the reply; returns those of the stream. Raises SourceLost."""
    try:
        return reply.feed(data)
    except StreamError as error:
        raise SourceLost("disconnected", str(error)) from None


def make_attachment(
    reply: PsyncReply,
    requested: ResumePoint | None,
    server: ServerInfo,
    replied_at: int,
    address: str,
) -> Attachment:
    """Where the stream begins, by the reply to PSYNC. ``address`` is the server's, to be shown."""
    continued = False
    match reply.outcome:
        case Continued(replication_id) if requested is not None:
            continued = True
            resume_point = ResumePoint(
                replication_id=replication_id or requested.replication_id,
                offset=requested.offset,
                database=requested.database,
            )
        case FullResync(replication_id, offset):
            resume_point = ResumePoint(replication_id=replication_id, offset=offset, database=None)
        case PsyncError(text):
            raise to_error(text)
        case _:
            raise SourceLost("disconnected", "Redis resumes a stream that was not requested")
    return Attachment(
        mode="replication",
        captured_from=replied_at,
        server_run_id=server.run_id,
        server_started_at=server.started_at,
        resume_point=resume_point,
        continued=continued,
        # INFO was read before PSYNC: the first replica of a server gives it a history of its own.
        server=replace(
            server.identity(address), replication_id=valid_id(resume_point.replication_id)
        ),
    )


def last_known_offset(state: SpoolState, attachment: Attachment) -> OffsetTime:
    """The offset where the stream begins, with the last time at which it is known."""
    assert attachment.resume_point is not None
    if attachment.continued:
        at = max(state.captured_until or 0, state.last_received_at)
    else:
        at = attachment.captured_from
    return OffsetTime(at, attachment.resume_point.offset)
