"""The service's processes as they run in production: started, killed, starved, and ended."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from accounting.simulate import Scenario, run
from accounting.store.database import psycopg_connection  # noqa: F401
from tests.books import Books
from tests.live.service import (
    Service,
    json_rows,
    processes_of,
)
from tests.live.traffic import Numbers, announce, assert_honest, loaded, settled_bytes
from tests.servers import ValkeyServer

SMALL = Scenario(sessions=60, users=6, duration_seconds=20.0, rate=0)


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


def test_up_runs_on_embedded_defaults_and_both_signals_drain_it(tmp_path: Path) -> None:
    """What was published before the signal is in the books when it has ended."""
    total = 0
    lines = set()
    for seed, step in enumerate((signal.SIGTERM, signal.SIGINT), start=1):
        with Service("up", tmp_path) as up:
            line = up.wait_for_line()
            found = re.fullmatch(
                r'redis-statsdb="ip=127\.0\.0\.1 dbname=0 port=(\d+) connect_timeout=\d+"', line
            )
            assert found is not None, line
            lines.add(line)
            up.wait_until_capturing()
            url = f"redis://127.0.0.1:{found[1]}/0"
            scenario = Scenario(sessions=60, users=6, duration_seconds=20.0, rate=0, seed=seed)
            total += sum(run(scenario, url).total.usage[:4])
            assert up.end(step) == 0, up.log_text()
            assert processes_of(tmp_path) == []
            assert up.out() == f"{line}\n"
    assert len(lines) == 1, "the port of the embedded Valkey is not kept"
    usage = json_rows("usage", data_dir=tmp_path)
    counters = ("received_packets", "received_bytes", "sent_packets", "sent_bytes")
    assert sum(int(row[name]) for row in usage for name in counters) == total
    assert processes_of(tmp_path) == []


def settings(books: Books, valkey: ValkeyServer) -> dict[str, str]:
    return {"ACCOUNTING_DATABASE_URL": books.url(), "ACCOUNTING_REDIS_URL": valkey.url}


def test_a_killed_part_is_started_again_and_the_books_are_exact(
    books: Books, valkey: ValkeyServer, tmp_path: Path
) -> None:
    """Killing the loader or the scheduler loses nothing; killing the collector is a gap."""
    data_dir = tmp_path / "data"
    with Service("up", data_dir, settings(books, valkey)) as up, Numbers(valkey) as numbers:
        up.wait_until_capturing()
        announce(valkey)
        up.wait_for(lambda: loaded(books))
        first = loaded(books)[0]
        for part in ("load", "schedule"):
            killed = up.part(part)
            numbers.await_more(50)
            os.kill(killed, signal.SIGKILL)
            numbers.await_more(50)
            up.wait_for_part(part, other_than=killed)
        assert books.rows("capture_gaps") == []
        killed = up.part("collect")
        os.kill(killed, signal.SIGKILL)
        up.wait_for_part("collect", other_than=killed)
        up.wait_for(lambda: [gap["to_at"] is None for gap in books.rows("capture_gaps")] == [False])
        numbers.await_more(50)
        numbers.__exit__(None, None, None)
        last = max(numbers.sent)
        up.wait_for(lambda: loaded(books)[-1] == last)
        sent = {number: at for number, at in numbers.sent.items() if number >= first}
        lost = assert_honest(books, sent)
        (gap,) = books.rows("capture_gaps")
        assert gap["cause"] == "collector_restarted"
        assert up.end() == 0
    assert settled_bytes(books) == sum(sent.keys() - set(lost))
    books.assert_conserved()
