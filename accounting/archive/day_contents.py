"""What a day (UTC) holds: counted by Postgres when it is written, by a reader when it is checked.

Both must be equal, so what was not written, or can't be read, is found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final

from sqlalchemy import Connection

from accounting.archive.archive_columns import SUMMED
from accounting.db.queries import Queries

_QUERIES: Final = Queries("accounting.archive")


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochContents:
    """The reports of an epoch: how many, their first and last position, the sums of counters."""

    epoch: int
    reports: int
    first_position: int
    last_position: int
    sums: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceContents:
    """What a source has on a day."""

    source_id: int
    source: str
    epochs: Sequence[EpochContents]
    sightings: int

    @property
    def reports(self) -> int:
        return sum(epoch.reports for epoch in self.epochs)


def day_span(day: date) -> tuple[datetime, datetime]:
    """A day from midnight to midnight UTC."""
    midnight = datetime.combine(day, time(), UTC)
    return midnight, midnight + timedelta(days=1)


def day_contents(connection: Connection, day: date) -> list[SourceContents]:
    """What the database has of a day, by source; empty where it has nothing."""
    since, until = day_span(day)
    parameters = {"since": since, "until": until}
    names: dict[str, int] = {}
    epochs: dict[int, list[EpochContents]] = {}
    for row in connection.execute(_QUERIES.text("contents_of_reports"), parameters).mappings():
        names[row["source"]] = row["source_id"]
        epochs.setdefault(row["source_id"], []).append(
            EpochContents(
                **{key: row[key] for key in ("epoch", "reports", "first_position")},
                last_position=row["last_position"],
                sums={name: int(row[name]) for name in SUMMED},
            )
        )
    sightings: dict[int, int] = {}
    for row in connection.execute(_QUERIES.text("contents_of_sightings"), parameters).mappings():
        names[row["source"]] = row["source_id"]
        sightings[row["source_id"]] = row["sightings"]
    return [
        SourceContents(
            source_id=source_id,
            source=source,
            epochs=epochs.get(source_id, []),
            sightings=sightings.get(source_id, 0),
        )
        for source, source_id in sorted(names.items())
    ]


def sources_before(connection: Connection, until: datetime) -> list[tuple[str, datetime | None]]:
    """The sources in service that are not settled up to a time, each with how far it is."""
    rows: Any = connection.execute(_QUERIES.text("sources_before"), {"until": until})
    return [(row.source, row.settled_until) for row in rows]
