"""The lease of a source: which of its collectors works, and how another one takes over.

The lease only decides which collector works. The guarded position of the source keeps messages
from being counted twice, however many collectors believe that they hold the lease.
"""

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import Connection, Engine, func, select

from accounting.capture.clock import MAX_CLOCK_ERROR, CaptureClock, ClockReading
from accounting.capture.spool.spool import Spool
from accounting.capture.spool.takeover import take_over_position
from accounting.db.clock import database_now
from accounting.db.engine import lost_connections
from accounting.db.locks import set_lock_timeout
from accounting.domain.calendar import to_micros
from accounting.domain.server_identity import UNKNOWN_SERVER
from accounting.errors import LeaseHeld, SourceConflict
from accounting.sources import identity, lease_queries, source_queries
from accounting.sources.lease_queries import Lease
from accounting.sources.source_queries import SourceRow
from accounting.sources.trouble import CLOCK_OFF, enqueue_trouble

if TYPE_CHECKING:
    from accounting.capture.redis.server_watch import WatchedServer

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class BooksPosition:
    """How far a source is loaded: ``position`` in the epoch named ``token``. Times in microseconds.

    ``captured_until``: what was published before is loaded. ``last_received_at``: of the last
    message that is; it may be later. ``loaded_by_host``: the host whose collector loaded last.
    ``spool_lacks``: the asking collector's spool lacked messages after it then.
    """

    token: str
    position: int
    captured_until: int | None
    last_received_at: int | None
    replication_id: str | None
    stream_database: int | None
    loaded_by_host: str | None
    spool_lacks: bool = False


@cache
def this_host() -> str:
    """This machine's name and, where it has one, the id that distinguishes it from namesakes."""
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine = ""
    return f"{socket.gethostname()} {machine}".strip()


def lease_holder(spool_path: Path) -> str:
    """Identifies a collector to others: its machine and the path of its spool, not the file."""
    return f"{this_host()} {spool_path}"


def check_lease(connection: Connection, source: SourceRow, spool: Spool) -> None:
    """Raise LeaseHeld when the lease of the source is another collector's, also an expired one.

    A backup has one that expired long ago, and what follows its position is in that collector's
    spool. This one's collector takes the lease if nobody else renews it. The loader itself does not
    renew it: it may be running although its collector hangs.
    """
    lease = lease_queries.last_lease(connection, source.source_id)
    if lease is not None and lease.holder != lease_holder(spool.path):
        _raise_if_held(source, lease)


def _raise_if_held(
    source: SourceRow, other: Lease | None, suspected: SourceConflict | None = None
) -> None:
    if other is not None:
        raise LeaseHeld(
            f"source {source.source} is collected by {other.host} now", suspected, other.renewed_at
        )


def compare_clocks(connection: Connection, clock: CaptureClock) -> None:
    """Read the database's clock for the collector's clock: the better one of two readings."""
    readings = [_read_clock(connection, clock) for _ in range(2)]
    clock.observe(min(readings, key=lambda reading: reading.uncertainty))


def _read_clock(connection: Connection, clock: CaptureClock) -> ClockReading:
    asked_at, wall = clock.steady(), clock.wall()
    now = to_micros(database_now(connection))
    uncertainty = (clock.steady() - asked_at + 1) // 2
    middle = asked_at + uncertainty
    return ClockReading(
        steady=middle,
        offset=now - middle,
        uncertainty=uncertainty,
        wall_ahead=wall + uncertainty - now,
    )


def _enqueue_clock_off(connection: Connection, source: SourceRow, ahead_seconds: float) -> None:
    side = "ahead of" if ahead_seconds > 0 else "behind"
    enqueue_trouble(
        connection,
        source.source_id,
        CLOCK_OFF,
        f"the clock of its collector's machine is {abs(ahead_seconds):.1f} s {side} the database's",
        since=database_now(connection),
    )


def acquire_lease(
    engine: Engine,
    spool: Spool,
    seconds: float,
    clock: CaptureClock | None = None,
    watched: "WatchedServer | None" = None,
    *,
    takes_expired: bool = True,
    mode: str = "auto",
) -> BooksPosition | None:
    """Acquire or renew the lease of the spool's source, and return how far the source is loaded.

    ``clock``: compared with the database's clock.
    ``mode``: how to capture it, shown until it is captured.
    ``takes_expired``: also when the lease of another collector has expired.
    ``watched``: the Redis of this collector, whose histories it claims for the source. Raises
    SourceConflict when another source has them, LeaseHeld when another collector has the lease,
    ConnectionLost when Postgres can't be asked.
    """
    server = UNKNOWN_SERVER if watched is None else watched.identity
    with lost_connections(), engine.begin() as connection:
        _prepare_lock(connection, spool, seconds)
        source = source_queries.lock_source(connection, spool.source, mode)
        if clock is not None:
            compare_clocks(connection, clock)
        was_off = lease_queries.clock_is_off(connection, source.source_id, MAX_CLOCK_ERROR / 1e6)
        other = lease_queries.acquire(
            connection,
            source.source_id,
            holder=lease_holder(spool.path),
            host=socket.gethostname(),
            lease_seconds=seconds,
            clock_ahead_seconds=None if clock is None else clock.wall_ahead / 1e6,
            server=server,
            server_age_seconds=None if watched is None else time.monotonic() - watched.asked_at,
            takes_expired=takes_expired,
        )
        if other is not None:
            suspected = None
            if watched is not None:
                first_seen_at = connection.execute(
                    select(func.clock_timestamp())
                ).scalar_one() - timedelta(seconds=time.monotonic() - watched.first_seen_at)
                suspected = identity.suspected_conflict(source, other, server, first_seen_at)
            _raise_if_held(source, other, suspected)
        if clock is not None and clock.wall_is_off and not was_off:
            _enqueue_clock_off(connection, source, clock.wall_ahead / 1e6)
        identity.claim(connection, source, server)
        identity.resolve_conflicts(connection, source.source_id, server, lease_holder(spool.path))
        if not source.epoch:
            tokens = [epoch.token for epoch in spool.epochs()]
            identity.check_spool_is_new(connection, source, tokens)
            source = register_source(connection, source, spool, mode)
        position = books_position(
            source, source_queries.epochs_by_token(connection, source.source_id)
        )
        if position is None:
            return None
        # Under the lock of the source: later the loader moves it, and messages are pruned.
        return replace(position, spool_lacks=lacks_after(spool, position.token, position.position))


def _prepare_lock(connection: Connection, spool: Spool, seconds: float) -> None:
    """Prepare to lock the row of the source, also when a hung collector or loader has locked it.

    Its host may have stopped while it loaded. When the lock is not available within ``seconds``,
    raises as for a lost connection; the next attempt terminates the hung session.
    """
    if lease_queries.terminate_hung_loaders(connection, seconds):
        log.warning("ended a database session that hung while it loaded", source=spool.source)
    set_lock_timeout(connection, seconds)


def register_source(
    connection: Connection, source: SourceRow, spool: Spool, mode: str
) -> SourceRow:
    """Record the first epoch of a source before anything of it is captured.

    If its first collector is lost before it loads anything, the next one then finds an epoch that
    it has no messages of, and records a gap.
    """
    first = spool.epochs()[0]
    # The spool may have been created under a wrong clock, and times of a source never fall.
    started_at = min(first.started_at, to_micros(database_now(connection)))
    advanced = source_queries.advance(
        connection,
        source,
        epoch=source_queries.add_epoch(
            connection, source.source_id, first.token, started_at, first.cause
        ),
        position=0,
        captured_until=None,
        loaded_until=started_at,
        last_received_at=None,
        mode=mode,
        replication_id=None,
        stream_database=None,
        loaded_by_host=this_host(),
    )
    assert advanced is not None, "the row of the source is locked"
    return source_queries.read_source(connection, source.source_id)


def books_position(source: SourceRow, epochs_by_token: Mapping[str, int]) -> BooksPosition | None:
    """How far a source is loaded; None before its first epoch."""
    token = next(
        (token for token, number in epochs_by_token.items() if number == source.epoch), None
    )
    if token is None:
        return None
    return BooksPosition(
        token=token,
        position=source.position,
        # Messages that were captured later and not loaded are lost with their spool, or captured
        # again.
        captured_until=source.loaded_until,
        last_received_at=source.last_received_at,
        replication_id=source.replication_id,
        stream_database=source.stream_database,
        loaded_by_host=source.loaded_by_host,
    )


def release_lease(engine: Engine, spool: Spool, seconds: float) -> None:
    """Release the lease, so that another collector can acquire it at once."""
    with lost_connections(), engine.begin() as connection:
        _prepare_lock(connection, spool, seconds)
        source = source_queries.find_and_lock(connection, spool.source)
        if source is not None:
            lease_queries.release(connection, source.source_id, lease_holder(spool.path))


def is_behind(spool: Spool, position: BooksPosition | None) -> bool:
    """Whether the database has messages of the source beyond this spool: see :func:`take_over`.

    In replication, positions are offsets of the stream, so that they are comparable between spools.
    In a subscription each spool counts its own messages. What another machine loaded can't be
    matched with them, because clocks differ: this spool's messages are then discarded, and lie
    within the gap of the take-over. What another spool on the same machine loaded is recognized by
    receipt times, so that the loader itself continues after it.
    """
    if position is None:
        return False
    state = spool.state()
    epoch = {epoch.token: epoch.number for epoch in spool.epochs()}.get(position.token)
    in_stream = position.replication_id is not None
    if epoch is not None:
        return in_stream and (epoch, position.position) > (
            state.captured_epoch,
            state.captured_position,
        )
    other_host = position.loaded_by_host != this_host()
    return in_stream or (other_host and state.captured_until is not None)


def must_take_over(
    spool: Spool, position: BooksPosition | None, watched: "WatchedServer | None"
) -> bool:
    """Whether a spool must continue from the database's position: see :func:`take_over`.

    Also where it lacks messages after that position which the backlog of Redis still has: it took
    over later, and the database was restored from a backup. All that it has is in the backlog too.
    """
    if position is None or watched is None or watched.backlog_from is None:
        return is_behind(spool, position)
    state = spool.state()
    goes_back = (
        position.spool_lacks
        and lacks_after(spool, position.token, position.position)  # not since it took over
        and state.resume_point is not None
        and watched.identity.replication_id
        == position.replication_id
        == state.resume_point.replication_id
        and watched.backlog_from <= position.position
    )
    return goes_back or is_behind(spool, position)


def lacks_after(spool: Spool, token: str, position: int) -> bool:
    """Whether the spool has the current epoch by that token, but not all after that position."""
    state = spool.state()
    epoch = {epoch.token: epoch.number for epoch in spool.epochs()}.get(token)
    return epoch == state.captured_epoch and (epoch, position) < (
        state.pruned_epoch,
        state.pruned_position,
    )


def take_over(spool: Spool, position: BooksPosition) -> None:
    """Let a spool continue from the database's position instead of its own."""
    in_stream = position.replication_id is not None
    take_over_position(
        spool,
        token=position.token if in_stream else None,
        position=position.position if in_stream else 0,
        captured_until=position.captured_until,
        last_received_at=position.last_received_at,
        replication_id=position.replication_id,
        stream_database=position.stream_database,
        cause="takeover",
    )
