"""Publishes a million messages while Postgres is stopped, and checks the books afterwards.

``collect`` and ``schedule`` run with a Valkey or, with ``--server redis``, Debian's Redis. The
messages are published in one pipeline while Postgres is stopped; then it starts again. Prints the
seconds of each step; fails if the usage of a user differs from what was published, if a report is
missing, or if there is a gap.

    .venv/bin/python -m benchmarks.outage --messages 1000000
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accounting.capture.spool.file import spool_path
from accounting.capture.spool.spool import Spool
from tests.support.books import Books, channel, make_template, status_payload, traffic_payload
from tests.support.servers import PostgresServer, RedisServer, ValkeyServer, wait_until
from tests.support.service import SERVICE, Service
from tests.support.turn_traffic import publish_pipelined

USERS = 20_000
TIMEOUT_SECONDS = 600.0
SERVER_CLASSES: dict[str, type[RedisServer]] = {"valkey": ValkeyServer, "redis": RedisServer}


def user_of(number: int) -> str:
    return f"user{number % USERS:05d}"


def messages(count: int) -> Iterator[tuple[bytes, bytes]]:
    """Interims numbered from 1, for each user in turn; the number is the received bytes."""
    channels = [channel("traffic", user=user_of(number)) for number in range(USERS)]
    for number in range(1, count + 1):
        yield channels[number % USERS], traffic_payload(1, number, 0, 0)


def expected_bytes(count: int) -> dict[str, int]:
    sums: dict[str, int] = {}
    for number in range(1, count + 1):
        sums[user_of(number)] = sums.get(user_of(number), 0) + number
    return sums


@contextmanager
def measured(what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    print(f"  {what:<46}{time.monotonic() - began:8.1f} s", flush=True)


def run(count: int, server_name: str, capture: str, home: Path) -> None:
    options = {"repl-diskless-sync-delay": "0", "repl-backlog-size": "512mb"}
    with PostgresServer(fsync=True) as postgres, SERVER_CLASSES[server_name](options) as server:
        make_template(postgres, "outage")
        books = Books(postgres, "outage", home)
        settings = {
            "ACCOUNTING_DATABASE_URL": books.url(),
            "ACCOUNTING_REDIS_URL": server.url,
            "ACCOUNTING_CAPTURE": capture,
        }
        with (
            Service("collect", home / "collect", settings, module=SERVICE) as collect,
            Service("schedule", home / "schedule", settings, module=SERVICE),
        ):
            collect.wait_until_capturing()
            publish_pipelined(
                server,
                (
                    (channel("status", user=user_of(number)), status_payload("new", 3600))
                    for number in range(USERS)
                ),
            )
            wait_until(lambda: event_count(books) == USERS, TIMEOUT_SECONDS)
            postgres.stop()
            with measured(f"{count:,} messages published, Postgres stopped"):
                publish_pipelined(server, messages(count))
            with measured("the last of them durable in the spool"):
                wait_until(lambda: is_spooled(home / "collect", count), TIMEOUT_SECONDS)
            postgres.start()
            with measured("loaded, settled and rolled up after its return"):
                wait_until(lambda: received_packets(books) >= count, TIMEOUT_SECONDS)
            check(books, count)


def is_spooled(data_dir: Path, count: int) -> bool:
    """Whether the spool has so many messages that are not loaded."""
    with Spool.open(spool_path(data_dir, "default"), "default") as spool:
        state = spool.state()
        unloaded, _, _ = spool.count_after(state.loaded_epoch, state.loaded_position, count + 1)
        return unloaded == count


def event_count(books: Books) -> int:
    return int(books.query("select count(*) as count from reporting.allocation_events")[0]["count"])


def received_packets(books: Books) -> int:
    usage = books.query(
        "select coalesce(sum(received_packets), 0) as packets from reporting.realm_usage_hourly"
    )
    return int(usage[0]["packets"])


def check(books: Books, count: int) -> None:
    usage = books.query(
        "select user_id, sum(received_bytes) as bytes from reporting.user_usage_hourly group by 1"
    )
    seen = {row["user_id"]: int(row["bytes"]) for row in usage if row["bytes"]}
    loaded = books.query("select count(*) as count from reporting.traffic_reports")[0]["count"]
    gaps = books.rows("capture_gaps")
    assert seen == expected_bytes(count), "the usage differs from what was published"
    assert loaded == count, f"{loaded} reports of {count}"
    assert gaps == [], gaps
    total = sum(seen.values())
    print(f"  books: {loaded:,} reports, {total:,} bytes of {len(seen):,} users, exact; 0 gaps")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--messages", type=int, default=1_000_000)
    arguments.add_argument(
        "--server", choices=sorted(SERVER_CLASSES), nargs="+", default=["valkey"]
    )
    arguments.add_argument("--capture", choices=["subscribe", "replication"], default="replication")
    given = arguments.parse_args()
    for name in given.server:
        print(f"{name}, {given.capture}:")
        home = Path(tempfile.mkdtemp(prefix="outage-"))
        try:
            run(given.messages, name, given.capture, home)
        finally:
            shutil.rmtree(home)


if __name__ == "__main__":
    main()
