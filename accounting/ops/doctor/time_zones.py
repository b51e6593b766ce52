"""The check of time zones: whether Postgres agrees on them, and whether the books still do."""

from collections.abc import Iterator
from typing import Final

from accounting.db.engine import Engine, lost_connections
from accounting.domain.time_zones import SPAN, tzdata_version
from accounting.identities import bucket_queries, realm_queries, time_zone_check
from accounting.ops.doctor.findings import Finding, error, listed_names, ok, warning
from accounting.plurals import counted

COMPONENT: Final = "zones"


def check_time_zones(engine: Engine, default: str) -> Iterator[Finding]:
    """Check the zones of all rules and the ``default``, and the buckets that they gave.

    Raises ConnectionLost, NotAllowed.
    """
    with lost_connections(), engine.connect() as connection:
        names = realm_queries.names_by_id(connection)
        zones = {default: [], **time_zone_check.time_zones_in_use(connection)}
        problems = {
            zone: problem
            for zone in zones
            if (problem := time_zone_check.time_zone_problem(connection, zone))
        }
        calendars = {
            realm_id: rules.calendar
            for realm_id, rules in realm_queries.all_rules(connection).items()
        }
        moved = list(bucket_queries.moved_buckets(connection, calendars))
    for zone, problem in problems.items():
        users = (
            listed_names(names[realm_id] for realm_id in zones[zone])
            or "none yet; it is ACCOUNTING_TIME_ZONE"
        )
        yield error(
            COMPONENT,
            "agree",
            f"{problem}. Realms: {users}",
            "update tzdata where it is older: that of the Postgres server, or the Python package "
            "tzdata; queries with AT TIME ZONE are wrong until then",
        )
    if not problems:
        yield ok(
            COMPONENT,
            "agree",
            f"{counted(len(zones), 'zone')} in use, the same in this Postgres and in tzdata "
            f"{tzdata_version()}, from {SPAN[0].year} to {SPAN[1].year}",
        )
    for buckets in moved:
        count = counted(buckets.count, "hour, day or month", "hours, days and months")
        yield warning(
            COMPONENT,
            "moved",
            f"tzdata {tzdata_version()} moves {count} of realm "
            f"{names[buckets.realm_id]!r} since {buckets.since:%Y-%m-%d %H:%M:%SZ}, drawn with "
            f"{', '.join(buckets.versions)}",
            "run `turn-accounting rebuild` for the realm: open periods are computed by the new "
            "data, and what changes in closed ones is posted as adjustments; or install the "
            "earlier version of the Python package tzdata",
        )
    if not moved:
        yield ok(COMPONENT, "moved", f"no hour moves with tzdata {tzdata_version()}")
