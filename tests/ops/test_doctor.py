"""The findings of doctor on Postgres, the spool and the events, and the command's exit code."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from accounting.capture.clock import wall_clock
from accounting.capture.spool.file import spool_path
from accounting.capture.spool.spool import Spool
from accounting.capture.spool.status import Backlog
from accounting.db import migrations
from accounting.db.engine import open_engine
from accounting.db.revisions import head_revision
from accounting.domain.client_addresses import ClientAddresses
from accounting.identities.realm_rules import set_rule
from accounting.ingest.partitions import make_partitions
from accounting.ops.doctor import Level, examine
from accounting.ops.doctor.client_addresses import check_client_addresses
from accounting.ops.doctor.clock import check_database_clock
from accounting.ops.doctor.findings import Finding
from accounting.ops.doctor.flow import check_flow
from accounting.ops.doctor.postgres_facts import (
    Login,
    PostgresFacts,
    read_database_clock,
    read_postgres_facts,
)
from accounting.ops.doctor.postgres_server import check_postgres
from accounting.ops.doctor.spool_file import check_spool, probe_spool
from tests.support.books import READER, WRITER, Books, channel, status_payload
from tests.support.monitoring import checkpoint_now, read_snapshot, settings_for
from tests.support.servers import PostgresServer, ValkeyServer, free_port

GOOD_FACTS: Final = PostgresFacts(
    version=160_004,
    encoding="UTF8",
    in_recovery=False,
    login=Login(name="service"),
    revision=head_revision(),
    settings={"fsync": "on", "full_page_writes": "on", "synchronous_commit": "local"},
)


def check(facts: PostgresFacts, free: int | None = None) -> dict[str, Finding]:
    return findings_by_check(check_postgres(facts, head=head_revision(), disk_free_bytes=free))


def findings_by_check(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def levels_of(findings: Mapping[str, Finding]) -> dict[str, Level]:
    return {
        check: finding.level for check, finding in findings.items() if finding.level is not Level.OK
    }


def test_a_good_database_has_no_findings() -> None:
    assert levels_of(check(GOOD_FACTS, 10**12)) == {}


def test_a_database_that_loses_data_or_is_unusable_is_an_error() -> None:
    error = Level.ERROR
    assert levels_of(check(replace(GOOD_FACTS, version=140_010))) == {"version": error}
    assert levels_of(check(replace(GOOD_FACTS, encoding="LATIN1"))) == {"encoding": error}
    assert levels_of(check(replace(GOOD_FACTS, in_recovery=True))) == {"writable": error}
    assert levels_of(check(replace(GOOD_FACTS, read_only=True))) == {"writable": error}
    assert levels_of(check(replace(GOOD_FACTS, revision=None))) == {"schema": error}
    assert levels_of(check(replace(GOOD_FACTS, missing_roles=("turn_accounting_reader",)))) == {
        "roles": error
    }
    for name in GOOD_FACTS.settings:
        off = replace(GOOD_FACTS, settings={**GOOD_FACTS.settings, name: "off"})
        assert levels_of(check(off)) == {"durable": error}, name
    assert levels_of(check(GOOD_FACTS, 10**8)) == {"disk": error}


def test_a_database_with_a_future_problem_is_a_warning() -> None:
    warning = Level.WARNING
    assert levels_of(check(GOOD_FACTS, 10**9)) == {"disk": warning}
    assert levels_of(check(replace(GOOD_FACTS, days_without_partition=(date(2026, 11, 22),)))) == {
        "partitions": warning
    }
    assert levels_of(check(replace(GOOD_FACTS, excess_privileges=("x: SELECT",)))) == {
        "rights": warning
    }


def test_a_migrated_database_has_all_privileges_and_partitions(books: Books) -> None:
    make_partitions(books.engine)
    facts = read_postgres_facts(books.engine, head=head_revision())
    findings = check(facts)
    # The tests' server runs without fsync.
    assert levels_of(findings) == {"durable": Level.ERROR}
    assert facts.version > 150_000
    assert facts.login.is_writer
    assert not facts.login.is_superuser
    assert facts.size_bytes > 10**6


OWNER: Final = "doctor_owner"
MAY_CHANGE: Final = "may change reports and the schema"
STRANGER: Final = "doctor_stranger"
ONLY_THE_WRITER: Final = (
    "which is right for reports; schema, grants, jobs and sources can only be checked by a login "
    "with the role turn_accounting_writer"
)
OWNER_ADVICE: Final = (
    "for the service, set ACCOUNTING_DATABASE_URL to a login with the role turn_accounting_writer; "
    "it needs no more. Keep this one for `turn-accounting db upgrade`"
)


def drop_roles(books: Books, *names: str) -> None:
    with psycopg.connect(books.url(), autocommit=True) as connection:
        for name in names:
            connection.execute(f"DROP ROLE {name}".encode())


def test_doctor_says_what_is_stored_of_addresses(books: Books) -> None:
    """Of setting and realm the stricter one; realms by name, those that the setting decides not."""
    for realm, kept in (("a", "network"), ("b", "drop"), ("c", "keep"), ("d", "network")):
        set_rule(
            books.engine, realm, {}, default=books.rule, holds_from=None,
            client_addresses=ClientAddresses(kept),
        )  # fmt: skip
    found = {kept: check_client_addresses(books.engine, kept).observed for kept in ClientAddresses}
    assert found == {
        "keep": "of each client address and port (ACCOUNTING_CLIENT_ADDRESSES=keep); "
        "of 'a', 'd' the network; of 'b' nothing",
        "network": "of each client the network (ACCOUNTING_CLIENT_ADDRESSES=network); "
        "of 'b' nothing",
        "drop": "of each client nothing (ACCOUNTING_CLIENT_ADDRESSES=drop)",
    }


def test_doctor_says_what_is_true_of_its_login(
    books: Books, request: pytest.FixtureRequest
) -> None:
    make_partitions(books.engine)
    settings = settings_for(books)
    with psycopg.connect(books.url(), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {STRANGER} LOGIN".encode())
        connection.execute(f"CREATE ROLE {OWNER} LOGIN IN ROLE turn_accounting_owner".encode())
    request.addfinalizer(lambda: drop_roles(books, STRANGER, OWNER))
    findings = {
        role: [
            finding
            for finding in examine(settings, redis_url=None, database_url=books.url(role))
            if finding.component == "postgres" and finding.check in ("login", "rights", "schema")
        ]
        for role in (WRITER, READER, "postgres", OWNER, STRANGER)
    }
    assert [finding.observed for finding in findings[WRITER]] == [
        "turn_accounting_writer has the rights of the service",
        f"at revision {head_revision()}",
        "each role has exactly its own",
    ]
    assert [(finding.level, finding.observed) for finding in findings[READER]] == [
        (
            Level.OK,
            f"turn_accounting_reader reads the views and nothing else, {ONLY_THE_WRITER}",
        )
    ]
    superuser, *others = findings["postgres"]
    assert (superuser.level, superuser.advice) == (Level.WARNING, OWNER_ADVICE)
    assert superuser.observed == f"postgres is a superuser, which {MAY_CHANGE}"
    assert [finding.level for finding in others] == [Level.OK, Level.OK]
    owner, *others = findings[OWNER]
    assert (owner.level, owner.advice) == (Level.WARNING, OWNER_ADVICE)
    assert owner.observed == f"{OWNER} is the owner of the books, which {MAY_CHANGE}"
    assert [finding.level for finding in others] == [Level.OK, Level.OK]
    [stranger] = findings[STRANGER]
    assert (stranger.level, stranger.observed) == (
        Level.ERROR,
        f"{STRANGER} has none of the roles",
    )


def test_missing_and_excess_privileges_and_missing_partitions_are_found(books: Books) -> None:
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


def spool_findings(books: Books) -> dict[str, Finding]:
    snapshot = read_snapshot(books)
    return findings_by_check(check_spool(snapshot, probe_spool(snapshot)))


def test_a_missing_readable_or_unloaded_spool_is_a_warning(books: Books) -> None:
    settings_for(books)
    assert levels_of(spool_findings(books)) == {"file": Level.WARNING}
    books.start = datetime.now(UTC)
    books.receive(-100, channel("status"), status_payload("new"))
    checkpoint_now(books)
    findings = spool_findings(books)
    assert levels_of(findings) == {"backlog": Level.WARNING}
    assert findings["backlog"].observed.startswith("1 message not loaded yet, the first for")
    books.load()
    assert levels_of(spool_findings(books)) == {}
    books.spool().path.chmod(0o644)
    assert levels_of(spool_findings(books)) == {"file": Level.WARNING}


def test_a_disk_low_on_space_is_a_warning_and_a_full_one_an_error(books: Books) -> None:
    settings_for(books)
    checkpoint_now(books)
    snapshot = read_snapshot(books)
    for free, level in ((10**12, None), (5 * 10**8, Level.WARNING), (10**7, Level.ERROR)):
        findings = findings_by_check(
            check_spool(replace(snapshot, disk_free_bytes=free), probe_spool(snapshot))
        )
        assert levels_of(findings).get("disk") == level


def test_a_damaged_spool_is_an_error(books: Books) -> None:
    settings_for(books)
    books.directory.joinpath("default.sqlite3").write_bytes(b"no database" * 1000)
    findings = spool_findings(books)
    assert levels_of(findings) == {"file": Level.ERROR}
    assert findings["file"].advice.startswith("the file is damaged")


def flow_findings(books: Books) -> dict[str, Finding]:
    return findings_by_check(check_flow(read_snapshot(books)))


def test_events_that_reach_the_books_have_no_findings(books: Books) -> None:
    settings_for(books)
    books.start = datetime.now(UTC)
    books.receive(-1, channel("status"), status_payload("new"))
    checkpoint_now(books)
    books.run_jobs()
    assert levels_of(flow_findings(books)) == {}


def test_no_event_ever_is_a_warning_that_advises_redis_statsdb(books: Books) -> None:
    settings_for(books)
    checkpoint_now(books)
    books.run_jobs()
    findings = flow_findings(books)
    assert levels_of(findings) == {"arrival": Level.WARNING}
    assert "redis-statsdb" in findings["arrival"].advice


def test_no_event_for_hours_is_a_warning(books: Books) -> None:
    settings_for(books)
    books.start = datetime.now(UTC)
    books.receive(-7_300, channel("status"), status_payload("new"))
    books.receive(-7_300, channel("status"), status_payload("deleted"))
    checkpoint_now(books)
    books.run_jobs()
    findings = flow_findings(books)
    assert levels_of(findings) == {"arrival": Level.WARNING}
    assert findings["arrival"].observed == "the last event arrived 2 h ago"


def test_many_rejected_messages_are_a_warning(books: Books) -> None:
    settings_for(books)
    books.start = datetime.now(UTC)
    books.receive(-2, channel("status"), status_payload("new"))
    books.receive(-1, channel("traffic"), b"nonsense")
    checkpoint_now(books)
    books.run_jobs()
    findings = flow_findings(books)
    assert levels_of(findings) == {"rejected": Level.WARNING}
    assert findings["rejected"].observed == "rejected: 1 of 2 messages"


def test_a_silent_thread_is_a_warning_with_advice(books: Books) -> None:
    settings_for(books)
    books.start = datetime.now(UTC)
    books.receive(-1500, channel("status", allocation=3 * 10**15 + 1), status_payload("new"))
    checkpoint_now(books)
    books.run_jobs()
    findings = flow_findings(books)
    assert levels_of(findings) == {"silence": Level.WARNING}
    assert "relay thread 3" in findings["silence"].observed
    assert "restart it" in findings["silence"].advice


def test_sources_of_other_machines_are_checked_in_the_database(books: Books) -> None:
    settings_for(books)
    checkpoint_now(books)
    books.spool("other").checkpoint(wall_clock() - 3600 * 10**6)
    books.spool("gap").checkpoint(wall_clock())
    books.spool("gap").open_gap(wall_clock(), "disconnected")
    books.run_jobs()
    findings = [
        finding for finding in check_flow(read_snapshot(books)) if finding.check == "sources"
    ]
    assert [(finding.level, finding.observed.split(":")[0]) for finding in findings] == [
        (Level.ERROR, "source 'gap'"),
        (Level.ERROR, "source 'other'"),
    ]
    assert "source retire other" in findings[1].advice


def test_a_backlog_beyond_the_count_limit_says_at_least(books: Books) -> None:
    settings_for(books)
    checkpoint_now(books)
    snapshot = read_snapshot(books)
    assert snapshot.spool is not None
    long = Backlog(messages=200_000, bytes=1, oldest_at=snapshot.taken_at)
    snapshot = replace(snapshot, spool=replace(snapshot.spool, backlog=long))
    findings = findings_by_check(check_spool(snapshot, probe_spool(snapshot)))
    assert findings["backlog"].observed.startswith("at least 200,000 messages not loaded yet")


def test_each_missing_server_is_one_error(books: Books) -> None:
    settings = settings_for(books)
    findings = list(examine(settings, redis_url=None, database_url=None))
    assert [(finding.component, finding.check, finding.level) for finding in findings] == [
        ("redis", "reachable", Level.ERROR),
        ("spool", "file", Level.WARNING),
        ("postgres", "reachable", Level.ERROR),
    ]
    assert all(finding.advice for finding in findings)


def run_doctor(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "accounting", "doctor", *arguments],
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_exits_with_0_without_errors(tmp_path: Path) -> None:
    """With --json it writes one object per line, all with the same keys."""
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
            result = run_doctor(environment, "--json")
    findings: list[dict[str, Any]] = [json.loads(line) for line in result.stdout.splitlines()]
    assert {tuple(finding) for finding in findings} == {
        ("level", "subject", "check", "seen", "advice")
    }
    assert [finding["check"] for finding in findings if finding["level"] != "ok"] == ["arrival"]
    assert result.returncode == 0
    assert result.stderr == ""


def test_the_command_exits_with_1_and_shows_no_secret(books: Books) -> None:
    settings = settings_for(books)
    environment = {
        "ACCOUNTING_DATABASE_URL": f"postgresql://me:hunter2@127.0.0.1:{free_port()}/x",
        "ACCOUNTING_REDIS_URL": f"redis://:hunter2@127.0.0.1:{free_port()}/0",
        "ACCOUNTING_DATA_DIR": str(settings.data_dir),
    }
    result = run_doctor(environment)
    assert result.returncode == 1
    assert "hunter2" not in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("error    redis: reachable")
    assert lines[1].lstrip().startswith("-> ")
    assert any(line.startswith("error    postgres: reachable") for line in lines)


def clock_findings(books: Books, *collectors_ahead_seconds: float) -> list[tuple[Level, str]]:
    clock = read_database_clock(books.engine)
    return [
        (finding.level, finding.observed)
        for finding in check_database_clock(clock, collectors_ahead_seconds)
    ]


def test_a_database_clock_that_stepped_is_found_by_the_rows_it_wrote(books: Books) -> None:
    assert clock_findings(books) == []
    books.receive(0, channel("status"), status_payload("new"))
    books.advance_clock(60)
    books.load()
    assert clock_findings(books) == []
    books.set_database_clock(books.start - timedelta(days=3))
    [(level, observed)] = clock_findings(books)
    assert level == Level.ERROR
    assert observed == (
        "it stepped back by 3 d: it shows 2026-10-30 12:00:00Z, "
        "the newest row is of 2026-11-02 12:01:00Z"
    )
    books.set_database_clock(books.start + timedelta(days=32))
    [(level, observed)] = clock_findings(books)
    assert level == Level.WARNING
    assert observed.endswith("the newest row is of 2026-11-02 12:01:00Z, 32 d before")


def test_a_database_clock_that_differs_from_all_collectors_is_wrong(books: Books) -> None:
    assert clock_findings(books, -3600.0, -3600.5) == [
        (Level.ERROR, "it is 60 min ahead of the clocks of all 2 collectors, which agree")
    ]
    assert clock_findings(books, 90.0, 90.5, 91.0)[0][1].startswith("it is 90 s behind")
    for collectors in ((), (-3600.0,), (-3600.0, 0.0), (-3600.0, 3600.0), (1.0, 1.0)):
        assert clock_findings(books, *collectors) == []
