"""A rule's time zone is the same here and in Postgres; doctor tells when it no longer is."""

from collections.abc import Iterator

import psycopg
import pytest

from accounting.audit.rebuild import rebuild
from accounting.audit.verify import verify
from accounting.config import Settings
from accounting.db.engine import Engine, open_engine
from accounting.domain.realm_rules import RealmRule
from accounting.domain.time_zones import tzdata_version
from accounting.errors import ConfigurationError, UsageError
from accounting.identities.realm_rules import list_rules
from accounting.identities.time_zone_check import time_zone_problem
from accounting.ops.doctor.findings import Finding, Level
from accounting.ops.doctor.time_zones import check_time_zones
from accounting.ops.service import check_default_time_zone
from tests.support.books import WRITER, Books
from tests.support.command import turn_accounting
from tests.support.coturn_messages import FakeAllocation, run_jobs_at
from tests.support.realm_rules import set_time_zone
from tests.support.servers import PostgresServer
from tests.support.system_postgres import SystemPostgres

ABBREVIATIONS = ("CET", "EET", "MET", "WET")
"""Zones with summer time here; AT TIME ZONE takes them as abbreviations, without."""


@pytest.fixture(
    scope="module",
    params=["wheel", pytest.param("system", marks=pytest.mark.needs_postgres)],
)
def zone_engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """The Postgres of the wheel, which has its own data, and Debian's, which has the system's."""
    if request.param == "wheel":
        server: PostgresServer = request.getfixturevalue("postgres_server")
        engine = open_engine(server.url(database="postgres"))
        yield engine
        engine.dispose()
        return
    with SystemPostgres() as system:
        engine = open_engine(system.url(database="postgres"))
        yield engine
        engine.dispose()


def test_a_zone_is_accepted_where_postgres_has_the_same_offsets(zone_engine: Engine) -> None:
    names = ("UTC", "Europe/Berlin", "US/Eastern", "America/New_York", "Asia/Kathmandu", "EST5EDT")
    with zone_engine.connect() as connection:
        for name in names:
            assert time_zone_problem(connection, name) == ""
        for name in ABBREVIATIONS:
            problem = time_zone_problem(connection, name)
            assert problem.startswith(f"time zone {name!r} differs between tzdata 20")
        assert "on 2020-03-29 01:00:00Z it is +02:00 here and +01:00 there" in time_zone_problem(
            connection, "CET"
        )
        for name in ("localtime", "Factory", "posix/Europe/Berlin", "europe/berlin"):
            assert "is not in tzdata" in time_zone_problem(connection, name)


def test_a_refused_zone_changes_no_rule(books: Books) -> None:
    FakeAllocation(books).new(0)
    run_jobs_at(books, 1)
    before = list(list_rules(books.engine))
    for name in ("localtime", "CET"):
        with pytest.raises(UsageError, match=f"time zone '{name}' "):
            set_time_zone(books, "example.org", name)
        with pytest.raises(UsageError, match=f"time zone '{name}' "):
            set_time_zone(books, "another.example", name)
        ran = turn_accounting(
            "realm", "set", "example.org", "--time-zone", name, database_url=books.url(WRITER)
        )
        assert (ran.code, f"time zone '{name}' " in ran.err) == (2, True)
    assert list(list_rules(books.engine)) == before


def test_a_default_zone_is_refused_at_the_start_unless_it_is_in_use(books: Books) -> None:
    """After an upgrade of either side the service must go on; doctor tells."""
    settings = Settings(time_zone="CET")
    with pytest.raises(ConfigurationError, match="ACCOUNTING_TIME_ZONE: time zone 'CET' differs"):
        check_default_time_zone(books.engine, settings)
    books.rule = RealmRule(time_zone="CET")
    FakeAllocation(books).new(0)
    run_jobs_at(books, 1)
    check_default_time_zone(books.engine, settings)
    agree, moved = check_time_zones(books.engine, "UTC")
    assert (agree.level, moved.level) == (Level.ERROR, Level.OK)
    assert "time zone 'CET' differs" in agree.observed
    assert agree.observed.endswith("Realms: 'example.org'")


def test_every_view_can_be_read_in_a_zone_that_is_accepted(books: Books) -> None:
    """The first query of docs/sql.md fails for all realms when one has an unknown zone."""
    set_time_zone(books, "example.org", "US/Eastern")
    FakeAllocation(books).new(0)
    run_jobs_at(books, 1)
    (row,) = books.query(
        "SELECT (starts_at AT TIME ZONE time_zone)::text AS day FROM reporting.user_usage_daily"
    )
    assert row["day"] == "2026-11-02 00:00:00"


def by_level(findings: Iterator[Finding]) -> dict[Level, list[str]]:
    levels: dict[Level, list[str]] = {}
    for finding in findings:
        levels.setdefault(finding.level, []).append(finding.observed)
    return levels


def test_doctor_tells_which_hours_newer_data_moves(books: Books) -> None:
    """As if the day of Kathmandu had been drawn when its offset was half past five."""
    set_time_zone(books, "example.org", "Asia/Kathmandu")
    set_time_zone(books, "example.net", "Asia/Kathmandu")
    set_time_zone(books, "example.com", "Europe/Berlin")
    for number, realm in enumerate(("example.org", "example.net", "example.com"), 1):
        allocation = FakeAllocation(books, realm=realm, allocation=number)
        allocation.new(number)
        allocation.interim(number + 10, 1, 100, 1, 100)
    run_jobs_at(books, 100)
    assert {row["tzdata_version"] for row in books.query("SELECT * FROM accounting.buckets")} == {
        tzdata_version()
    }
    assert set(by_level(check_time_zones(books.engine, "UTC"))) == {Level.OK}
    with psycopg.connect(books.url(), autocommit=True) as connection:
        connection.execute("UPDATE accounting.buckets SET tzdata_version = '2019a'")
        assert set(by_level(check_time_zones(books.engine, "UTC"))) == {Level.OK}
        connection.execute(
            "UPDATE accounting.buckets SET starts_at = starts_at + interval '15 minutes',"
            " ends_at = ends_at + interval '15 minutes' WHERE level = 'day' AND realm_id IN"
            " (SELECT realm_id FROM accounting.realms WHERE realm = 'example.org')"
        )
    agree, moved = check_time_zones(books.engine, "UTC")
    assert (agree.level, moved.level) == (Level.OK, Level.WARNING)
    assert moved.observed == (
        f"tzdata {tzdata_version()} moves 1 hour, day or month of realm 'example.org' since "
        "2026-11-01 18:30:00Z, drawn with 2019a"
    )
    differences = {(difference.realm, difference.what) for difference in verify(books.engine)}
    assert ("example.org", "buckets") in differences
    assert {realm for realm, _ in differences} == {"example.org"}
    assert list(rebuild(books.engine, "newer tzdata", "example.org"))
    assert set(by_level(check_time_zones(books.engine, "UTC"))) == {Level.OK}
    assert list(verify(books.engine)) == []
