"""The proof of delivery, from the record of a receiver: two schedulers deliver to seven endpoints.

Meanwhile the schedulers are killed, the receiver is killed and lies, and Postgres is killed. Each
event is delivered at least once, in order, signed, and again only where a kill explains it.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Final, Self

import psycopg
import pytest
from psycopg.rows import dict_row

from accounting.db.engine import open_engine
from accounting.db.notification import NEW_REPORTS, notify
from accounting.domain.realm_rules import RealmRule
from accounting.feed.outbox import EventType, enqueue_event
from accounting.identities.realm_queries import add_realm
from accounting.webhooks.endpoints import add_endpoint
from tests.support.books import TEMPLATE, WRITER, Books, make_template
from tests.support.servers import PostgresServer, free_port, wait_until
from tests.support.short_delivery import Scheduler
from tests.support.webhook_checks import PAUSE, Fault, describe_violations
from tests.support.webhook_receiver import WebhookReceiver

REALMS: Final = ("example.org", "example.net")
SETTINGS: Final = {"log_format": "json", "log_level": "info"}
PAYLOAD: Final = {
    "session_id": "6f1f0d1c-0b9e-5d36-a2bd-e2d1b1a4e1d5",
    "ended_at": "2026-11-28T10:00:00+00:00",
    "period": "2026-11-01",
}
"""What the formats need of events of these types."""
TYPES: Final[Sequence[EventType]] = ("session.ended", "period.closed", "adjustment.posted")
LEASES: Final = (
    "SELECT lease FROM accounting.webhooks WHERE leased_until > accounting.database_now()"
)
DEADLINES: Final = (
    "SELECT number, seconds, CAST(extract(epoch FROM accounting.database_now() - attempted_at)"
    " AS double precision) AS age FROM accounting.webhook_attempts"
    " WHERE failure LIKE '%no complete answer within%'"
)
CUT_CONNECTIONS: Final = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
ENDS_IN_TIME: Final = 60.0
"""Seconds in which the last events are delivered, after all faults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """An endpoint of the proof, and how its receiver behaves."""

    behaviour: Mapping[str, Any]
    format: str = "standard"
    batch_size: int = 1
    parallel: int = 1
    types: Sequence[EventType] | None = None
    realm: str | None = None


RANDOM: Final = {"do": "random", "faults": 0.15}
KINDS: Final[Mapping[str, Kind]] = {
    "/one": Kind(behaviour=RANDOM),
    "/batches": Kind(behaviour=RANDOM, batch_size=10),
    "/some": Kind(behaviour=RANDOM, batch_size=3, types=TYPES[:2], realm=REALMS[0]),
    "/cloudevents": Kind(behaviour=RANDOM, format="cloudevents"),
    "/parallel": Kind(behaviour=RANDOM, parallel=4),
    "/good": Kind(behaviour={"do": "answer"}, batch_size=5),
    "/slow": Kind(behaviour={"do": "hold"}, batch_size=5),
}


class Proof:
    """A receiver, two schedulers on the database of that URL, and what was down when."""

    def __init__(self, directory: Path, url: str, seed: int) -> None:
        self._directory = directory
        self._url = url
        self.random = Random(seed)
        self._stack = ExitStack()
        self._schedulers: list[Scheduler] = []
        self._keys = itertools.count()
        self.faults: list[Fault] = []

    def __enter__(self) -> Self:
        with self._stack as stack:
            self._engine = open_engine(self._url)
            stack.callback(self._engine.dispose)
            self.receiver = stack.enter_context(WebhookReceiver())
            self._add_endpoints()
            self._schedulers = [stack.enter_context(self._scheduler()) for _ in range(2)]
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _add_endpoints(self) -> None:
        with self._engine.begin() as connection:
            self._realm_ids = [
                add_realm(connection, realm.encode(), RealmRule()) for realm in REALMS
            ]
        self._numbers: dict[str, int] = {}
        for path, kind in KINDS.items():
            self._numbers[path], secret = add_endpoint(
                self._engine,
                url=self.receiver.url(path),
                format=kind.format,
                types=kind.types,
                realm=kind.realm,
                batch_size=kind.batch_size,
                parallel=kind.parallel,
                allows_private=True,
            )
            self.receiver.behave(path, **kind.behaviour, secrets=[secret])
        dead = f"http://127.0.0.1:{free_port()}/dead"
        self._dead_number, _ = add_endpoint(self._engine, url=dead, allows_private=True)

    def _scheduler(self) -> Scheduler:
        settings = {"database_url": self._url, "data_dir": str(self._directory), **SETTINGS}
        return Scheduler(self._directory, settings)

    def post_events(self, count: int) -> None:
        """Enqueue events of random types and realms, in several transactions."""
        while count > 0:
            size = min(count, self.random.randint(1, 8))
            count -= size
            with self._engine.begin() as connection:
                for key in itertools.islice(self._keys, size):
                    realm_id = self.random.choice(self._realm_ids)
                    type_ = self.random.choice(TYPES)
                    enqueue_event(connection, type_, realm_id, PAYLOAD, str(key))
        notify(self._engine, NEW_REPORTS)

    # What is broken

    @contextmanager
    def _fault(self, kind: str) -> Iterator[None]:
        began_at = time.monotonic_ns()
        yield
        self.faults.append(Fault(kind=kind, began_at=began_at, ended_at=time.monotonic_ns()))

    def kill_scheduler(self) -> None:
        number = self.random.randrange(len(self._schedulers))
        with self._fault("scheduler"):
            self._schedulers[number].kill()
        self._schedulers[number] = self._stack.enter_context(self._scheduler())

    def pause_scheduler(self) -> None:
        """Let a scheduler stand still until the other one has taken over what it delivered."""
        scheduler = self.random.choice(self._schedulers)
        with self._fault(PAUSE):
            scheduler.pause()
            leases = {row["lease"] for row in self._query(LEASES)}
            seen = len(self.receiver.requests())
            self.wait_until(
                lambda: (
                    leases.isdisjoint(row["lease"] for row in self._query(LEASES))
                    and len(self.receiver.requests()) > seen + 3
                )
            )
            scheduler.resume()

    def kill_receiver(self) -> None:
        with self._fault("receiver"):
            self.receiver.kill()
        self.receiver.start()

    def cut_connections(self) -> None:
        """End the connections of the schedulers to Postgres."""
        with self._fault("connections"):
            self._query(CUT_CONNECTIONS)

    def kill_postgres(self, postgres: PostgresServer) -> None:
        with self._fault("postgres"):
            postgres.kill()
        postgres.start()
        wait_until(self._can_connect)

    def restart_postgres(self, postgres: PostgresServer) -> None:
        with self._fault("postgres"):
            postgres.stop()
        postgres.start()
        wait_until(self._can_connect)

    def _can_connect(self) -> bool:
        try:
            self._query("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def hold_one(self) -> None:
        self.receiver.behave("/one", do="hold")

    def release_one(self) -> None:
        self.receiver.behave("/one", **RANDOM)

    def break_something(self, postgres: PostgresServer) -> None:
        faults: Sequence[Callable[[], None]] = (
            self.kill_scheduler,
            self.kill_scheduler,
            self.pause_scheduler,
            self.pause_scheduler,
            self.kill_receiver,
            self.cut_connections,
            partial(self.kill_postgres, postgres),
            partial(self.restart_postgres, postgres),
            self.hold_one,
            self.release_one,
        )
        self.random.choice(faults)()

    def wait_for_requests(self) -> None:
        """Return after a random number of further requests, if any is due."""
        count = len(self.receiver.requests()) + self.random.randint(1, 15)
        self.wait_until(
            lambda: len(self.receiver.requests()) >= count or self.is_delivered(but=("/slow",))
        )

    # What is seen

    def _query(self, statement: str) -> list[dict[str, Any]]:
        with psycopg.connect(self._url, row_factory=dict_row) as connection:
            return connection.execute(statement).fetchall()

    def expected(self, path: str) -> list[str]:
        """The ids of the events that an endpoint asked for, by the feed."""
        kind = KINDS[path]
        return [
            str(row["event_id"])
            for row in self._query("SELECT * FROM reporting.feed ORDER BY seq")
            if (kind.types is None or row["type"] in kind.types)
            and kind.realm in (None, row["realm"])
        ]

    def is_numbered(self) -> bool:
        return not self._query("SELECT FROM accounting.feed_outbox")

    def taken_ids(self, path: str) -> set[str]:
        return {
            event_id
            for request in self.receiver.requests(path)
            if request.is_taken
            for event_id in request.event_ids
        }

    def is_delivered(self, but: Sequence[str] = ()) -> bool:
        """Whether all events are at all endpoints, except the dead one and these."""
        return self.is_numbered() and all(
            self.taken_ids(path) >= set(self.expected(path)) for path in KINDS if path not in but
        )

    def is_position_at_the_end(self) -> bool:
        behind = self._query(
            "SELECT number FROM accounting.webhooks"
            " WHERE seq < (SELECT max(seq) FROM accounting.feed)"
        )
        return [row["number"] for row in behind] == [self._dead_number]

    def _deadlines(self, path: str) -> list[Fault]:
        """The requests that a sender left at its deadline, perhaps while the answer was coming."""
        now = time.monotonic_ns()
        return [
            Fault(
                kind="deadline",
                began_at=now - int(row["age"] * 1e9),
                ended_at=now - int((row["age"] - row["seconds"]) * 1e9),
            )
            for row in self._query(DEADLINES)
            if row["number"] == self._numbers[path]
        ]

    def violations(self) -> dict[str, list[str]]:
        """What is wrong with the record, by endpoint."""
        found = {
            path: describe_violations(
                self.expected(path),
                self.receiver.requests(path),
                [*self.faults, *self._deadlines(path)],
                is_ordered=kind.parallel == 1,
            )
            for path, kind in KINDS.items()
        }
        return {path: violations for path, violations in found.items() if violations}

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait for a condition; fail with what the record says."""
        try:
            wait_until(condition, ENDS_IN_TIME)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.violations()}") from error

    def end(self) -> None:
        """Let everything work until all is delivered, and stop the schedulers."""
        for path in KINDS:
            self.receiver.behave(path, do="answer")
        self.wait_until(self.is_position_at_the_end)
        for scheduler in self._schedulers:
            assert scheduler.stop() == 0
        failures = [
            line
            for log in sorted(self._directory.glob("*.log"))
            for line in log.read_text().splitlines()
            if '"job failed' in line or "Traceback" in line
        ]
        assert failures == []


@pytest.mark.long
def test_one_slow_and_one_dead_endpoint_delay_no_other_and_kills_lose_nothing(
    books: Books, tmp_path: Path
) -> None:
    with Proof(tmp_path, books.url(WRITER), seed=1) as proof:
        proof.post_events(20)
        # The slow endpoint holds what it gets, and the dead one takes nothing.
        proof.wait_until(lambda: proof.is_delivered(but=("/slow",)))
        held = proof.receiver.requests("/slow")
        assert held
        assert proof.taken_ids("/slow") == set()
        proof.post_events(40)
        for break_it in (proof.kill_scheduler, proof.kill_receiver, proof.cut_connections):
            proof.wait_for_requests()
            break_it()
        proof.end()
        assert proof.violations() == {}


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A server that the test may kill: with it, what was committed stays, as by default."""
    with PostgresServer(settings={"synchronous_commit": "on"}) as server:
        make_template(server)
        yield server


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(1, 3))
def test_whatever_is_killed_each_event_is_delivered_in_order(
    own_postgres: PostgresServer, tmp_path: Path, seed: int
) -> None:
    with Proof(tmp_path, own_postgres.url(WRITER, TEMPLATE), seed) as proof:
        for _ in range(6):
            proof.post_events(proof.random.randint(1, 60))
            proof.wait_for_requests()
            proof.break_something(own_postgres)
        proof.end()
        assert proof.violations() == {}
