"""``/healthz`` and ``turn-accounting health`` report every problem, and only problems."""

import http.client
import json
import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from accounting.capture.clock import wall_clock
from accounting.config import Settings
from accounting.db.engine import Engine, lost_connections
from accounting.db.locks import lock
from accounting.errors import ConfigurationError, ConnectionLost, LockHeld
from accounting.ingest.source_lease import lease_holder
from accounting.ops.doctor.findings import Finding, Level
from accounting.ops.doctor.flow import check_flow
from accounting.ops.doctor.spool_file import check_spool, probe_spool
from accounting.ops.monitoring.health import Health, evaluate, format_duration
from accounting.ops.monitoring.server import serve
from accounting.ops.monitoring.snapshot import Snapshot
from accounting.ops.registry import JOBS
from accounting.ops.scheduler import run_job
from accounting.sources import lease_queries
from tests.support.books import Books, channel, status_payload
from tests.support.command import turn_accounting
from tests.support.monitoring import (
    checkpoint_now,
    metrics_of,
    parse_metrics,
    read_snapshot,
    set_clock_offset,
    settings_for,
    snapshot_reader,
)
from tests.support.servers import free_port

MINUTE = 60_000_000


def findings_of(books: Books) -> dict[str, Finding]:
    return {finding.check: finding for finding in check_flow(read_snapshot(books))}


def problems_of(books: Books, url: str | None = None, *, captures: bool = True) -> tuple[str, ...]:
    return evaluate(read_snapshot(books, url), captures=captures).problems


def keep_up(books: Books) -> None:
    """Capture, load and settle everything until now."""
    settings_for(books)
    checkpoint_now(books)
    books.run_jobs()


def test_a_service_that_keeps_up_is_healthy(books: Books) -> None:
    keep_up(books)
    assert evaluate(read_snapshot(books), captures=True) == Health(problems=())


def test_nothing_captured_yet_is_a_problem_only_where_this_machine_captures(books: Books) -> None:
    settings_for(books)
    assert problems_of(books) == (
        "source 'default': nothing was captured yet, Redis was never reached",
    )
    assert problems_of(books, captures=False) == ()


def test_an_open_gap_is_a_problem_with_its_age_and_cause(books: Books) -> None:
    keep_up(books)
    books.spool().open_gap(wall_clock() - 5 * MINUTE, "redis_unreachable", "connection refused")
    assert problems_of(books) == (
        (
            "source 'default': not capturing for 5 min, a gap is open "
            "(redis_unreachable: connection refused)"
        ),
    )


def test_gaps_of_the_last_day_are_a_warning_and_older_ones_only_a_finding(books: Books) -> None:
    """The first start of a source has none. What is open is a problem of its source."""
    keep_up(books)
    assert findings_of(books)["gaps"].observed == "none in 7 d"
    for minutes, lasted, cause in (
        (3 * 24 * 60, 120, "redis_restarted"),
        (90, 2, "disconnected"),
        (60, 3, "failover"),
    ):
        spool, now = books.spool(), wall_clock()
        spool.close_gap(
            spool.open_gap(now - minutes * MINUTE, cause), now - (minutes - lasted) * MINUTE
        )
        keep_up(books)
        gaps = findings_of(books)["gaps"]
        if cause == "redis_restarted":
            assert (gaps.level, gaps.observed) == (
                Level.OK,
                "1 in 7 d, 2 h in all, cause: Redis restarted",
            )
            assert evaluate(read_snapshot(books), captures=True) == Health(problems=())
    observed = (
        "2 in 24 h, 5 min in all, the longest: another Redis took over; "
        "3 in 7 d, 2 h in all, the longest: Redis restarted"
    )
    assert (gaps.level, gaps.observed) == (Level.WARNING, observed)
    assert evaluate(read_snapshot(books), captures=True) == Health(
        problems=(), warnings=(f"gaps: {observed}: see `turn-accounting gaps`",)
    )
    shown = turn_accounting(
        "health", source="default", database_url=books.url(), data_dir=str(books.directory)
    )
    assert f"turn-accounting: warning: gaps: {observed}: see `turn-accounting gaps`\n" in shown.err
    books.spool().open_gap(wall_clock(), "disconnected")
    books.load()
    assert findings_of(books)["gaps"].level is Level.WARNING
    assert findings_of(books)["gaps"].observed == f"open now: 'default'; {observed}"


def test_a_collector_that_hangs_is_a_problem_without_a_gap(books: Books) -> None:
    settings_for(books)
    books.spool().checkpoint(wall_clock() - 10 * MINUTE)
    books.run_jobs()
    (problem,) = problems_of(books)
    assert problem.startswith("source 'default': not capturing for 10 min")


def test_a_database_whose_clock_stepped_back_is_a_problem(books: Books) -> None:
    """Until it is there again, all that is received stands at one time."""
    keep_up(books)
    books.set_database_clock(ahead=timedelta(hours=3))
    books.spool().checkpoint(wall_clock() + 180 * MINUTE)
    books.run_jobs()
    (problem,) = problems_of(books)
    assert problem == (
        "Postgres: its clock stepped back by 3 h, and times stand still until it is there again: "
        "run `turn-accounting doctor`"
    )


def test_an_almost_full_disk_is_a_problem_only_where_this_machine_captures(books: Books) -> None:
    keep_up(books)
    full = replace(read_snapshot(books), disk_free_bytes=3 * 10**6)
    (problem,) = evaluate(full, captures=True).problems
    assert "disk has 3 MB left" in problem
    assert evaluate(full, captures=False).problems == ()


def test_a_standby_is_healthy(books: Books) -> None:
    """It captures nothing while another machine does, and its gap is open."""
    settings_for(books)
    checkpoint_now(books)
    books.run_jobs()
    books.spool().open_gap(wall_clock(), "disconnected")
    with books.engine.begin() as connection:
        source_id = books.source_id()
        lease_queries.release(connection, source_id, lease_holder(books.spool().path))
        lease_queries.acquire(
            connection, source_id, holder="x", host="one.example", lease_seconds=60
        )
    assert problems_of(books) == ()


def test_settling_far_behind_capture_is_a_problem(books: Books) -> None:
    settings_for(books)
    checkpoint_now(books)
    books.run_jobs()
    with psycopg.connect(books.url()) as connection:
        connection.execute(
            "UPDATE accounting.settle_watermarks"
            " SET settled_until = settled_until - interval '10 minutes'"
        )
    (problem,) = problems_of(books)
    assert problem == "source 'default': settling is 10 min behind"


def test_a_source_that_is_not_captured_does_not_count_as_lag_of_settling(books: Books) -> None:
    settings_for(books)
    books.spool("other").checkpoint(wall_clock() - 10 * MINUTE)
    checkpoint_now(books)
    books.run_jobs()
    assert problems_of(books) == ()


def test_a_job_that_fails_three_times_in_a_row_is_a_problem(books: Books) -> None:
    def fail(_engine: Engine) -> int:
        raise ZeroDivisionError("of alice")

    keep_up(books)
    job = replace(JOBS["settle"], run=fail)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            run_job(job, books.engine)
    assert problems_of(books) == (
        "job settle failed 3 times in a row (ZeroDivisionError): see the scheduler's log",
    )
    run_job(replace(job, run=lambda _: 1), books.engine)
    assert problems_of(books) == ()


def test_a_job_that_has_not_got_its_lock_for_minutes_is_a_problem(books: Books) -> None:
    keep_up(books)
    with books.engine.begin() as holder:
        lock(holder, "rollup")
        with pytest.raises(LockHeld):
            run_job(JOBS["rollup"], books.engine)
        assert problems_of(books) == ()  # another scheduler may be at work
        holder.exec_driver_sql(
            "UPDATE accounting.job_runs SET blocked_since = blocked_since - interval '6 min'"
        )
    with books.engine.begin() as holder:
        lock(holder, "rollup")
        with pytest.raises(LockHeld):
            run_job(JOBS["rollup"], books.engine)
        snapshot = read_snapshot(books)
        (problem,) = evaluate(snapshot, captures=True).problems
        assert re.match(
            r"job rollup has not run for 6 min: the lock 'rollup' is held for \d+ s by the "
            r"database session \d+ \(role turn_accounting_writer, ",
            problem,
        )
        (finding,) = [one for one in check_flow(snapshot) if one.check == "books"]
        assert (finding.level, finding.observed) == (Level.ERROR, problem)
        assert metrics_of(snapshot)["turn_accounting_job_blocked_seconds", "rollup"] > 300
    run_job(JOBS["rollup"], books.engine)
    assert problems_of(books) == ()
    assert metrics_of(read_snapshot(books))["turn_accounting_job_blocked_seconds", "rollup"] == 0


def test_a_job_that_the_server_refuses_memory_for_locks_is_a_problem(books: Books) -> None:
    """Any login can fill that memory, with advisory locks for example."""

    def refuse(engine: Engine) -> int:
        with lost_connections(), engine.begin() as connection:
            connection.exec_driver_sql(
                "DO $$ BEGIN RAISE 'out of shared memory' USING ERRCODE = '53200'; END $$"
            )
        return 0

    keep_up(books)
    job = replace(JOBS["settle"], run=refuse)
    for _ in range(3):
        with pytest.raises(ConnectionLost):
            run_job(job, books.engine)
    assert problems_of(books) == (
        "job settle failed 3 times in a row (OutOfMemory): see the scheduler's log",
    )


def test_an_unreachable_database_is_a_problem_without_its_password(books: Books) -> None:
    keep_up(books)
    url = f"postgresql://nobody:hunter2@127.0.0.1:{free_port()}/none"
    (problem,) = problems_of(books, url)
    assert problem.startswith("Postgres: ")
    assert "hunter2" not in problem


def test_a_database_of_another_revision_is_a_problem(books: Books) -> None:
    keep_up(books)
    (problem,) = problems_of(books, books.server.url())
    assert "run `turn-accounting db upgrade`" in problem


def test_a_silent_thread_is_a_warning_and_not_a_problem(books: Books) -> None:
    """A supervisor that restarts the service on 503 would not help: coturn is at fault."""
    settings_for(books)
    for number in (1, 2):
        books.receive(
            0,
            channel("status", allocation=3 * 10**15 + number),
            status_payload("new", local="[::1]:3478"),
        )
    books.advance_clock(1500)
    books.run_jobs()
    snapshot = read_snapshot(books)
    health = evaluate(snapshot, captures=False)
    assert health.problems == ()
    (warning,) = health.warnings
    assert warning.startswith(
        "coturn [::1] (source 'default', database 0): relay thread 3 silent for"
    )
    assert "2 allocations expired without a report" in warning


@pytest.mark.parametrize(
    ("ahead_seconds", "text"),
    [(32 * 86_400.0, "32 d ahead of"), (-3.25, "3.25 s behind"), (2.5, "2.50 s ahead of")],
)
def test_a_wrong_clock_of_a_collector_is_a_warning_and_a_finding(
    books: Books, ahead_seconds: float, text: str
) -> None:
    """Its times are corrected, so that a restart of the service would not help."""
    keep_up(books)
    set_clock_offset(books, ahead_seconds)
    snapshot = read_snapshot(books)
    health = evaluate(snapshot, captures=True)
    assert health.problems == ()
    sentence = f"source 'default': the clock of its collector's machine is {text} the database's"
    assert health.warnings == (f"{sentence}: set it by NTP",)
    finding = next(finding for finding in check_flow(snapshot) if finding.check == "clock")
    assert (finding.level, finding.observed) == (Level.WARNING, sentence)


def test_a_small_offset_of_a_collectors_clock_is_no_warning(books: Books) -> None:
    keep_up(books)
    set_clock_offset(books, 1.5)
    snapshot = read_snapshot(books)
    assert evaluate(snapshot, captures=True) == Health(problems=())
    finding = next(finding for finding in check_flow(snapshot) if finding.check == "clock")
    assert finding.level is Level.OK


def test_times_that_were_not_compared_with_the_databases_clock_are_a_finding(books: Books) -> None:
    keep_up(books)
    books.spool().set_clock("boot", 0, books.spool().state().newest_at)
    snapshot = read_snapshot(books)
    findings = check_spool(snapshot, probe_spool(snapshot))
    assert [finding.level for finding in findings if finding.check == "clock"] == [Level.WARNING]


def test_durations_are_in_their_largest_unit() -> None:
    durations = [
        format_duration(seconds) for seconds in (-1, 0, 119, 120, 7_199, 7_200, 172_799, 172_800)
    ]
    assert durations == ["0 s", "0 s", "119 s", "2 min", "120 min", "2 h", "48 h", "2 d"]


def request(port: int, path: str, method: str = "GET") -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path)
    answer = connection.getresponse()
    return answer.status, answer.headers["Content-Type"], answer.read().decode()


def evaluate_healthy(_snapshot: Snapshot) -> Health:
    return Health(problems=(), warnings=("hm",))


def evaluate_unhealthy(_snapshot: Snapshot) -> Health:
    return Health(problems=("this is wrong", "and that"))


def test_the_server_serves_metrics_and_health(books: Books) -> None:
    keep_up(books)
    port = free_port()
    with (
        snapshot_reader(books) as reader,
        serve(f"127.0.0.1:{port}", reader.read, evaluate_healthy),
    ):
        code, kind, body = request(port, "/metrics?x=1")
        assert (code, kind.split(";")[0]) == (200, "text/plain")
        assert parse_metrics(body)["turn_accounting_database_up",] == 1
        code, kind, body = request(port, "/healthz")
        assert (code, kind) == (200, "application/json")
        assert json.loads(body) == {"status": "ok", "suspicions": ["hm"]}
        assert request(port, "/healthz", "HEAD")[::2] == (200, "")
        assert request(port, "/")[0] == 404


def test_problems_are_a_503_with_their_texts(books: Books) -> None:
    keep_up(books)
    port = free_port()
    with (
        snapshot_reader(books) as reader,
        serve(f"127.0.0.1:{port}", reader.read, evaluate_unhealthy),
    ):
        code, _, body = request(port, "/healthz")
    assert code == 503
    assert json.loads(body) == {"status": "failing", "troubles": ["this is wrong", "and that"]}


def test_an_address_in_use_is_an_error_with_the_setting(books: Books) -> None:
    listen = f"127.0.0.1:{free_port()}"
    with (
        snapshot_reader(books) as reader,
        serve(listen, reader.read, evaluate_healthy),
        pytest.raises(ConfigurationError, match="ACCOUNTING_METRICS_LISTEN='127"),
        serve(listen, reader.read, evaluate_healthy),
    ):
        pass


@pytest.mark.parametrize(
    ("value", "kept"),
    [("127.0.0.1:9464", "127.0.0.1:9464"), ("[::1]:9464", "[::1]:9464"), ("off", None)],
)
def test_a_listen_address_is_valid(value: str, kept: str | None) -> None:
    assert Settings(metrics_listen=value).metrics_listen == kept


@pytest.mark.parametrize("value", ["9464", ":9464", "host", "host:0", "host:x", "a:1/x", "::1:2:3"])
def test_an_invalid_listen_address_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="expected an address and a port"):
        Settings(metrics_listen=value)
