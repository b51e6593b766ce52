"""A day of reports is archived whole or not at all, and statements are recomputed from archives."""

import json
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Final

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounting.archive.archive_manifest import read_archive_manifest
from accounting.archive.read_archive import check_archive
from accounting.archive.write_archive import archive_day
from accounting.audit.archived_statements import ArchiveResult, verify_archive
from accounting.audit.differences import Difference
from accounting.audit.retention import expired_days, retain
from accounting.audit.trace import trace
from accounting.audit.verify import VerifyResult, verify
from accounting.capture.spool.records import RawKeySighting
from accounting.cli.audit import dropped_notice
from accounting.errors import AccountingError, NotYet
from accounting.export.local_directory import LocalDirectory
from accounting.export.manifest import check_export
from accounting.identities.erase import erase
from tests.support.books import WRITER, Books, CopiedFrom, channel, cloned_database
from tests.support.command import turn_accounting
from tests.support.corruptions import corrupt
from tests.support.coturn_messages import FakeAllocation
from tests.support.crash_injection import CrashInjector, crashing_engine, run_through_crashes
from tests.support.retention_scenario import (
    DAY,
    DAYS_TO_DROP_ALL,
    DAYS_TO_DROP_ONE,
    MIDNIGHT_SECONDS,
    close_two_days,
    kept_days,
    receive_steps,
    receive_two_days,
    run_jobs_and_close,
    run_jobs_and_close_all,
    without_reports,
)
from tests.support.scenario_player import STEPS, Step
from tests.support.servers import PostgresServer
from tests.support.stores import AzureServer, GoogleServer, S3Server, SftpServer, StoreServer

LATER: Final = 40 * DAY
NOVEMBER: Final = date(2026, 11, 1)
FIRST_DAY: Final = date(2026, 11, 2)
REPORTS: Final = "reports/day=2026-11-02/source=default/reports.parquet"
MANIFEST: Final = "reports_2026-11-02.manifest.json"


def verified(books: Books, place: Path) -> tuple[list[Difference], ArchiveResult]:
    result = ArchiveResult()
    return list(verify_archive(books.engine, str(place), result=result)), result


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "archive"


@pytest.fixture
def closed(copied_from: CopiedFrom, tmp_path: Path) -> Iterator[Books]:
    """Books of a closed November with reports on three days."""
    with copied_from(close_two_days, tmp_path) as books:
        yield books


def query(place: Path, statement: str) -> list[tuple[Any, ...]]:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(
            "CREATE VIEW reports AS SELECT * FROM read_parquet($1, hive_partitioning = true,"
            " hive_types = {'day': DATE, 'source': VARCHAR})".replace(
                "$1", f"'{place}/reports/**/*.parquet'"
            )
        )
        return connection.execute(statement).fetchall()


def test_duckdb_reads_the_reports_of_the_archive_as_the_views_had_them(
    closed: Books, place: Path
) -> None:
    for day in (2, 3, 4):
        archive_day(closed.engine, str(place), date(2026, 11, day))
    shown = query(
        place,
        "SELECT CAST(day AS text), source, position, epoch_us(received_at), realm, allocation_id,"
        " kind, side, received_bytes, sent_bytes FROM reports ORDER BY position",
    )
    stored = closed.query(
        "SELECT position, received_at, realm, allocation_id, event AS kind, NULL AS side,"
        " 0 AS received_bytes, 0 AS sent_bytes FROM reporting.allocation_events UNION ALL "
        "SELECT position, received_at, realm, allocation_id, report, side, received_bytes,"
        " sent_bytes FROM reporting.traffic_reports ORDER BY position"
    )
    assert [
        (
            f"{row['received_at']:%Y-%m-%d}",
            "default",
            row["position"],
            int(row["received_at"].timestamp() * 1_000_000),
            *(row[name] for name in ("realm", "allocation_id", "kind", "side")),
            row["received_bytes"],
            row["sent_bytes"],
        )
        for row in stored
    ] == shown
    assert len(shown) == 23
    names = {row[0] for row in query(place, "SELECT column_name FROM (DESCRIBE reports)")}
    assert not names & {"username", "user_id", "client_address"}
    [(keys,)] = query(place, "SELECT count(DISTINCT user_key) FROM reports")
    assert keys == 3


def test_the_manifest_counts_each_source_and_epoch_and_is_checked_as_that_of_any_export(
    closed: Books, place: Path
) -> None:
    archive_day(closed.engine, str(place), FIRST_DAY)
    manifest = json.loads((place / MANIFEST).read_text())
    [first] = closed.query(
        "SELECT min(position) AS first, max(position) AS last, count(*) AS rows,"
        " sum(received_bytes) AS received FROM accounting.reports"
        " WHERE received_at < '2026-11-03Z'"
    )
    [source] = manifest["sources"]
    [epoch] = source["epochs"]
    assert (epoch["first_position"], epoch["last_position"], epoch["rows"]) == (
        first["first"], first["last"], first["rows"],
    )  # fmt: skip
    assert manifest["sums"]["received_bytes"] == first["received"] == 910
    assert (manifest["rows"], manifest["complete"]) == (10, True)
    assert check_export(str(place / MANIFEST)) == []
    before = (place / REPORTS).read_bytes()
    (place / MANIFEST).unlink()
    archive_day(closed.engine, str(place), FIRST_DAY)
    assert (place / REPORTS).read_bytes() == before


def test_a_day_is_archived_and_read_back_before_it_is_dropped(closed: Books, place: Path) -> None:
    before = without_reports(closed)
    assert retain(closed.engine, DAYS_TO_DROP_ALL, str(place)) == 3
    assert kept_days(closed) == []
    assert without_reports(closed) == before
    rows = closed.query(
        "SELECT day, place, reports, dropped_at IS NOT NULL AS dropped"
        " FROM accounting.report_archives ORDER BY day"
    )
    assert [(row["day"].day, row["place"], row["reports"], row["dropped"]) for row in rows] == [
        (2, str(place), 10, True), (3, str(place), 10, True), (4, str(place), 3, True),
    ]  # fmt: skip
    differences, result = verified(closed, place)
    assert differences == []
    assert (result.statements, result.lines, result.archived_reports, result.kept_reports) == (
        1, 2, 23, 0,
    )  # fmt: skip
    proved = VerifyResult()
    assert list(verify(closed.engine, result=proved)) == []
    traced = trace(closed.engine, "example.org", NOVEMBER, user="alice").partly_dropped
    for dropped in (*proved.partly_dropped, traced):
        assert dropped is not None
        assert f"archived in {place}; last proved" in dropped_notice(dropped)
    with pytest.raises(Exception, match="what was billed is kept as it is"):
        corrupt(closed, "UPDATE accounting.report_archives SET place = 'elsewhere'")


def test_reports_stay_while_the_archive_cannot_be_written(closed: Books, place: Path) -> None:
    place.write_text("not a directory")
    with pytest.raises(AccountingError, match="Not a directory"):
        retain(closed.engine, DAYS_TO_DROP_ALL, str(place))
    assert kept_days(closed) == [2, 3, 4]
    assert closed.query("SELECT FROM accounting.dropped_reports") == []


def test_a_day_that_is_not_captured_to_its_end_is_not_archived(books: Books, place: Path) -> None:
    receive_two_days(books)
    books.run_jobs()
    with pytest.raises(NotYet, match="may bring more reports of 2026-11-04"):
        archive_day(books.engine, str(place), date(2026, 11, 4))
    assert not place.exists()


def test_days_that_are_not_archived_yet_are_read_from_the_database(
    closed: Books, place: Path
) -> None:
    assert retain(closed.engine, DAYS_TO_DROP_ONE, str(place)) == 1
    differences, result = verified(closed, place)
    assert differences == []
    assert (result.archived_reports, result.kept_reports) == (10, 13)
    corrupt(closed, "UPDATE accounting.reports SET sent_bytes = 1201 WHERE sent_bytes = 1200")
    differences, _ = verified(closed, place)
    assert {(item.what, item.column) for item in differences} == {
        ("statements", "sent_bytes"), ("statements", "digest"), ("statements", "estimated_bytes"),
    }  # fmt: skip


def test_a_changed_byte_or_a_missing_file_of_the_archive_is_found(
    closed: Books, place: Path
) -> None:
    retain(closed.engine, DAYS_TO_DROP_ALL, str(place))
    path, manifest = place / REPORTS, place / MANIFEST
    content, text = path.read_bytes(), manifest.read_bytes()

    def found() -> list[tuple[str, str, str]]:
        differences, result = verified(closed, place)
        assert result.statements == 0
        return [(item.what, item.kind, item.column) for item in differences]

    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    [(what, kind, column)] = found()
    assert (what, kind) == ("archive", "differs")
    assert "SHA-256 is" in column
    path.unlink()
    [(what, kind, column)] = [item for item in found() if "missing" in item[2]]
    assert column.endswith(f"{REPORTS}: missing")
    path.write_bytes(content)
    assert verified(closed, place)[0] == []
    changed = json.loads(text)
    changed["sums"]["sent_bytes"] += 1
    manifest.write_text(json.dumps(changed))
    assert [(what, kind) for what, kind, _ in found()] == [("archive", "differs")]
    manifest.unlink()
    assert found() == [("archive", "missing", str(manifest))]
    shown = turn_accounting("verify", "--archive", str(place), database_url=closed.url(WRITER))
    assert shown.code == 1
    assert "1 difference in 0 statements" in shown.err


def test_rows_that_are_not_those_of_the_manifest_are_found(closed: Books, place: Path) -> None:
    """Also where every digest is right: the manifest's numbers were counted by Postgres."""
    archive_day(closed.engine, str(place), FIRST_DAY)
    text = json.loads((place / MANIFEST).read_text())
    text["sources"][0]["epochs"][0]["sums"]["sent_bytes"] += 1
    (place / MANIFEST).write_text(json.dumps(text))
    directory = LocalDirectory(place)
    manifest = read_archive_manifest(directory, FIRST_DAY)
    assert manifest is not None
    [problem] = check_archive(directory, manifest)
    assert "are not those of the manifest" in problem


def test_a_period_of_which_a_day_was_dropped_without_an_archive_is_not_verified(
    closed: Books, place: Path
) -> None:
    assert retain(closed.engine, DAYS_TO_DROP_ONE) == 1
    assert retain(closed.engine, DAYS_TO_DROP_ALL, str(place)) == 2
    differences, result = verified(closed, place)
    assert (differences, result.statements) == ([], 0)
    [incomplete] = result.incomplete
    assert (incomplete.period, incomplete.day) == (NOVEMBER, FIRST_DAY)
    shown = turn_accounting("verify", "--archive", str(place), database_url=closed.url(WRITER))
    assert shown.code == 3
    assert "reports of 2026-11-02 (UTC) were dropped without an archive" in shown.err


def test_erasing_a_person_leaves_archives_as_they_are_and_right(closed: Books, place: Path) -> None:
    retain(closed.engine, DAYS_TO_DROP_ONE, str(place))
    erase(closed.engine, "example.org", "alice")
    differences, result = verified(closed, place)
    assert (differences, result.statements) == ([], 1)
    for path in place.rglob("*.*"):
        assert b"alice" not in path.read_bytes()


def test_reports_that_come_after_their_day_was_dropped_are_another_part(
    closed: Books, place: Path
) -> None:
    retain(closed.engine, DAYS_TO_DROP_ALL, str(place))
    first = (place / REPORTS).read_bytes()
    corrupt(closed, "SELECT accounting.ensure_report_partition('2026-11-02')")
    corrupt(
        closed,
        "INSERT INTO accounting.reports (source_id, epoch, position, received_at, time_estimated,"
        " database, realm_id, username_key, user_key, allocation_id, kind, received_packets,"
        " received_bytes, sent_packets, sent_bytes) SELECT source_id, epoch, position + 1,"
        " '2026-11-02 23:00Z', true, 0, 1, gen_random_uuid(), gen_random_uuid(), 1, 1, 0, 0, 0, 0"
        " FROM accounting.dropped_positions",
    )
    manifest = archive_day(closed.engine, str(place), FIRST_DAY)
    assert manifest is not None
    assert (manifest.part, manifest.reports) == (2, 1)
    assert (place / REPORTS).read_bytes() == first
    assert (place / REPORTS.replace("reports.parquet", "reports-2.parquet")).exists()
    assert (place / "reports_2026-11-02_2.manifest.json").exists()


def test_the_archive_of_another_database_is_not_replaced(closed: Books, place: Path) -> None:
    """As where two cells were given one place."""
    archive_day(closed.engine, str(place), FIRST_DAY)
    manifest = json.loads((place / MANIFEST).read_text())
    manifest["sources"][0]["source_id"] += 1
    of_another = json.dumps(manifest)
    (place / MANIFEST).write_text(of_another)
    with pytest.raises(AccountingError, match="of another database, with source 'default'"):
        retain(closed.engine, DAYS_TO_DROP_ALL, str(place))
    assert (place / MANIFEST).read_text() == of_another


def test_a_dry_run_says_where_days_would_be_archived(closed: Books, place: Path) -> None:
    shown = turn_accounting(
        "job", "run", "retain", "--dry-run",
        database_url=closed.url(WRITER),
        report_retention_days=str(DAYS_TO_DROP_ONE),
        report_archive=str(place),
    )  # fmt: skip
    assert shown.out == f"2026-11-02  10 reports  would be archived in {place}, dropped\n"
    assert not place.exists()
    assert [item.blockers for item in expired_days(closed.engine, DAYS_TO_DROP_ONE)] == [()]
    assert list(verify(closed.engine)) == []


def test_key_sightings_are_evidence_of_an_archive_too(books: Books, place: Path) -> None:
    """They are pruned after the reports were dropped, and confirm or prolong sessions."""
    alice = FakeAllocation(books)
    alice.new(MIDNIGHT_SECONDS - 5000)
    for seen, idle in ((MIDNIGHT_SECONDS - 4440, 10), (MIDNIGHT_SECONDS - 1500, 100)):
        sighting = RawKeySighting(
            scan_started_at=books.micros_at(seen - 5),
            seen_at=books.micros_at(seen),
            database=0,
            key=channel("status"),
            idle_seconds=idle,
        )
        books.spool().add_sightings([sighting])
        books.load()
    alice.close(MIDNIGHT_SECONDS + 900, (1, 10, 1, 10), (0, 0, 0, 0))
    run_jobs_and_close(books)
    retain(books.engine, DAYS_TO_DROP_ALL, str(place))
    corrupt(books, "DELETE FROM accounting.key_sightings")
    differences, result = verified(books, place)
    assert (differences, result.statements, result.archived_reports) == ([], 1, 4)
    [path] = place.glob("key_sightings/*/*/*")
    path.unlink()
    assert [item.kind for item in verified(books, place)[0]] == ["differs"]


@pytest.mark.parametrize("examples", [1, pytest.param(6, marks=pytest.mark.long)])
def test_archives_of_any_history_give_its_statements(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory, examples: int
) -> None:
    """Of several sources and realms, with gaps, sessions over days, and days that are kept."""

    @settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow])
    @given(STEPS, STEPS, st.integers(1, 45))
    def check(early: Sequence[Step], later: Sequence[Step], days: int) -> None:
        with cloned_database(postgres_server) as name:
            directory = tmp_path_factory.mktemp("books")
            books = Books(postgres_server, name, directory)
            receive_steps(books, early, 0)
            run_jobs_and_close_all(books, LATER)
            retain(books.engine, days, str(directory / "archive"))
            receive_steps(books, later, LATER)
            run_jobs_and_close_all(books, LATER + 100 * DAY)
            retain(books.engine, days, str(directory / "archive"))
            closed = books.query("SELECT FROM accounting.periods WHERE closed_at IS NOT NULL")
            differences, result = verified(books, directory / "archive")
            assert (differences, result.incomplete) == ([], [])
            assert result.statements == len(closed)
            books.close()

    check()


@pytest.mark.parametrize("step", [61, pytest.param(5, marks=pytest.mark.long)])
def test_a_crash_leaves_a_day_in_the_database_or_whole_in_the_archive(
    closed: Books, place: Path, step: int
) -> None:
    assert list(verify(closed.engine)) == []
    injector = CrashInjector()
    with crashing_engine(closed, injector) as engine:
        crashes = run_through_crashes(
            closed,
            injector,
            lambda: retain(engine, DAYS_TO_DROP_ALL, str(place)),
            ("dropped_reports",),
            step=step,
        )
    assert crashes > 4
    assert kept_days(closed) == []
    differences, result = verified(closed, place)
    assert (differences, result.archived_reports) == ([], 23)


@pytest.mark.long
@pytest.mark.parametrize(
    "server",
    [
        S3Server,
        GoogleServer,
        pytest.param(AzureServer, marks=pytest.mark.needs_azurite),
        pytest.param(SftpServer, marks=pytest.mark.needs_sshd),
    ],
)
def test_an_archive_in_a_store_is_that_in_a_directory(
    closed: Books, place: Path, server: type[StoreServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive_day(closed.engine, str(place), FIRST_DAY)
    with server() as store:
        for name, value in store.variables.items():
            monkeypatch.setenv(name, value)
        url = f"{store.url}/archive"
        retain(closed.engine, DAYS_TO_DROP_ALL, url)
        for name in (REPORTS, MANIFEST):
            assert store.read(f"archive/{name}") == (place / name).read_bytes()
        result = ArchiveResult()
        assert list(verify_archive(closed.engine, url, result=result)) == []
        assert result.archived_reports == 23
        store.root.remove(f"archive/{REPORTS}")
        [difference] = verify_archive(closed.engine, url, result=ArchiveResult())
        assert difference.column.endswith(f"{url}/{REPORTS}: missing")
