"""Rows of ``settle_watermarks``: how far settling has come in each source."""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, func, select, update
from sqlalchemy.dialects.postgresql import insert

from accounting.db.schema import settle_watermarks
from accounting.domain.calendar import micros_or_none, time_or_none


@dataclass(frozen=True, slots=True, kw_only=True)
class Watermark:
    """All reports up to (``epoch``, ``position``) are in the sessions. Times in microseconds.

    ``received_at``: of the last settled report. ``settled_until``: every report received before it
    is settled. ``last_sighting``: (epoch, position, number) of the last settled key sighting.
    ``version`` counts changes of the open sessions by others than their loader.
    """

    source_id: int
    epoch: int
    position: int
    received_at: int | None
    settled_until: int | None
    last_sighting: tuple[int, int, int] = (0, 0, 0)
    version: int = 0

    @property
    def place(self) -> tuple[int, int]:
        """(epoch, position)"""
        return self.epoch, self.position


def read_watermark(connection: Connection, source_id: int) -> Watermark:
    """The watermark of a source; a missing row is inserted, before the first report."""
    query = select(settle_watermarks).where(settle_watermarks.c.source_id == source_id)
    row = connection.execute(query).one_or_none()
    if row is None:
        # Not an unconditional upsert: in a REPEATABLE READ snapshot it fails with a serialization
        # error if settling has updated the row since the snapshot.
        connection.execute(
            insert(settle_watermarks).values(source_id=source_id).on_conflict_do_nothing()
        )
        row = connection.execute(query).one()
    return Watermark(
        source_id=source_id,
        epoch=row.epoch,
        position=row.position,
        received_at=micros_or_none(row.received_at),
        settled_until=micros_or_none(row.settled_until),
        last_sighting=(row.last_sighting_epoch, row.last_sighting_position, row.last_sighting),
        version=row.version,
    )


def advance_watermark(connection: Connection, expected: Watermark, reached: Watermark) -> bool:
    """Move a watermark to ``reached``; False if its row is not at ``expected`` any more."""
    epoch, position, number = reached.last_sighting
    result = connection.execute(
        update(settle_watermarks)
        .where(
            settle_watermarks.c.source_id == expected.source_id,
            settle_watermarks.c.epoch == expected.epoch,
            settle_watermarks.c.position == expected.position,
        )
        .values(
            epoch=reached.epoch,
            position=reached.position,
            received_at=time_or_none(reached.received_at),
            settled_until=func.greatest(
                settle_watermarks.c.settled_until, time_or_none(reached.settled_until)
            ),
            last_sighting_epoch=epoch,
            last_sighting_position=position,
            last_sighting=number,
        )
    )
    return result.rowcount == 1


def open_sessions_changed(connection: Connection, source_ids: Iterable[int]) -> None:
    """Tell the loaders of those sources that another changed their open sessions."""
    connection.execute(
        update(settle_watermarks)
        .where(settle_watermarks.c.source_id.in_(list(source_ids)))
        .values(version=settle_watermarks.c.version + 1)
    )
