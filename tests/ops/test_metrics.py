"""Metrics cover all stages, have no username, and work without the database."""

import os
import re
import signal
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from math import inf

import pytest

from accounting.capture.clock import steady_clock, this_boot, wall_clock
from accounting.capture.spool.status import read_status
from accounting.db.engine import Engine
from accounting.db.queries import Queries
from accounting.db.schema.limits import REALM_KEY
from accounting.ingest.source_lease import lease_holder
from accounting.ops.doctor.findings import Level
from accounting.ops.doctor.flow import check_flow
from accounting.ops.monitoring.health import BURST_NAMES, is_burst_of_names
from accounting.ops.monitoring.status_queries import LimitStatus, RealmStatus
from accounting.ops.registry import JOBS
from accounting.ops.scheduler import run_job
from accounting.sources import lease_queries
from accounting.usage.limits.limit_rules import set_limit
from tests.support.books import Books, channel, status_payload, traffic_payload
from tests.support.monitoring import (
    checkpoint_now,
    metrics_of,
    read_snapshot,
    set_clock_offset,
    settings_for,
    snapshot_reader,
)
from tests.support.servers import PostgresServer, free_port


def unreachable_url() -> str:
    return f"postgresql://nobody@127.0.0.1:{free_port()}/none"


def receive_usage(books: Books) -> None:
    """A session, half of it from a total alone; a live one; unauthenticated traffic; nonsense."""
    books.start = datetime.now(UTC)
    books.receive(-40, channel("status", user="carol"), status_payload("new"))
    books.receive(-30, channel("traffic", user="carol"), traffic_payload(10, 1_000, 10, 1_000))
    books.receive(-20, channel("status", user="carol"), status_payload("deleted"))
    books.receive(
        -20, channel("total_traffic", user="carol"), traffic_payload(20, 2_000, 20, 2_000)
    )
    books.receive(-10, channel("status", user="dave", allocation=2), status_payload("new"))
    books.receive(
        -10, channel("traffic", user="mallory", allocation=3), traffic_payload(3, 300, 3, 33)
    )
    books.receive(-5, channel("traffic", user="mallory", allocation=4), b"nonsense")


def test_metrics_have_lags_counts_and_usage(books: Books) -> None:
    settings_for(books)
    receive_usage(books)
    checkpoint_now(books)
    books.run_jobs()
    samples = metrics_of(read_snapshot(books))
    for stage in ("captured", "loaded", "settled"):
        assert 0 <= samples[f"turn_accounting_{stage}_lag_seconds", "default"] < 30
    expected = {
        ("turn_accounting_database_up",): 1,
        ("turn_accounting_spool_up", "default"): 1,
        ("turn_accounting_capture_gap_open", "default"): 0,
        ("turn_accounting_silent_relay_threads", "default"): 0,
        ("turn_accounting_loaded_reports_total", "default"): 6,
        ("turn_accounting_rejected_messages_total", "not four traffic counters", "default"): 1,
        ("turn_accounting_live_sessions", "example.org"): 1,
        ("turn_accounting_day_used_bytes", "example.org"): 4_000,
        ("turn_accounting_day_estimated_ratio", "example.org"): 1,
        ("turn_accounting_day_unattributed_bytes", "example.org"): 333,
        ("turn_accounting_day_unattributed_names", "example.org"): 1,
        ("turn_accounting_hour_new_unattributed_names", "example.org"): 0,
        ("turn_accounting_touched_hours",): 0,
        ("turn_accounting_spool_unloaded_messages", "default"): 0,
        ("turn_accounting_spool_oldest_unloaded_seconds", "default"): 0,
    }
    assert {name: samples.get(name) for name in expected} == expected
    received = samples["turn_accounting_last_received_timestamp_seconds", "default"]
    assert received == pytest.approx(books.start.timestamp() - 5, abs=0.01)


def receive_names(books: Books, at: float, user: str, count: int) -> None:
    """Receive traffic under so many names."""
    for number in range(count):
        name = channel("traffic", user=f"{user}{number}", allocation=10)
        books.receive(at, name, traffic_payload(1, 10, 0, 0))


def test_a_burst_of_names_that_never_authenticated_is_a_warning(books: Books) -> None:
    """A name that goes on is not new."""
    settings_for(books)
    books.start = datetime.now(UTC)
    receive_names(books, -4 * 3600, "old", 3)
    receive_names(books, -702, "old", 3)
    receive_names(books, -701, "new", BURST_NAMES)
    checkpoint_now(books)
    books.run_jobs()
    samples = metrics_of(read_snapshot(books))
    assert samples["turn_accounting_day_unattributed_names", "example.org"] == 103
    assert samples["turn_accounting_hour_new_unattributed_names", "example.org"] == BURST_NAMES
    [finding] = [one for one in check_flow(read_snapshot(books)) if one.check == "failed-clients"]
    assert (finding.level, finding.observed) == (
        Level.WARNING,
        ("realm 'example.org': 100 names that never authenticated came in an hour, 103 in 24 h"),
    )


def test_sessions_from_before_capture_are_no_burst_until_they_are_refreshed(books: Books) -> None:
    """A collector that starts on a running server first gets traffic that nothing confirms yet."""
    settings_for(books)
    books.start = datetime.now(UTC)
    receive_names(books, -300, "live", BURST_NAMES)
    receive_names(books, -1, "live", BURST_NAMES)
    checkpoint_now(books)
    books.run_jobs()
    [finding] = [one for one in check_flow(read_snapshot(books)) if one.check == "failed-clients"]
    assert (finding.level, finding.observed) == (
        Level.OK,
        "2.0 kB of the last day are unattributed, under 100 names",
    )


@pytest.mark.parametrize(
    ("names", "new", "is_burst"),
    [(99, 99, False), (100, 100, True), (330, 100, True), (331, 100, False), (5_000, 2_000, True)],
)
def test_a_burst_is_ten_times_what_came_before(names: int, new: int, is_burst: bool) -> None:
    realm = RealmStatus(
        realm="r",
        live_sessions=0,
        used_bytes=0,
        estimated_bytes=0,
        unattributed_bytes=1,
        unattributed_names=names,
        new_unattributed_names=new,
    )
    assert is_burst_of_names(realm) is is_burst


def test_reached_limits_have_a_metric_by_realm(books: Books) -> None:
    """Of buckets that run now; a warning is not the limit, and a raised one is not reached."""
    settings_for(books)
    receive_usage(books)
    checkpoint_now(books)
    books.run_jobs()
    of_realm = ("turn_accounting_realm_limits_reached", "example.org", "100")
    of_users = ("turn_accounting_user_limits_reached", "example.org", "100")
    assert of_realm not in metrics_of(read_snapshot(books))
    limit = partial(set_limit, books.engine, "example.org", measure="bytes")
    limit(every_user=True, per="day", amount=100)
    limit(every_user=True, per="month", amount=10**9, warnings=[1])
    limit(user="carol", per="day", amount=4_001)
    limit(per="month", amount=4_000)
    samples = metrics_of(read_snapshot(books))
    assert samples[of_users] == 1
    assert samples[of_realm] == 1
    assert samples[of_users[0], "example.org", "1"] == 0
    limit(per="month", amount=8_000, warnings=[50])
    samples = metrics_of(read_snapshot(books))
    assert (samples[of_realm], samples[of_realm[0], "example.org", "50"]) == (0, 1)
    limit(per="month", amount=4_000)
    assert (of_realm[0], "example.org", "50") not in metrics_of(read_snapshot(books))
    [finding] = [one for one in check_flow(read_snapshot(books)) if one.check == "limits"]
    assert finding.observed == "4 limits of usage; reached now: by realms 1, by users 1"
    limit(per="month", amount=4_001)
    limit(user="carol", per="day", amount=4_000)
    samples = metrics_of(read_snapshot(books))
    assert samples[of_users] == 2
    assert samples[of_realm] == 0
    books.set_database_clock(datetime.now(UTC) + timedelta(days=40))
    assert metrics_of(read_snapshot(books))[of_users] == 0


def test_reached_limits_of_users_are_counted_beside_those_of_their_realm(books: Books) -> None:
    """Those of the realm don't use up what is counted of users, here one."""
    settings_for(books)
    receive_usage(books)
    checkpoint_now(books)
    books.run_jobs()
    for per in ("day", "month"):
        set_limit(books.engine, "example.org", measure="bytes", per=per, amount=1)
    set_limit(books.engine, "example.org", every_user=True, measure="bytes", per="day", amount=1)
    with books.engine.connect() as connection:
        statuses = connection.execute(
            Queries("accounting.ops").text("limit_statuses"), {"limit": 1, "realm_key": REALM_KEY}
        ).all()
    assert [LimitStatus(*status) for status in statuses] == [
        LimitStatus(realm="example.org", threshold=100, limits=3, realm_reached=2, users_reached=1)
    ]


def test_the_lag_of_a_stage_that_never_ran_is_infinite(books: Books) -> None:
    """Then an alert fires for a wrong Redis address, or a scheduler that was never started."""
    settings_for(books)
    books.spool()
    books.load()
    samples = metrics_of(read_snapshot(books))
    assert samples["turn_accounting_captured_lag_seconds", "default"] == inf
    assert samples["turn_accounting_settled_lag_seconds", "default"] == inf


def test_the_clock_of_a_collectors_machine_has_a_metric(books: Books) -> None:
    settings_for(books)
    books.spool("other").checkpoint(books.micros_at(0))
    checkpoint_now(books)
    books.run_jobs()
    set_clock_offset(books, -3600.5, source="other")
    set_clock_offset(books, 32 * 86_400.0)
    name = "turn_accounting_clock_offset_seconds"
    samples = metrics_of(read_snapshot(books))
    assert (samples[name, "default"], samples[name, "other"]) == (32 * 86_400, -3600.5)


def test_the_clock_of_this_machine_is_compared_without_the_database(books: Books) -> None:
    """With the spool's clock, which goes on as it was when the database was there."""
    settings_for(books)
    checkpoint_now(books)
    ahead = 3600 * 10**6
    offset = wall_clock() - ahead - steady_clock()
    books.spool().set_clock(this_boot(), offset, None)
    name = "turn_accounting_clock_offset_seconds"
    samples = metrics_of(read_snapshot(books, unreachable_url()))
    assert samples[name, "default"] == pytest.approx(3600, abs=1)
    books.spool().set_clock(this_boot(), offset, 1)
    assert (name, "default") not in metrics_of(read_snapshot(books, unreachable_url()))


def test_metrics_have_no_username(books: Books) -> None:
    settings_for(books)
    receive_usage(books)
    checkpoint_now(books)
    books.run_jobs()
    names = " ".join(" ".join(name) for name in metrics_of(read_snapshot(books)))
    assert not re.search("carol|dave|mallory", names)


def test_unloaded_messages_are_counted(books: Books) -> None:
    settings_for(books)
    receive_usage(books)
    samples = metrics_of(read_snapshot(books))
    assert samples["turn_accounting_spool_unloaded_messages", "default"] == 7
    assert samples["turn_accounting_spool_unloaded_bytes", "default"] > 7 * 60
    assert samples["turn_accounting_spool_oldest_unloaded_seconds", "default"] >= 40
    books.load()
    assert (
        metrics_of(read_snapshot(books))["turn_accounting_spool_unloaded_messages", "default"] == 0
    )


def test_without_the_database_the_spool_has_metrics(books: Books) -> None:
    settings_for(books)
    books.receive(0, channel("status"), status_payload("new"))
    checkpoint_now(books)
    samples = metrics_of(read_snapshot(books, unreachable_url()))
    assert samples["turn_accounting_database_up",] == 0
    assert 0 <= samples["turn_accounting_captured_lag_seconds", "default"] < 30
    assert samples["turn_accounting_spool_unloaded_messages", "default"] == 1
    assert ("turn_accounting_settled_lag_seconds", "default") not in samples


def test_a_hung_database_delays_a_snapshot_only_until_the_timeout(books: Books) -> None:
    settings_for(books)
    checkpoint_now(books)
    with PostgresServer() as server:
        url = server.url()
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with snapshot_reader(books, url, timeout_seconds=2) as reader:
                snapshot = reader.read()
                assert snapshot.database_error == "Postgres does not answer within 2 s"
                assert snapshot.spool is not None
                assert metrics_of(snapshot)["turn_accounting_database_up",] == 0
        finally:
            os.kill(server.pid, signal.SIGCONT)


def test_a_database_of_another_version_is_not_up(books: Books) -> None:
    samples = metrics_of(read_snapshot(books, books.server.url()))
    assert samples["turn_accounting_database_up",] == 0


def test_gaps_are_counted_by_cause_and_an_open_one_is_a_gauge(books: Books) -> None:
    settings_for(books)
    spool = books.spool()
    checkpoint_now(books)
    spool.close_gap(spool.open_gap(wall_clock() - 9_000_000, "disconnected"), wall_clock())
    spool.open_gap(wall_clock(), "redis_unreachable")
    books.load()
    samples = metrics_of(read_snapshot(books))
    assert samples["turn_accounting_capture_gaps_total", "disconnected", "default"] == 1
    assert samples["turn_accounting_capture_gaps_total", "redis_unreachable", "default"] == 1
    assert samples["turn_accounting_capture_gap_open", "default"] == 1


def test_job_metrics_have_the_last_success_and_the_failures(books: Books) -> None:
    def fail(_engine: Engine) -> int:
        raise ZeroDivisionError

    good = replace(JOBS["settle"], name="good", run=lambda _: 3)
    bad = replace(good, name="bad", run=fail)
    assert run_job(good, books.engine) == 3
    with pytest.raises(ZeroDivisionError):
        run_job(bad, books.engine)
    samples = metrics_of(read_snapshot(books))
    assert samples["turn_accounting_job_runs_total", "good"] == 1
    assert samples["turn_accounting_job_failures_total", "good"] == 0
    assert samples["turn_accounting_job_failures_total", "bad"] == 1
    success = samples["turn_accounting_job_last_success_timestamp_seconds", "good"]
    assert success == pytest.approx(wall_clock() / 1e6, abs=60)
    assert ("turn_accounting_job_last_success_timestamp_seconds", "bad") not in samples
    assert samples["turn_accounting_job_last_duration_seconds", "good"] < 1


def test_the_lease_has_its_host_as_a_label(books: Books) -> None:
    settings_for(books)
    checkpoint_now(books)
    books.load()
    with books.engine.begin() as connection:
        source_id = books.source_id()
        lease_queries.release(connection, source_id, lease_holder(books.spool().path))
        lease_queries.acquire(
            connection, source_id, holder="x", host="one.example", lease_seconds=60
        )
    assert (
        metrics_of(read_snapshot(books))["turn_accounting_lease_held", "one.example", "default"]
        == 1
    )


def test_reading_the_spool_status_writes_nothing_and_makes_no_spool(books: Books) -> None:
    settings = settings_for(books)
    assert read_status(settings.data_dir, "other") is None
    assert not any(books.directory.glob("other*"))
    checkpoint_now(books)
    before = books.spool().state()
    status = read_status(settings.data_dir, "default")
    assert status is not None
    assert status.state == before
