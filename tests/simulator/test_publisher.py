"""The publisher on a real Valkey: everything arrives, in order, at the configured rate."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis

from accounting.errors import AccountingError, ConnectionLost
from accounting.simulator import Command, Expected, Scenario, play
from accounting.simulator.publisher import SimulationProgress, run
from tests.support.naive_bookkeeper import expected_figures, naive_figures
from tests.support.servers import ValkeyServer, wait_until
from tests.support.simulated_fleet import ALL_HARD_CASES

AT_ONCE = replace(ALL_HARD_CASES, rate=0.0)
PATTERNS = ("turn/realm/*/user/*/allocation/*", "turn/user/*/allocation/*")


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer() as valkey:
        yield valkey


class Subscriber:
    """A subscriber of both patterns that keeps all messages."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)
        self._subscription = self._client.pubsub()  # type: ignore[no-untyped-call]
        self._subscription.psubscribe(*PATTERNS)
        for _ in PATTERNS:
            assert self._subscription.get_message(timeout=10) is not None
        self.received: list[Command] = []

    def wait_for(self, count: int) -> list[Command]:
        """All messages so far, once there are ``count``."""
        deadline = time.monotonic() + 30
        while len(self.received) < count and time.monotonic() < deadline:
            self._receive(timeout=1)
        self._receive(timeout=0.05)
        return self.received

    def _receive(self, timeout: float) -> None:
        message = self._subscription.get_message(timeout=timeout)
        if message is not None:
            args = (message["channel"], message["data"])
            self.received.append(Command(0, 0, 0, b"publish", args))

    def close(self) -> None:
        self._subscription.close()
        self._client.close()


@pytest.fixture
def subscriber(server: ValkeyServer) -> Iterator[Subscriber]:
    listener = Subscriber(server.url)
    yield listener
    listener.close()


def allocation_messages(commands: list[Command]) -> list[tuple[bytes, ...]]:
    return [c.args for c in commands if c.name == b"publish" and c.args[0] != b"__XXX__"]


@pytest.mark.parametrize("version", ["4.6", "4.17"])
def test_subscribers_receive_exactly_what_was_published(
    server: ValkeyServer, subscriber: Subscriber, version: str
) -> None:
    scenario = replace(AT_ONCE, version=version)
    expected = run(scenario, server.url)
    received = subscriber.wait_for(expected.published)
    commands, same = play(scenario)
    assert expected == same
    assert sorted(c.args for c in received) == sorted(allocation_messages(commands))
    assert naive_figures(received) == expected_figures(expected)


def test_each_connection_keeps_its_order(server: ValkeyServer, subscriber: Subscriber) -> None:
    """One server with one thread has one connection for all allocations."""
    scenario = Scenario(servers=1, relay_threads=1, rate=0)
    received = subscriber.wait_for(run(scenario, server.url).published)
    assert [c.args for c in received] == allocation_messages(play(scenario)[0])


def test_status_keys_of_killed_servers_stay(server: ValkeyServer) -> None:
    scenario = Scenario(sessions=50, rate=0, lost_totals=True, databases=(7, 7))
    expected = run(scenario, server.url)
    with redis.Redis(port=server.port, db=7) as client:
        left = client.keys("turn/*/allocation/*/status")
        client.flushdb()
    assert len(left) == 50 - expected.messages["deleted"] > 0


def test_servers_publish_from_their_own_databases(server: ValkeyServer) -> None:
    """MONITOR shows the database of a command; pub/sub does not."""
    with redis.Redis.from_url(server.url) as client, client.monitor() as monitor:
        run(Scenario(sessions=20, rate=0, databases=(5, 6)), server.url)
        client.publish("end", "of run")
        seen = set()
        while (command := monitor.next_command())["command"] != "PUBLISH end of run":
            if command["command"].startswith("publish turn/"):
                seen.add(command["db"])
    assert seen == {5, 6}


def test_a_rate_is_kept(server: ValkeyServer) -> None:
    began = time.monotonic()
    expected = run(Scenario(sessions=40, rate=400, version="4.17"), server.url)
    due = expected.published / 400
    assert 0.95 * due < time.monotonic() - began < due + 5


def test_a_run_takes_its_real_time_and_reports_progress(server: ValkeyServer) -> None:
    reports: list[SimulationProgress] = []
    began = time.monotonic()
    scenario = Scenario(sessions=20, duration_seconds=2, session_seconds=1)
    expected = run(scenario, server.url, on_progress=reports.append)
    assert 1.95 < time.monotonic() - began < 7
    assert len(reports) > 5
    assert [p.published for p in reports] == sorted(p.published for p in reports)
    assert reports[-1].published == expected.published
    assert reports[-1].sessions_started == 20
    assert reports[-1].sessions_live == 0


def test_a_stopped_run_expects_what_was_published_until_then(
    server: ValkeyServer, subscriber: Subscriber
) -> None:
    stop = threading.Event()
    answers: list[Expected] = []

    def simulate() -> None:
        answers.append(run(replace(ALL_HARD_CASES, rate=2000.0), server.url, stop=stop))

    thread = threading.Thread(target=simulate)
    thread.start()
    subscriber.wait_for(300)
    stop.set()
    thread.join(20)
    wait_until(lambda: answers, message="the run did not stop")
    (expected,) = answers
    assert expected.published < play(ALL_HARD_CASES)[1].published
    assert naive_figures(subscriber.wait_for(expected.published)) == expected_figures(expected)


def test_the_error_of_a_lost_server_has_no_password() -> None:
    with ValkeyServer({"requirepass": "hunter2"}) as server:
        run(Scenario(sessions=5, rate=0), server.url)
        threading.Timer(0.3, server.kill).start()
        with pytest.raises(ConnectionLost) as lost:
            run(Scenario(sessions=100_000), server.url)
        with pytest.raises(ConnectionLost) as refused:
            run(Scenario(sessions=5), server.url)
    assert "hunter2" not in f"{lost.value} {refused.value}"


def test_a_refused_command_ends_the_run(server: ValkeyServer) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("ACL", "SETUSER", "mute", "on", ">pw", "+@all", "-publish", "~*")
    url = server.url.replace("redis://", "redis://mute:pw@")
    with pytest.raises(AccountingError, match="refused a command"):
        run(Scenario(sessions=5, rate=0), url)
