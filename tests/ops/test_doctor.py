"""What doctor says of Postgres, the spool and the flow of events, and how the command ends."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final

import psycopg

from accounting.capture.clock import wall_clock
from accounting.capture.spool.file import spool_path
from accounting.capture.spool.spool import Spool
from accounting.capture.spool.status import Backlog
from accounting.db import migrations
from accounting.db.engine import open_engine
from accounting.db.migrations import head_revision
from accounting.ingest.partitions import make_partitions
from accounting.ops.doctor import Level, examine
from accounting.ops.doctor.findings import Finding
from accounting.ops.doctor.flow import check_flow
from accounting.ops.doctor.postgres_facts import PostgresFacts, read_postgres_facts
from accounting.ops.doctor.postgres_server import check_postgres
from accounting.ops.doctor.spool_file import check_spool, probe_spool
from tests.support.books import WRITER, Books, channel, status_payload
from tests.support.monitoring import checkpoint_now, read_snapshot, settings_for
from tests.support.servers import PostgresServer, ValkeyServer, free_port

GOOD: Final = PostgresFacts(
    version=160_004,
    encoding="UTF8",
    in_recovery=False,
    is_superuser=False,
    revision=head_revision(),
    settings={"fsync": "on", "full_page_writes": "on", "synchronous_commit": "local"},
)


def judged(facts: PostgresFacts, free: int | None = None) -> dict[str, Finding]:
    return by_check(check_postgres(facts, head=head_revision(), disk_free_bytes=free))


def by_check(found: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in found}


def levels(found: Mapping[str, Finding]) -> dict[str, Level]:
    return {check: one.level for check, one in found.items() if one.level is not Level.OK}


def test_a_database_as_it_should_be_is_well() -> None:
    assert levels(judged(GOOD, 10**12)) == {}


def test_what_must_be_mended_in_a_database_is_an_error() -> None:
    error = Level.ERROR
    assert levels(judged(replace(GOOD, version=140_010))) == {"version": error}
    assert levels(judged(replace(GOOD, encoding="LATIN1"))) == {"encoding": error}
    assert levels(judged(replace(GOOD, in_recovery=True))) == {"writable": error}
    assert levels(judged(replace(GOOD, revision=None))) == {"schema": error}
    assert levels(judged(replace(GOOD, missing_roles=("turn_accounting_reader",)))) == {
        "roles": error
    }
    for name in GOOD.settings:
        off = replace(GOOD, settings={**GOOD.settings, name: "off"})
        assert levels(judged(off)) == {"durable": error}, name
    assert levels(judged(GOOD, 10**8)) == {"disk": error}


def test_what_will_need_mending_in_a_database_is_a_warning() -> None:
    warning = Level.WARNING
    assert levels(judged(GOOD, 10**9)) == {"disk": warning}
    assert levels(judged(replace(GOOD, days_without_partition=(date(2026, 11, 22),)))) == {
        "partitions": warning
    }
    assert levels(judged(replace(GOOD, excess_privileges=("x: SELECT",)))) == {"rights": warning}


def test_a_real_database_with_its_grants_lacks_nothing(books: Books) -> None:
    make_partitions(books.engine)
    facts = read_postgres_facts(books.engine, head=head_revision())
    found = judged(facts)
    # The tests' server has been told not to sync.
    assert levels(found) == {"durable": Level.ERROR}
    assert facts.version > 150_000
    assert not facts.is_superuser
    assert facts.size_bytes > 10**6


def test_lost_and_surplus_grants_and_missing_partitions_are_seen(books: Books) -> None:
    with psycopg.connect(books.url(), autocommit=True) as connection:
        for change in (
            "GRANT DELETE ON accounting.reports TO turn_accounting_writer",
            "REVOKE SELECT ON reporting.sessions FROM turn_accounting_reader",
            "GRANT SELECT ON accounting.usernames TO turn_accounting_reader",
        ):
            connection.execute(change.encode())
    facts = read_postgres_facts(books.engine, head=head_revision())
    assert facts.missing_privileges == ("turn_accounting_reader: SELECT on all views of reporting",)
    assert facts.excess_privileges == (
        "turn_accounting_writer: UPDATE or DELETE on reports",
        "turn_accounting_reader: SELECT on tables of accounting",
    )
    assert len(facts.days_without_partition) == 3


def spool_of(books: Books) -> dict[str, Finding]:
    watch = read_snapshot(books)
    return by_check(check_spool(watch, probe_spool(watch)))


def test_a_spool_that_is_missing_readable_by_others_or_waiting_is_told(books: Books) -> None:
    settings_for(books)
    assert levels(spool_of(books)) == {"file": Level.WARNING}
    books.start = datetime.now(UTC)
    books.receive(-100, channel("status"), status_payload("new"))
    checkpoint_now(books)
    found = spool_of(books)
    assert levels(found) == {"backlog": Level.WARNING}
    assert found["backlog"].observed.startswith("1 messages wait to be loaded, the first for")
    books.load()
    assert levels(spool_of(books)) == {}
    books.spool().path.chmod(0o644)
    assert levels(spool_of(books)) == {"file": Level.WARNING}


def test_a_disk_that_fills_is_told_before_it_is_full(books: Books) -> None:
    settings_for(books)
    checkpoint_now(books)
    watch = read_snapshot(books)
    for free, level in ((10**12, None), (5 * 10**8, Level.WARNING), (10**7, Level.ERROR)):
        found = by_check(check_spool(replace(watch, disk_free_bytes=free), probe_spool(watch)))
        assert levels(found).get("disk") == level


def test_a_spool_that_is_damaged_is_an_error(books: Books) -> None:
    settings_for(books)
    books.directory.joinpath("default.sqlite3").write_bytes(b"no database" * 1000)
    found = spool_of(books)
    assert levels(found) == {"file": Level.ERROR}
    assert found["file"].advice.startswith("the file is damaged")


def flow_of(books: Books) -> dict[str, Finding]:
    return by_check(check_flow(read_snapshot(books)))


def test_events_that_arrive_and_reach_the_books_are_well(books: Books) -> None:
    settings_for(books)
    books.start = datetime.now(UTC)
    books.receive(-1, channel("status"), status_payload("new"))
    checkpoint_now(books)
    books.run_jobs()
    assert levels(flow_of(books)) == {}


def test_nothing_that_ever_arrived_comes_with_the_line_for_coturn(books: Books) -> None:
    settings_for(books)
    checkpoint_now(books)
    books.run_jobs()
    found = flow_of(books)
    assert levels(found) == {"arrival": Level.WARNING}
    assert "redis-statsdb" in found["arrival"].advice


def test_events_that_stopped_to_arrive_are_told(books: Books) -> None:
    settings_for(books)
    books.start = datetime.now(UTC)
    books.receive(-7_300, channel("status"), status_payload("new"))
    books.receive(-7_300, channel("status"), status_payload("deleted"))
    checkpoint_now(books)
    books.run_jobs()
    found = flow_of(books)
    assert levels(found) == {"arrival": Level.WARNING}
    assert found["arrival"].observed == "the last event arrived 2 h ago"


def test_a_share_of_rejected_messages_is_told(books: Books) -> None:
    settings_for(books)
    books.start = datetime.now(UTC)
    books.receive(-2, channel("status"), status_payload("new"))
    books.receive(-1, channel("traffic"), b"nonsense")
    checkpoint_now(books)
    books.run_jobs()
    found = flow_of(books)
    assert levels(found) == {"rejected": Level.WARNING}
    assert found["rejected"].observed == "1 of 2 messages were rejected"


def test_a_silent_thread_is_told_with_what_to_do(books: Books) -> None:
    settings_for(books)
    books.start = datetime.now(UTC)
    books.receive(-1500, channel("status", allocation=3 * 10**15 + 1), status_payload("new"))
    checkpoint_now(books)
    books.run_jobs()
    found = flow_of(books)
    assert levels(found) == {"silence": Level.WARNING}
    assert "relay thread 3" in found["silence"].observed
    assert "restart it" in found["silence"].advice


def test_sources_of_other_machines_are_judged_by_the_books(books: Books) -> None:
    settings_for(books)
    checkpoint_now(books)
    books.spool("other").checkpoint(wall_clock() - 3600 * 10**6)
    books.spool("gap").checkpoint(wall_clock())
    books.spool("gap").open_gap(wall_clock(), "disconnected")
    books.run_jobs()
    found = [one for one in check_flow(read_snapshot(books)) if one.check == "sources"]
    assert [(one.level, one.observed.split(":")[0]) for one in found] == [
        (Level.ERROR, "source 'gap'"),
        (Level.ERROR, "source 'other'"),
    ]
    assert "source retire other" in found[1].advice


def test_a_backlog_that_is_too_long_to_count_says_so(books: Books) -> None:
    settings_for(books)
    checkpoint_now(books)
    watch = read_snapshot(books)
    assert watch.spool is not None
    long = Backlog(messages=200_000, bytes=1, oldest_at=watch.taken_at)
    watch = replace(watch, spool=replace(watch.spool, backlog=long))
    found = by_check(check_spool(watch, probe_spool(watch)))
    assert found["backlog"].observed.startswith("at least 200,000 messages wait")


def test_with_nothing_there_each_missing_thing_is_one_error(books: Books) -> None:
    settings = settings_for(books)
    found = list(examine(settings, redis_url=None, database_url=None))
    assert [(one.component, one.check, one.level) for one in found] == [
        ("redis", "reachable", Level.ERROR),
        ("spool", "file", Level.WARNING),
        ("postgres", "reachable", Level.ERROR),
    ]
    assert all(one.advice for one in found)


def run_doctor(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "accounting", "doctor", *arguments],
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_ends_with_0_when_nothing_must_be_mended(tmp_path: Path) -> None:
    """And gives one object a line, all of them with the same names."""
    with PostgresServer(fsync=True) as server, ValkeyServer({"tcp-keepalive": "60"}) as valkey:
        engine = open_engine(server.url())
        migrations.upgrade(engine)
        migrations.allow_role_logins(engine)
        make_partitions(engine)
        engine.dispose()
        with Spool.open(spool_path(tmp_path, "default"), "default") as spool:
            spool.checkpoint(wall_clock())
            environment = {
                "ACCOUNTING_DATABASE_URL": server.url(WRITER),
                "ACCOUNTING_REDIS_URL": valkey.url,
                "ACCOUNTING_DATA_DIR": str(tmp_path),
            }
            done = run_doctor(environment, "--json")
    found: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert {tuple(one) for one in found} == {("level", "subject", "check", "seen", "advice")}
    assert [one["check"] for one in found if one["level"] != "ok"] == ["arrival"]
    assert done.returncode == 0
    assert done.stderr == ""


def test_the_command_ends_with_1_and_no_secret_when_something_must(books: Books) -> None:
    settings = settings_for(books)
    environment = {
        "ACCOUNTING_DATABASE_URL": f"postgresql://me:hunter2@127.0.0.1:{free_port()}/x",
        "ACCOUNTING_REDIS_URL": f"redis://:hunter2@127.0.0.1:{free_port()}/0",
        "ACCOUNTING_DATA_DIR": str(settings.data_dir),
    }
    done = run_doctor(environment)
    assert done.returncode == 1
    assert "hunter2" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("error    redis: reachable")
    assert lines[1].lstrip().startswith("-> ")
    assert any(line.startswith("error    postgres: reachable") for line in lines)
