"""Sources, their epochs and positions: how far each stage has come, and the guard of loading."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, select, update
from sqlalchemy.dialects.postgresql import insert

from accounting.db.schema import capture_gaps, epochs, settle_watermarks, sources
from accounting.domain.calendar import from_micros, to_micros


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRow:
    """How far loading has come. Times in microseconds since the epoch; epoch 0 is before all."""

    source_id: int
    source: str
    epoch: int
    position: int
    captured_until: int | None
    loaded_until: int | None
    last_received_at: int | None
    replication_id: str | None
    stream_database: int | None
    loaded_by_host: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Watermark:
    """How far settling has come: everything up to that position is in the sessions.

    ``received_at``: of the last report settled. ``until``: all received before it is settled.
    ``last_sighting``: (epoch, position, number) of the last key sighting taken in.
    """

    source_id: int
    epoch: int
    position: int
    received_at: int | None
    until: int | None
    last_sighting: tuple[int, int, int] = (0, 0, 0)


def _time(value: datetime | None) -> int | None:
    return None if value is None else to_micros(value)


def _moment(value: int | None) -> datetime | None:
    return None if value is None else from_micros(value)


def _source(row: Any) -> SourceRow:
    return SourceRow(
        source_id=row.source_id,
        source=row.source,
        epoch=row.epoch,
        position=row.position,
        captured_until=_time(row.captured_until),
        loaded_until=_time(row.loaded_until),
        last_received_at=_time(row.last_received_at),
        replication_id=row.replication_id,
        stream_database=row.stream_database,
        loaded_by_host=row.loaded_by_host,
    )


def open_source(connection: Connection, name: str, mode: str) -> SourceRow:
    """The row of a source, made if nobody knew it, and locked: its loaders come one by one."""
    query = select(sources).where(sources.c.source == name).with_for_update()
    known = connection.execute(query).one_or_none()
    if known is None:
        connection.execute(insert(sources).values(source=name, mode=mode).on_conflict_do_nothing())
        known = connection.execute(query).one()
    return _source(known)


def all_sources(connection: Connection) -> list[SourceRow]:
    """Every source, by id."""
    return [_source(row) for row in connection.execute(select(sources).order_by("source_id"))]


def source(connection: Connection, source_id: int) -> SourceRow:
    """The row of a source that is known."""
    return _source(
        connection.execute(select(sources).where(sources.c.source_id == source_id)).one()
    )


def watermark(connection: Connection, source_id: int) -> Watermark:
    """How far a source is settled, made at the beginning if nobody settled it yet."""
    query = select(settle_watermarks).where(settle_watermarks.c.source_id == source_id)
    row = connection.execute(query).one_or_none()
    if row is None:
        # Only then: in a snapshot, an insert meets a row that was moved since as a conflict.
        connection.execute(
            insert(settle_watermarks).values(source_id=source_id).on_conflict_do_nothing()
        )
        row = connection.execute(query).one()
    return Watermark(
        source_id=source_id,
        epoch=row.epoch,
        position=row.position,
        received_at=_time(row.received_at),
        until=_time(row.settled_until),
        last_sighting=(row.last_sighting_epoch, row.last_sighting_position, row.last_sighting),
    )


def epoch_tokens(connection: Connection, source_id: int) -> dict[str, int]:
    """The source's epochs, by the token that names each outside."""
    rows = connection.execute(
        select(epochs.c.token, epochs.c.epoch).where(epochs.c.source_id == source_id)
    )
    return dict(rows.all())


def add_epoch(
    connection: Connection, source_id: int, token: str, started_at: int, cause: str
) -> int:
    """Number another epoch of a source: one above the last."""
    number: int = connection.execute(
        select(func.coalesce(func.max(epochs.c.epoch), 0) + 1).where(
            epochs.c.source_id == source_id
        )
    ).scalar_one()
    connection.execute(
        insert(epochs).values(
            source_id=source_id,
            epoch=number,
            token=token,
            started_at=from_micros(started_at),
            cause=cause,
        )
    )
    return number


def advance(
    connection: Connection,
    expected: SourceRow,
    *,
    epoch: int,
    position: int,
    captured_until: int | None,
    loaded_until: int | None,
    last_received_at: int | None,
    mode: str,
    replication_id: str | None,
    stream_database: int | None,
    loaded_by_host: str,
) -> bool:
    """Move a source's position, if it still stands where it is ``expected``.

    False means that somebody else loaded: nothing may be written then. Times never fall.
    """
    moved = connection.execute(
        update(sources)
        .where(
            sources.c.source_id == expected.source_id,
            sources.c.epoch == expected.epoch,
            sources.c.position == expected.position,
        )
        .values(
            mode=mode,
            epoch=epoch,
            position=position,
            replication_id=replication_id,
            stream_database=stream_database,
            loaded_by_host=loaded_by_host,
            captured_until=func.greatest(sources.c.captured_until, _moment(captured_until)),
            loaded_until=func.greatest(sources.c.loaded_until, _moment(loaded_until)),
            last_received_at=func.greatest(sources.c.last_received_at, _moment(last_received_at)),
        )
    )
    return moved.rowcount == 1


def settled(connection: Connection, expected: Watermark, reached: Watermark) -> bool:
    """Move a source's watermark, if it still stands where it is ``expected``."""
    moved = connection.execute(
        update(settle_watermarks)
        .where(
            settle_watermarks.c.source_id == expected.source_id,
            settle_watermarks.c.epoch == expected.epoch,
            settle_watermarks.c.position == expected.position,
        )
        .values(
            epoch=reached.epoch,
            position=reached.position,
            received_at=_moment(reached.received_at),
            settled_until=func.greatest(settle_watermarks.c.settled_until, _moment(reached.until)),
            last_sighting_epoch=reached.last_sighting[0],
            last_sighting_position=reached.last_sighting[1],
            last_sighting=reached.last_sighting[2],
        )
    )
    return moved.rowcount == 1


def put_gap(
    connection: Connection,
    source_id: int,
    *,
    token: str,
    gap: int,
    after: tuple[int, int],
    from_at: int,
    to_at: int | None,
    cause: str,
    detail: str,
) -> None:
    """Record a capture gap, or what became known of it since.

    ``token`` and ``gap`` name it; ``after``: the (epoch, position) after which it lies.
    """
    known = connection.execute(
        update(capture_gaps)
        .where(
            capture_gaps.c.source_id == source_id,
            capture_gaps.c.token == token,
            capture_gaps.c.gap == gap,
        )
        .values(to_at=_moment(to_at), cause=cause, detail=detail)
    )
    if known.rowcount:
        return
    connection.execute(
        insert(capture_gaps).values(
            source_id=source_id,
            token=token,
            gap=gap,
            epoch=after[0],
            position=after[1],
            from_at=from_micros(from_at),
            to_at=_moment(to_at),
            cause=cause,
            detail=detail,
        )
    )


def close_first_gap(connection: Connection, source_id: int, token: str, to_at: int) -> None:
    """End the gap that a lost spool left, number 0 of its epoch, if it is open."""
    connection.execute(
        update(capture_gaps)
        .where(
            capture_gaps.c.source_id == source_id,
            capture_gaps.c.token == token,
            capture_gaps.c.gap == 0,
            capture_gaps.c.to_at.is_(None),
        )
        .values(to_at=func.greatest(capture_gaps.c.from_at, from_micros(to_at)))
    )


def gap_positions(connection: Connection, source_id: int) -> list[tuple[int, int]]:
    """The (epoch, position) after which each of the source's gaps lies, in order."""
    return [
        (epoch, position)
        for epoch, position in connection.execute(
            select(capture_gaps.c.epoch, capture_gaps.c.position)
            .where(capture_gaps.c.source_id == source_id)
            .order_by(capture_gaps.c.epoch, capture_gaps.c.position)
        )
    ]


def gap_spans(connection: Connection, source_id: int, since: int) -> list[tuple[int, int | None]]:
    """(from, to) of the source's gaps that reach past ``since``; an open one has no end."""
    rows = connection.execute(
        select(capture_gaps.c.from_at, capture_gaps.c.to_at).where(
            capture_gaps.c.source_id == source_id,
            capture_gaps.c.to_at.is_(None) | (capture_gaps.c.to_at > from_micros(since)),
        )
    )
    return [(to_micros(from_at), _time(to_at)) for from_at, to_at in rows]


def retire(connection: Connection, name: str) -> bool:
    """Declare a source gone: nothing waits for it any more. False when nobody knows it."""
    retired = connection.execute(
        update(sources)
        .where(sources.c.source == name)
        .values(retired_at=func.coalesce(sources.c.retired_at, func.now()))
    )
    return retired.rowcount == 1
