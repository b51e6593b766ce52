"""Rows of ``capture_gaps``: when capture may have missed messages, and where in the stream.

A new gap is also an event of the feed.
"""

from sqlalchemy import Connection, func, select, update
from sqlalchemy.dialects.postgresql import insert

from accounting.db.schema import capture_gaps
from accounting.domain.calendar import from_micros, micros_or_none, time_or_none, to_micros
from accounting.sources.trouble import enqueue_trouble

LOST_SPOOL_GAP_NUMBER = 0
"""The gap after a lost spool, in the first epoch of the new spool. A spool counts gaps from 1."""
PRUNED_GAP_NUMBER = -1
"""The gap of messages that the spool has pruned and the database lacks."""


def upsert_gap(
    connection: Connection,
    source_id: int,
    *,
    epoch_token: str,
    gap_number: int,
    after: tuple[int, int],
    from_at: int,
    to_at: int | None,
    cause: str,
    detail: str,
) -> None:
    """Record a gap, or update its end, cause and detail. A new one is also a ``source.trouble``.

    ``epoch_token`` and ``gap_number`` identify it. ``after``: the (epoch, position) of the last
    message before it. Times are in microseconds.
    """
    updated = connection.execute(
        update(capture_gaps)
        .where(
            capture_gaps.c.source_id == source_id,
            capture_gaps.c.token == epoch_token,
            capture_gaps.c.gap == gap_number,
        )
        .values(to_at=time_or_none(to_at), cause=cause, detail=detail)
    )
    if updated.rowcount:
        return
    epoch, position = after
    connection.execute(
        insert(capture_gaps).values(
            source_id=source_id,
            token=epoch_token,
            gap=gap_number,
            epoch=epoch,
            position=position,
            from_at=from_micros(from_at),
            to_at=time_or_none(to_at),
            cause=cause,
            detail=detail,
        )
    )
    enqueue_trouble(connection, source_id, cause, detail, since=from_micros(from_at))


def extend_gap(connection: Connection, source_id: int, epoch_token: str, gap_number: int) -> None:
    """Let a gap that is closed last until now, by the database's clock."""
    connection.execute(
        update(capture_gaps)
        .where(
            capture_gaps.c.source_id == source_id,
            capture_gaps.c.token == epoch_token,
            capture_gaps.c.gap == gap_number,
        )
        .values(to_at=func.greatest(capture_gaps.c.to_at, func.clock_timestamp()))
    )


def close_lost_spool_gap(
    connection: Connection, source_id: int, epoch_token: str, to_at: int
) -> None:
    """End the gap after a lost spool, if it is open. ``epoch_token``: the new spool's first."""
    connection.execute(
        update(capture_gaps)
        .where(
            capture_gaps.c.source_id == source_id,
            capture_gaps.c.token == epoch_token,
            capture_gaps.c.gap == LOST_SPOOL_GAP_NUMBER,
            capture_gaps.c.to_at.is_(None),
        )
        .values(to_at=func.greatest(capture_gaps.c.from_at, from_micros(to_at)))
    )


def gap_positions(connection: Connection, source_id: int) -> list[tuple[int, int]]:
    """The (epoch, position) of the last message before each gap of the source, in order."""
    return [
        (epoch, position)
        for epoch, position in connection.execute(
            select(capture_gaps.c.epoch, capture_gaps.c.position)
            .where(capture_gaps.c.source_id == source_id)
            .order_by(capture_gaps.c.epoch, capture_gaps.c.position)
        )
    ]


def gap_periods(connection: Connection, source_id: int, since: int) -> list[tuple[int, int | None]]:
    """The (from, to) of the source's gaps that end after ``since``; to is None for an open gap."""
    rows = connection.execute(
        select(capture_gaps.c.from_at, capture_gaps.c.to_at).where(
            capture_gaps.c.source_id == source_id,
            capture_gaps.c.to_at.is_(None) | (capture_gaps.c.to_at > from_micros(since)),
        )
    )
    return [(to_micros(from_at), micros_or_none(to_at)) for from_at, to_at in rows]
