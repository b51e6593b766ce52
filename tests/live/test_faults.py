"""Faults of a running service: killed processes, a stopped Postgres, failing jobs, bursts.

All tests share one service. Each publishes under its own username and leaves the service running.
"""

import itertools
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import psycopg
import pytest

from accounting.capture.spool.file import spool_path
from accounting.capture.spool.status import read_status
from accounting.domain.text_escaping import escape
from accounting.simulator import Scenario
from accounting.simulator.publisher import run
from tests.support.books import Books, cloned_database, make_template, sum_counters
from tests.support.servers import PostgresServer, ValkeyServer
from tests.support.service import Service
from tests.support.turn_traffic import (
    NumberPublisher,
    assert_losses_have_gaps,
    hourly_received_bytes,
    loaded_numbers,
    publish_burst,
    publish_new,
)

BURST: Final = 200_000


@dataclass(frozen=True, slots=True)
class RunningService:
    """``up`` with its own Postgres and Valkey."""

    postgres: PostgresServer
    valkey: ValkeyServer
    up: Service
    books: Books

    def execute(self, *statements: str) -> None:
        """Run statements as the superuser, in one transaction."""
        with psycopg.connect(self.books.url()) as connection:
            for statement in statements:
                connection.execute(statement)

    def backlog_messages(self) -> int:
        status = read_status(self.up.data_dir, "default")
        assert status is not None
        return status.backlog.messages

    def gaps(self) -> list[dict[str, Any]]:
        return self.books.rows("capture_gaps")

    def wait_until_billed(self, user: str, count: int) -> None:
        """Return once the hours of a user have so many received bytes."""
        self.up.wait_for(lambda: hourly_received_bytes(self.books, user) == count)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with PostgresServer() as postgres, ValkeyServer() as valkey:
        make_template(postgres)
        directory = tmp_path_factory.mktemp("service")
        with cloned_database(postgres) as name:
            books = Books(postgres, name, directory)
            settings = {
                "ACCOUNTING_DATABASE_URL": books.url(),
                "ACCOUNTING_REDIS_URL": valkey.url,
            }
            with Service("up", directory / "data", settings) as up:
                up.wait_until_capturing()
                running = RunningService(postgres, valkey, up, books)
                # Wait for all child processes: one that is starting is not affected by a fault.
                publish_new(valkey, "setup")
                publish_burst(valkey, "setup", 1)
                running.wait_until_billed("setup", 1)
                yield running
                assert up.stop() == 0
            books.assert_conserved()
            books.close()


@pytest.mark.parametrize("part", ["load", "schedule"])
def test_a_killed_child_is_restarted_and_nothing_is_lost_or_doubled(
    service: RunningService, part: str
) -> None:
    gaps = [gap["gap_id"] for gap in service.gaps()]
    with NumberPublisher(service.valkey, f"kill-{part}") as numbers:
        numbers.wait_for_more(100)
        killed = service.up.wait_for_child(part)
        os.kill(killed, signal.SIGKILL)
        numbers.wait_for_more(100)
        service.up.wait_for_child(part, other_than=killed)
        sent = numbers.stop()
    service.wait_until_billed(f"kill-{part}", sum(sent))
    assert loaded_numbers(service.books, f"kill-{part}") == sorted(sent)
    assert [gap["gap_id"] for gap in service.gaps()] == gaps


def test_a_killed_collector_is_restarted_and_its_gap_holds_all_losses(
    service: RunningService,
) -> None:
    gaps = len(service.gaps())
    with NumberPublisher(service.valkey, "kill-collect") as numbers:
        numbers.wait_for_more(100)
        killed = service.up.wait_for_child("collect")
        os.kill(killed, signal.SIGKILL)
        service.up.wait_for_child("collect", other_than=killed)
        service.up.wait_for(lambda: [gap["to_at"] for gap in service.gaps()[gaps:] if gap["to_at"]])
        numbers.wait_for_more(100)
        sent = numbers.stop()
    kept = wait_until_loaded(service, "kill-collect", sent)
    lost = assert_losses_have_gaps(service.books, "kill-collect", sent)
    assert lost
    service.wait_until_billed("kill-collect", sum(kept))
    (gap,) = service.gaps()[gaps:]
    assert gap["cause"] == "collector_restarted"


def test_a_spool_deleted_in_use_is_a_new_epoch_and_a_gap_with_both_its_ends(
    service: RunningService,
) -> None:
    gaps = len(service.gaps())
    path = spool_path(service.up.data_dir, "default")
    with NumberPublisher(service.valkey, "no-spool") as numbers:
        service.up.wait_for(lambda: loaded_numbers(service.books, "no-spool"))
        for file in path.parent.glob(f"{path.name}*"):
            if not file.name.endswith(".lock"):
                file.unlink()
        service.up.wait_for(lambda: [gap["to_at"] for gap in service.gaps()[gaps:] if gap["to_at"]])
        numbers.wait_for_more(100)
        sent = numbers.stop()
    kept = wait_until_loaded(service, "no-spool", sent)
    assert assert_losses_have_gaps(service.books, "no-spool", sent)
    service.wait_until_billed("no-spool", sum(kept))
    (gap,) = service.gaps()[gaps:]
    assert gap["cause"] == "spool_lost"


def wait_until_loaded(
    service: RunningService, user: str, sent: dict[int, tuple[int, int]]
) -> list[int]:
    """A user's numbers, once the last one is loaded."""
    service.up.wait_for(lambda: loaded_numbers(service.books, user)[-1:] == [max(sent)])
    return loaded_numbers(service.books, user)


def test_a_killed_redis_is_a_gap_that_holds_all_that_was_lost(service: RunningService) -> None:
    gaps = len(service.gaps())
    with NumberPublisher(service.valkey, "kill-redis") as numbers:
        numbers.wait_for_more(100)
        service.valkey.kill()
        service.valkey.start()
        service.up.wait_for(lambda: [gap["to_at"] for gap in service.gaps()[gaps:] if gap["to_at"]])
        numbers.wait_for_more(100)
        sent = numbers.stop()
    kept = wait_until_loaded(service, "kill-redis", sent)
    assert_losses_have_gaps(service.books, "kill-redis", sent)
    service.wait_until_billed("kill-redis", sum(kept))
    (gap,) = service.gaps()[gaps:]
    assert gap["cause"] == "redis_restarted"


def test_while_postgres_is_away_the_spool_grows_and_then_loading_catches_up_by_itself(
    service: RunningService,
) -> None:
    gaps = service.gaps()
    parts = {part: service.up.wait_for_child(part) for part in ("collect", "load", "schedule")}
    with NumberPublisher(service.valkey, "no-postgres") as numbers:
        numbers.wait_for_more(100)
        service.postgres.kill()
        numbers.wait_for_more(200)
        service.up.wait_for(lambda: service.up.events("can't load now, trying again"))
        service.up.wait_for(lambda: service.backlog_messages() >= 150)
        service.postgres.start()
        numbers.wait_for_more(100)
        sent = numbers.stop()
    service.wait_until_billed("no-postgres", sum(sent))
    assert loaded_numbers(service.books, "no-postgres") == sorted(sent)
    assert service.gaps() == gaps
    assert {part: service.up.child_pid(part) for part in parts} == parts


def test_a_job_that_fails_is_logged_with_its_error_tried_again_and_stops_no_other(
    service: RunningService,
) -> None:
    def failures() -> list[dict[str, Any]]:
        events = service.up.events("job failed, trying again")
        return [event for event in events if event["job"] == "rollup"]

    def settled() -> int:
        rows = [row for row in service.books.rows("sessions") if row["user_id"] == "no-job"]
        return sum_counters(rows)["received_bytes"]

    publish_new(service.valkey, "no-job")
    service.execute("ALTER TABLE accounting.user_usage_hourly RENAME TO gone")
    publish_burst(service.valkey, "no-job", 10)
    service.up.wait_for(lambda: settled() == 55)
    service.up.wait_for(lambda: len(failures()) > 2)
    scheduler = service.up.child_pid("schedule")
    service.execute("ALTER TABLE accounting.gone RENAME TO user_usage_hourly")
    service.wait_until_billed("no-job", 55)
    assert all("UndefinedTable" in event["exception"] for event in failures())
    assert service.up.child_pid("schedule") == scheduler


CREATE_WATCH: Final = """
CREATE TABLE public.watched (
    job text,
    transaction bigint DEFAULT txid_current(),
    scheduler text DEFAULT coalesce(current_setting('watched.scheduler', true), 'first'),
    at timestamptz DEFAULT clock_timestamp()
);
CREATE FUNCTION public.watch() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO public.watched (job) VALUES (tg_argv[0]);
    PERFORM pg_sleep(0.02);
    INSERT INTO public.watched (job) VALUES (tg_argv[0]);
    RETURN NULL;
END
$$;
CREATE TRIGGER watch_first BEFORE DELETE ON accounting.usage_deltas
    FOR EACH STATEMENT EXECUTE FUNCTION public.watch('rollup');
CREATE TRIGGER watch_last AFTER INSERT ON accounting.realm_usage_monthly
    FOR EACH STATEMENT EXECUTE FUNCTION public.watch('rollup');
"""
DROP_WATCH: Final = """
DROP FUNCTION public.watch() CASCADE;
DROP TABLE public.watched;
"""


@pytest.mark.long
def test_two_schedulers_never_run_a_job_twice_at_once(service: RunningService) -> None:
    """Triggers record and slow down the first and the last statement of each roll-up."""
    publish_new(service.valkey, "two-schedulers")
    service.execute(CREATE_WATCH)
    url = f"{service.books.url()}&options=-c%20watched.scheduler%3Dsecond"
    settings = {"ACCOUNTING_DATABASE_URL": url}

    def runs() -> list[dict[str, Any]]:
        return service.books.query(
            "SELECT job, scheduler, min(at) AS began, max(at) AS ended FROM public.watched"
            " GROUP BY job, scheduler, transaction ORDER BY job, began"
        )

    with (
        Service("schedule", service.up.data_dir.with_name("second"), settings) as second,
        NumberPublisher(service.valkey, "two-schedulers") as numbers,
    ):
        second.wait_for(lambda: len({run["scheduler"] for run in runs()}) == 2)
        sent = numbers.stop()
        service.wait_until_billed("two-schedulers", sum(sent))
        assert second.stop() == 0
    seen = runs()
    service.execute(DROP_WATCH)
    for before, after in itertools.pairwise(seen):
        if before["job"] == after["job"]:
            assert before["ended"] < after["began"], (before, after)
    assert loaded_numbers(service.books, "two-schedulers") == sorted(sent)


@pytest.mark.parametrize("burst", [BURST // 4, pytest.param(BURST, marks=pytest.mark.long)])
def test_a_burst_is_loaded_completely_and_in_order(service: RunningService, burst: int) -> None:
    gaps = service.gaps()
    user = f"burst-{burst}"
    publish_new(service.valkey, user)
    publish_burst(service.valkey, user, burst)
    service.wait_until_billed(user, burst * (burst + 1) // 2)
    assert loaded_numbers(service.books, user) == list(range(1, burst + 1))
    assert service.gaps() == gaps


def test_a_simulated_fleet_with_every_hard_case_equals_its_oracle(service: RunningService) -> None:
    realms = ("fleet.example", "")
    scenario = Scenario(
        version="4.6",
        servers=3,
        users=30,
        realms=realms,
        sessions=900,
        duration_seconds=60.0,
        rate=0,
        lifetime_seconds=3600,
        restart=True,
        stolen=True,
        wrap=True,
        lost_totals=True,
        lost_interims=True,
        same_key=True,
        rest_usernames=True,
        rfc6062=True,
        hostile_usernames=True,
    )
    expected = run(scenario, service.valkey.url)
    usage = {
        (escape(realm), escape(user_id)): user
        for (realm, user_id), user in expected.by_user_id().items()
    }

    def rows(view: str) -> list[dict[str, Any]]:
        return [row for row in service.books.rows(view) if row["realm"] in realms]

    def sums(view: str, name: str) -> dict[tuple[str, str], tuple[int, ...]]:
        grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in rows(view):
            grouped.setdefault((row["realm"], row[name]), []).append(row)
        return {who: tuple(sum_counters(group).values()) for who, group in grouped.items()}

    service.up.wait_for(
        lambda: (
            sums("user_usage_monthly", "user_id")
            == {who: user.usage for who, user in usage.items() if user.sessions}
        )
    )
    assert sums("unattributed_usage", "username") == {
        (escape(user.realm), escape(user.username)): user.unattributed
        for user in expected.users
        if any(user.unattributed)
    }
