"""The reports that a bug in the fold keeps out of the sessions, until a rebuild takes them in."""

from collections.abc import Collection, Sequence

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects.postgresql import insert as upsert

from accounting.db.schema import set_aside_reports
from accounting.domain.calendar import from_micros, to_micros
from accounting.sessions.careful_fold import SetAside


def add(connection: Connection, reports: Sequence[SetAside]) -> None:
    """Store reports that were set aside; one that is stored already stays as it is."""
    if reports:
        connection.execute(
            upsert(set_aside_reports).on_conflict_do_nothing(),
            [
                report._asdict() | {"received_at": from_micros(report.received_at)}
                for report in reports
            ],
        )


def read(connection: Connection, realm_ids: Collection[int]) -> list[SetAside]:
    """The reports of those realms that are set aside, in order."""
    table = set_aside_reports.c
    rows = connection.execute(
        select(*(table[name] for name in SetAside._fields))
        .where(table.realm_id.in_(realm_ids))
        .order_by(table.source_id, table.epoch, table.position, table.sighting)
    )
    return [SetAside(*row)._replace(received_at=to_micros(row.received_at)) for row in rows]


def replace(connection: Connection, realm_id: int, reports: Sequence[SetAside]) -> None:
    """Keep these of a realm, and forget the others: a rebuild took them in."""
    kept = {report[:4] for report in reports}
    table = set_aside_reports.c
    for report in read(connection, [realm_id]):
        if report[:4] not in kept:
            connection.execute(
                delete(set_aside_reports).where(
                    table.source_id == report.source_id,
                    table.epoch == report.epoch,
                    table.position == report.position,
                    table.sighting == report.sighting,
                )
            )
    add(connection, reports)
