"""Compare the time zones of rules with those of the database's server.

This package computes hours, days and periods from the data of ``domain.time_zones``. Readers of the
views compare them with ``AT TIME ZONE``, for which Postgres has data of its own.
"""

from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Connection, exists, select

from accounting.db.queries import Queries
from accounting.db.schema import realm_rules
from accounting.domain.time_zones import SPAN, sample_offsets, time_zone, tzdata_version
from accounting.errors import UsageError

_QUERIES: Final = Queries("accounting.identities")


def check_time_zone(connection: Connection, name: str) -> None:
    """Raise UsageError for a zone that this package and this Postgres do not both know alike."""
    if problem := time_zone_problem(connection, name):
        raise UsageError(problem)


def check_default_time_zone(connection: Connection, name: str) -> None:
    """:func:`check_time_zone`, unless a rule has the zone: usage is in its hours already."""
    in_use = select(exists(select(realm_rules).where(realm_rules.c.time_zone == name)))
    if not connection.execute(in_use).scalar_one():
        check_time_zone(connection, name)


def time_zones_in_use(connection: Connection) -> dict[str, list[int]]:
    """The realm_ids of each time zone that a rule has or had."""
    realm_ids: dict[str, list[int]] = {}
    query = select(realm_rules.c.time_zone, realm_rules.c.realm_id).distinct().order_by("realm_id")
    for name, realm_id in connection.execute(query):
        realm_ids.setdefault(name, []).append(realm_id)
    return realm_ids


def time_zone_problem(connection: Connection, name: str) -> str:
    """Why a zone can't be used with this Postgres; empty when it can."""
    try:
        zone = time_zone(name)
    except ValueError as error:
        return str(error)
    if not connection.execute(_QUERIES.text("knows_time_zone"), {"name": name}).scalar_one():
        return f"this Postgres has no time zone {name!r}: choose another name of it"
    offsets = sample_offsets(zone)
    other = connection.execute(
        _QUERIES.text("first_other_offset"),
        {"name": name, "seconds": [*offsets], "offsets": [*offsets.values()]},
    ).one_or_none()
    if other is not None:
        return (
            f"time zone {name!r} differs between tzdata {tzdata_version()} here and this "
            f"Postgres: on {datetime.fromtimestamp(other.second, UTC):%Y-%m-%d %H:%M:%SZ} it is "
            f"{_to_text(offsets[other.second])} here and {_to_text(other.postgres_offset)} there "
            f"(compared from {SPAN[0].year} to {SPAN[1].year}). Update the older data, or choose "
            "another zone"
        )
    return ""


def _to_text(offset: int) -> str:
    sign, minutes = "-" if offset < 0 else "+", abs(offset) // 60
    return f"{sign}{minutes // 60:02}:{minutes % 60:02}"
