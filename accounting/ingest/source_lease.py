"""Standby: which of a source's collectors works, and how another takes over.

Owns the lease and the decision what a collector must do before it captures. A lease is no guard:
what counts once is decided by positions, however many believe that it is their turn.
"""

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import structlog
from sqlalchemy import Connection, Engine

from accounting.capture.spool.spool import Spool
from accounting.capture.spool.takeover import take_over_position
from accounting.db.engine import lost_connections
from accounting.db.locks import wait_at_most
from accounting.errors import LeaseHeld
from accounting.sources import lease_queries, source_queries
from accounting.sources.lease_queries import Lease
from accounting.sources.source_queries import SourceRow

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the books of a source stand, by the token of the epoch; times in microseconds.

    ``loaded_by_host``: the host whose collector brought them there.
    """

    token: str
    position: int
    captured_until: int | None
    replication_id: str | None
    stream_database: int | None
    loaded_by_host: str | None


@cache
def this_host() -> str:
    """This machine: its name, and the id that tells machines of one name apart where it has one."""
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine = ""
    return f"{socket.gethostname()} {machine}".strip()


def holder(spool: Spool) -> str:
    """Who a collector is to others: its machine and the place of its spool, not the file there."""
    return holder_at(spool.path)


def holder_at(path: Path) -> str:
    """The same, from the place of its spool alone."""
    return f"{this_host()} {path}"


def hold_lease(connection: Connection, source: SourceRow, spool: Spool, seconds: float) -> None:
    """Take or renew the lease of a source. Raises LeaseHeld when another collector has it."""
    _refuse(
        source,
        lease_queries.take(
            connection,
            source.source_id,
            holder=holder(spool),
            host=socket.gethostname(),
            seconds=seconds,
        ),
    )


def check_lease(connection: Connection, source: SourceRow, spool: Spool) -> None:
    """Raise LeaseHeld when another collector has the source.

    For the loader, which does not renew the lease: it may be at work beside a collector that hangs.
    """
    _refuse(source, lease_queries.held_by_other(connection, source.source_id, holder(spool)))


def _refuse(source: SourceRow, other: Lease | None) -> None:
    if other is not None:
        raise LeaseHeld(f"source {source.source} is collected by {other.host} now")


def take_turn(engine: Engine, spool: Spool, seconds: float) -> Place | None:
    """Take the lease, and say where the books stand.

    Raises LeaseHeld when it is another collector's turn, ConnectionLost when nobody can tell.
    """
    with lost_connections(), engine.begin() as connection:
        source = _claim(connection, spool, seconds)
        hold_lease(connection, source, spool, seconds)
        if not source.epoch:
            source = open_books(connection, source, spool)
        return place_of(source, source_queries.epoch_tokens(connection, source.source_id))


def _claim(connection: Connection, spool: Spool, seconds: float) -> SourceRow:
    """Lock the row of the source, also where another collector hangs while it has that lock.

    It may have been stopped in the midst of loading, machine and all. Raises, as of a lost
    connection, when the lock can't be had in that time: its session is ended at the next attempt.
    """
    if lease_queries.end_hung(connection, seconds):
        log.warning("ended a database session that hung while it loaded", source=spool.source)
    wait_at_most(connection, seconds)
    return source_queries.open_source(connection, spool.source, "subscribe")


def open_books(connection: Connection, source: SourceRow, spool: Spool) -> SourceRow:
    """Note where a source begins, before anything of it is captured.

    Were its first collector lost before anything is loaded, nobody would know that there had been
    something to lose: so, the next one finds a beginning that it has no messages of.
    """
    first = spool.epochs()[0]
    opened = source_queries.advance(
        connection,
        source,
        epoch=source_queries.add_epoch(
            connection, source.source_id, first.token, first.started_at, first.cause
        ),
        position=0,
        captured_until=None,
        loaded_until=first.started_at,
        last_received_at=None,
        mode="subscribe",
        replication_id=None,
        stream_database=None,
        loaded_by_host=this_host(),
    )
    assert opened, "the row of the source is locked"
    return source_queries.source(connection, source.source_id)


def place_of(source: SourceRow, known: Mapping[str, int]) -> Place | None:
    """Where the books of a source stand; None when nothing was loaded yet.

    ``known``: the database's number of each epoch, by its token.
    """
    token = next((token for token, number in known.items() if number == source.epoch), None)
    if token is None:
        return None
    return Place(
        token=token,
        position=source.position,
        # What was captured after that and not loaded is lost with its spool, or comes again.
        captured_until=source.loaded_until,
        replication_id=source.replication_id,
        stream_database=source.stream_database,
        loaded_by_host=source.loaded_by_host,
    )


def end_turn(engine: Engine, spool: Spool, seconds: float) -> None:
    """Give the lease back: another collector may begin at once."""
    with lost_connections(), engine.begin() as connection:
        source = _claim(connection, spool, seconds)
        lease_queries.release(connection, source.source_id, holder(spool))


def is_overtaken(spool: Spool, place: Place | None) -> bool:
    """Whether the books went on without this spool, so that it must :func:`take_over` first.

    In a replication stream positions are the stream's own, and whoever is behind goes on from the
    books. A subscription's are the spool's: what another machine loaded can't be told from what
    lies here, as clocks differ, so that is discarded, and is within the gap of the take-over. On
    one machine receipt times tell: there the loader goes on by them.
    """
    if place is None:
        return False
    state = spool.state()
    ours = {epoch.token: epoch.number for epoch in spool.epochs()}.get(place.token)
    in_stream = place.replication_id is not None
    if ours is not None:
        return in_stream and (ours, place.position) > (
            state.captured_epoch,
            state.captured_position,
        )
    return in_stream or (place.loaded_by_host != this_host() and state.captured_until is not None)


def take_over(spool: Spool, place: Place) -> None:
    """Let a spool go on where the books stand, instead of where it was itself."""
    in_stream = place.replication_id is not None
    take_over_position(
        spool,
        token=place.token if in_stream else None,
        position=place.position if in_stream else 0,
        captured_until=place.captured_until,
        replication_id=place.replication_id,
        stream_database=place.stream_database,
        cause="takeover",
    )
