"""`/healthz` and `turn-accounting health` say in words what is wrong, and nothing else."""

import http.client
import json
from dataclasses import replace
from typing import Any

import pytest

from accounting.capture.clock import wall_clock
from accounting.config import Settings
from accounting.db.engine import Engine
from accounting.errors import ConfigurationError
from accounting.ingest.source_lease import lease_holder
from accounting.ops.monitoring.health import Health, evaluate, format_duration
from accounting.ops.monitoring.server import serve
from accounting.ops.monitoring.snapshot import Snapshot
from accounting.ops.registry import JOBS
from accounting.ops.scheduler import run_job
from accounting.sources import lease_queries
from tests.support.books import Books, channel, status_payload
from tests.support.monitoring import (
    checkpoint_now,
    parse_metrics,
    read_snapshot,
    settings_for,
    snapshot_reader,
)
from tests.support.servers import free_port

MINUTE = 60_000_000


def troubles(books: Books, url: str | None = None, *, captures: bool = True) -> tuple[str, ...]:
    return evaluate(read_snapshot(books, url), captures=captures).problems


def watched(books: Books) -> None:
    """A service that captures, loads and settles now."""
    settings_for(books)
    checkpoint_now(books)
    books.run_jobs()


def test_all_is_well(books: Books) -> None:
    watched(books)
    assert evaluate(read_snapshot(books), captures=True) == Health(problems=())


def test_nothing_captured_yet_is_wrong_only_where_something_should_be(books: Books) -> None:
    settings_for(books)
    assert troubles(books) == (
        "source 'default': nothing was captured yet, Redis was never reached",
    )
    assert troubles(books, captures=False) == ()


def test_an_open_gap_is_told_with_its_age_and_cause(books: Books) -> None:
    watched(books)
    books.spool().open_gap(wall_clock() - 5 * MINUTE, "redis_unreachable", "connection refused")
    assert troubles(books) == (
        (
            "source 'default': not capturing for 5 min, a gap is open "
            "(redis_unreachable: connection refused)"
        ),
    )


def test_a_collector_that_hangs_is_wrong_without_a_gap(books: Books) -> None:
    settings_for(books)
    books.spool().checkpoint(wall_clock() - 10 * MINUTE)
    books.run_jobs()
    (trouble,) = troubles(books)
    assert trouble.startswith("source 'default': not capturing for 10 min")


def test_a_full_disk_is_told_before_and_after_it_stops_capture(books: Books) -> None:
    watched(books)
    full = replace(read_snapshot(books), disk_free_bytes=3 * 10**6)
    (trouble,) = evaluate(full, captures=True).problems
    assert "disk has 3 MB left" in trouble
    assert evaluate(full, captures=False).problems == ()


def test_a_standby_is_well(books: Books) -> None:
    """It captures nothing while another machine does."""
    settings_for(books)
    checkpoint_now(books)
    books.run_jobs()
    books.spool().open_gap(wall_clock(), "disconnected")
    with books.engine.begin() as connection:
        lease_queries.release(connection, 1, lease_holder(books.spool().path))
        lease_queries.acquire(connection, 1, holder="x", host="one.example", lease_seconds=60)
    assert troubles(books) == ()


def test_settling_that_lags_behind_capture_is_wrong(books: Books) -> None:
    settings_for(books)
    books.spool().checkpoint(wall_clock() - 10 * MINUTE)
    books.run_jobs()
    checkpoint_now(books)
    books.load()
    (trouble,) = troubles(books)
    assert trouble == "source 'default': settling is 10 min behind"


def test_a_source_that_is_not_captured_is_not_a_lag_of_settling(books: Books) -> None:
    settings_for(books)
    books.spool("other").checkpoint(wall_clock() - 10 * MINUTE)
    checkpoint_now(books)
    books.run_jobs()
    assert troubles(books) == ()


def test_a_job_that_fails_again_and_again_is_wrong(books: Books) -> None:
    def fail(_engine: Engine) -> int:
        raise ZeroDivisionError("of alice")

    watched(books)
    job = replace(JOBS["settle"], run=fail)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            run_job(job, books.engine)
    assert troubles(books) == (
        "job settle failed 3 times in a row (ZeroDivisionError): see the scheduler's log",
    )
    run_job(replace(job, run=lambda _: 1), books.engine)
    assert troubles(books) == ()


def test_a_lost_database_is_told_without_its_password(books: Books) -> None:
    watched(books)
    url = f"postgresql://nobody:hunter2@127.0.0.1:{free_port()}/none"
    (trouble,) = troubles(books, url)
    assert trouble.startswith("Postgres: ")
    assert "hunter2" not in trouble


def test_a_database_of_another_revision_is_told(books: Books) -> None:
    watched(books)
    (trouble,) = troubles(books, books.server.url())
    assert "run `turn-accounting db upgrade`" in trouble


def test_silence_is_a_suspicion_and_no_trouble(books: Books) -> None:
    """Restarting this service would not help: whoever restarts it on 503 must not."""
    settings_for(books)
    for number in (1, 2):
        books.receive(
            0,
            channel("status", allocation=3 * 10**15 + number),
            status_payload("new", local="[::1]:3478"),
        )
    books.advance_clock(1500)
    books.run_jobs()
    found = read_snapshot(books)
    health = evaluate(found, captures=False)
    assert health.problems == ()
    (suspicion,) = health.warnings
    assert suspicion.startswith(
        "coturn [::1] (source 'default', database 0): relay thread 3 silent for"
    )
    assert "2 allocations ran out unheard" in suspicion


def test_lengths_of_time_are_in_their_largest_unit() -> None:
    said = [
        format_duration(seconds) for seconds in (-1, 0, 119, 120, 7_199, 7_200, 172_799, 172_800)
    ]
    assert said == ["0 s", "0 s", "119 s", "2 min", "120 min", "2 h", "48 h", "2 d"]


def ask(port: int, path: str, method: str = "GET") -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path)
    answer = connection.getresponse()
    return answer.status, answer.headers["Content-Type"], answer.read().decode()


def well(_watch: Snapshot) -> Health:
    return Health(problems=(), warnings=("hm",))


def unwell(_watch: Snapshot) -> Health:
    return Health(problems=("this is wrong", "and that"))


def test_the_server_answers_for_metrics_and_health(books: Books) -> None:
    watched(books)
    port = free_port()
    with snapshot_reader(books) as watcher, serve(f"127.0.0.1:{port}", watcher.read, well):
        code, kind, body = ask(port, "/metrics?x=1")
        assert (code, kind.split(";")[0]) == (200, "text/plain")
        assert parse_metrics(body)["turn_accounting_database_up",] == 1
        code, kind, body = ask(port, "/healthz")
        assert (code, kind) == (200, "application/json")
        assert json.loads(body) == {"status": "ok", "suspicions": ["hm"]}
        assert ask(port, "/healthz", "HEAD")[::2] == (200, "")
        assert ask(port, "/")[0] == 404


def test_what_is_wrong_is_answered_with_503_and_words(books: Books) -> None:
    watched(books)
    port = free_port()
    with snapshot_reader(books) as watcher, serve(f"127.0.0.1:{port}", watcher.read, unwell):
        code, _, body = ask(port, "/healthz")
    assert code == 503
    assert json.loads(body) == {"status": "failing", "troubles": ["this is wrong", "and that"]}


def test_an_address_that_is_taken_is_told_by_the_settings_name(books: Books) -> None:
    listen = f"127.0.0.1:{free_port()}"
    with (
        snapshot_reader(books) as watcher,
        serve(listen, watcher.read, well),
        pytest.raises(ConfigurationError, match="ACCOUNTING_METRICS_LISTEN='127"),
        serve(listen, watcher.read, well),
    ):
        pass


@pytest.mark.parametrize(
    ("value", "kept"),
    [("127.0.0.1:9464", "127.0.0.1:9464"), ("[::1]:9464", "[::1]:9464"), ("off", None)],
)
def test_an_address_to_listen_at_is_taken(value: str, kept: str | None) -> None:
    assert Settings(metrics_listen=value).metrics_listen == kept


@pytest.mark.parametrize("value", ["9464", ":9464", "host", "host:0", "host:x", "a:1/x", "::1:2:3"])
def test_what_is_no_address_to_listen_at_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="expected an address and a port"):
        Settings(metrics_listen=value)
