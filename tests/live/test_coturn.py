"""Real coturn servers: the books equal their logs, byte for byte."""

import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from accounting.domain.counters import COUNTERS
from accounting.domain.text_escaping import escape
from tests.support.books import Books, sum_counters
from tests.support.coturn_log import LoggedKey, LoggedUsage, coturn_log_usage, usage_per_user
from tests.support.coturn_server import TurnServer, run_client, running_client, wait_until_closed
from tests.support.servers import RedisServer, ValkeyServer
from tests.support.service import Service, processes_in

pytestmark = pytest.mark.needs_coturn

Counters = tuple[int, ...]
Session = tuple[str, str, str, Counters]
SECRET = "north"


def settings(books: Books, redis: RedisServer) -> dict[str, str]:
    return {"ACCOUNTING_DATABASE_URL": books.url(), "ACCOUNTING_REDIS_URL": redis.url}


@contextmanager
def collecting_and_scheduling(
    books: Books, redis: RedisServer, data_dir: Path
) -> Iterator[tuple[Service, Service]]:
    """``collect`` and ``schedule`` as two processes."""
    service_settings = settings(books, redis)
    with (
        Service("collect", data_dir, service_settings) as collect,
        Service("schedule", data_dir.with_name("schedule"), service_settings) as schedule,
    ):
        collect.wait_until_capturing()
        schedule.wait_for(lambda: schedule.events("scheduling"))
        yield collect, schedule


def row_counters(row: Mapping[str, Any]) -> Counters:
    return tuple(int(row[name]) for name in COUNTERS)


def booked_sessions(books: Books, realm: str) -> list[Session]:
    """The sessions of a realm: (username, allocation, end, counters)."""
    return sorted(
        (row["username"], row["allocation_id"], row["end_cause"] or "live", row_counters(row))
        for row in books.rows("sessions")
        if row["realm"] == realm
    )


def logged_sessions(log: Mapping[LoggedKey, LoggedUsage]) -> list[Session]:
    """The same from coturn's log."""
    return sorted(
        (
            escape(key.username),
            key.allocation_id,
            "deleted" if usage.deleted else "live",
            usage.counters(),
        )
        for key, usage in log.items()
        if usage.began
    )


def usage_by_user(books: Books, realm: str, length: str = "monthly") -> dict[str, Counters]:
    """The usage of a realm's users."""
    rows = [row for row in books.rows(f"user_usage_{length}") if row["realm"] == realm]
    return {
        user: tuple(sum_counters(row for row in rows if row["user_id"] == user).values())
        for user in {row["user_id"] for row in rows}
    }


def unattributed_usage(books: Books, realm: str) -> dict[str, Counters]:
    """The unattributed usage of a realm, by name."""
    rows = [row for row in books.rows("unattributed_usage") if row["realm"] == realm]
    return {
        name: tuple(sum_counters(row for row in rows if row["username"] == name).values())
        for name in {row["username"] for row in rows}
    }


def logged_unauthenticated(log: Mapping[LoggedKey, LoggedUsage]) -> dict[str, Counters]:
    """The same from coturn's log: sessions with requests that never authenticated."""
    sums: dict[str, Counters] = {}
    for key, usage in log.items():
        if not usage.began and any(usage.counters()):
            name = escape(key.username)
            before = sums.get(name, (0,) * 8)
            sums[name] = tuple(a + b for a, b in zip(before, usage.counters(), strict=True))
    return sums


@pytest.mark.parametrize("messages", [200, pytest.param(2000, marks=pytest.mark.long)])
def test_the_books_equal_coturns_log_byte_for_byte(
    books: Books, tmp_path: Path, messages: int
) -> None:
    """Several users, UDP and TCP, megabytes, a wrong password, a server of TURN REST."""
    users = {"alice": "a", "bob": "b", "carol": "c"}
    with (
        ValkeyServer() as valkey,
        collecting_and_scheduling(books, valkey, tmp_path / "data") as (collect, schedule),
        TurnServer(valkey.port, users=users) as server,
        TurnServer(valkey.port, secret=SECRET, realm="rest.example") as rest,
        ThreadPoolExecutor(8) as clients,
    ):
        running = [
            clients.submit(
                run_client, server, "alice", "a", messages=messages, size=1200, clients=6
            ),
            clients.submit(
                run_client, server, "bob", "b", messages=messages, size=1200, clients=4, tcp=True
            ),
            clients.submit(run_client, server, "carol", "c", messages=messages // 4, peer=False),
            clients.submit(
                run_client, rest, "dave", secret=SECRET, messages=messages // 4, size=800
            ),
        ]
        # TCP, because coturn reports it at the disconnect, and over UDP only after a minute.
        wrong = clients.submit(run_client, server, "victim", "wrong", tcp=True).result()
        assert wrong.code != 0
        for client in running:
            assert client.result().code == 0, client.result().output
        wait_until_closed(server)
        wait_until_closed(rest)
        log, rest_log = (coturn_log_usage(turn.log_bytes()) for turn in (server, rest))
        collect.wait_for(lambda: booked_sessions(books, server.realm) == logged_sessions(log))
        collect.wait_for(lambda: booked_sessions(books, rest.realm) == logged_sessions(rest_log))
        assert collect.stop() == 0
        assert schedule.stop() == 0
        assert processes_in(tmp_path / "data") == []
    assert unattributed_usage(books, server.realm) == logged_unauthenticated(log)
    assert unattributed_usage(books, server.realm)["victim"][1] > 0
    by_user = {name: eight for (_, name), eight in usage_per_user(log).items()}
    for length in ("hourly", "daily", "monthly"):
        assert usage_by_user(books, server.realm, length) == {
            escape(name): eight for name, eight in by_user.items()
        }
    assert sum(eight[1] + eight[3] for eight in by_user.values()) > 20_000 * messages
    assert set(by_user) == {b"alice", b"bob", b"carol"}
    (dave,) = usage_per_user(rest_log).values()
    assert usage_by_user(books, rest.realm) == {"dave": dave}
    (name,) = {row["username"] for row in books.rows("sessions") if row["user_id"] == "dave"}
    assert re.fullmatch(r"\d+:dave", name)
    assert books.rows("rejected_messages") == []
    assert books.rows("capture_gaps") == []
    assert not any(row["estimated"] or row["disputed"] for row in books.rows("sessions"))
    books.assert_conserved()


@pytest.mark.needs_redis
def test_a_killed_coturn_counts_what_it_published_and_its_reused_ids_are_other_sessions(
    books: Books, tmp_path: Path
) -> None:
    """With Debian's Redis and the command ``up``."""
    with (
        RedisServer() as redis,
        Service("up", tmp_path / "data", settings(books, redis)) as up,
        TurnServer(redis.port, users={"alice": "a"}, relay_threads=1) as server,
    ):
        up.wait_until_capturing()
        with running_client(server, "alice", "a") as client:
            up.wait_for(lambda: server.log_bytes().count(b"username=<alice>, rp=") >= 2)
            # The client is stopped first, so that no message is in flight when coturn is killed.
            client.send_signal(signal.SIGSTOP)
            up.wait_for(lambda: books_equal_log(books, server))
            server.kill()
        server.start()
        done = run_client(server, "alice", "a", messages=200)
        assert done.code == 0
        wait_until_closed(server)
        logs = [coturn_log_usage(server.log_bytes(start)) for start in (1, 2)]
        up.wait_for(lambda: booked_sessions(books, server.realm) == sessions_of_logs(logs))
        assert up.stop(signal.SIGINT) == 0
    assert len(reused_keys(logs)) > 0
    total = [sum(eight) for eight in zip(*(e for *_, e in sessions_of_logs(logs)), strict=True)]
    assert usage_by_user(books, server.realm) == {"alice": tuple(total)}
    assert not any(row["estimated"] or row["disputed"] for row in books.rows("sessions"))
    assert books.rows("capture_gaps") == []
    books.assert_conserved()


def books_equal_log(books: Books, server: TurnServer) -> bool:
    """Whether the books equal the log of this start."""
    now = {
        session[1]: session[3]
        for session in booked_sessions(books, server.realm)
        if session[2] == "live"
    }
    return now == {
        session[1]: session[3] for session in logged_sessions(coturn_log_usage(server.log_bytes()))
    }


def reused_keys(logs: Sequence[Mapping[LoggedKey, LoggedUsage]]) -> set[LoggedKey]:
    """The keys with a session in the first server process and in the last."""
    first, *_, last = ({key for key, usage in log.items() if usage.began} for log in logs)
    return first & last


def sessions_of_logs(logs: Sequence[Mapping[LoggedKey, LoggedUsage]]) -> list[Session]:
    """The sessions of consecutive server processes, with their ends by the rules."""
    expected: list[Session] = []
    for number, log in enumerate(logs):
        begun_again = {key for later in logs[number + 1 :] for key in later if later[key].began}
        ids = {(escape(key.username), key.allocation_id) for key in begun_again}
        for name, allocation, end, eight in logged_sessions(log):
            superseded = end == "live" and (name, allocation) in ids
            expected.append((name, allocation, "superseded" if superseded else end, eight))
    return sorted(expected)
