"""A simulated history goes through the real path, and its oracle finds what differs."""

import json
import random
from datetime import UTC, datetime, timedelta

import pytest

from accounting.audit.verify import verify
from accounting.db.clock import database_now
from accounting.domain.calendar import to_micros
from accounting.ops.simulated_history import differences, simulate_history
from accounting.simulator.history import HistoryScenario, realm_names
from accounting.simulator.history_oracle import HistoryExpected
from tests.support.books import WRITER, Books
from tests.support.command import turn_accounting
from tests.support.servers import free_port

OPTIONS = ["--history", "1month", "--users", "4", "--sessions", "40", "--seed", "3"]


def test_the_books_equal_the_oracle_and_their_reports(books: Books) -> None:
    with books.engine.connect() as connection:
        now = to_micros(database_now(connection))
    expected = simulate_history(
        books.engine, HistoryScenario(until=now, months=2, users=6, sessions=150)
    )
    assert expected.adjustments
    assert expected.sessions_estimated
    assert list(differences(books.reader, expected)) == []
    assert list(verify(books.engine)) == []
    assert {row["state"] for row in books.rows("periods")} == {"closed", "open"}
    assert len(books.rows("capture_gaps")) == expected.gaps
    [source] = books.rows("sources")
    assert source["source"] == "simulated"
    assert source["retired_at"] is not None
    assert {row["type"] for row in books.rows("feed")} == {
        "session.ended", "period.closed", "adjustment.posted"
    }  # fmt: skip
    find_each_corruption(books, expected)


def find_each_corruption(books: Books, expected: HistoryExpected) -> None:
    for statement, found in (
        ("UPDATE accounting.user_usage_monthly SET sent_bytes = sent_bytes + 1", "month example."),
        ("DELETE FROM accounting.capture_gaps WHERE cause = 'failover'", "capture gaps: count is"),
    ):  # fmt: skip
        books.query(f"{statement} RETURNING 1")
        assert any(line.startswith(found) for line in differences(books.reader, expected)), found


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_any_history_equals_its_oracle_also_one_that_ends_near_a_border(
    books: Books, seed: int
) -> None:
    chance = random.Random(seed)
    until = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=chance.randrange(1000 * 86_400))
    if seed % 2:  # near midnight of one of the zones, the grace and the closing
        until = datetime(2026, chance.randrange(1, 12), 1, tzinfo=UTC) + timedelta(
            hours=chance.choice([-5.5, -1, 0, 1, 4, 5, 7]),
            seconds=chance.choice([0, 30, 60, 61, 63, 65, 66, 300]),
        )
    scenario = HistoryScenario(
        until=to_micros(until),
        months=chance.randrange(1, 4),
        realms=realm_names(chance.randrange(1, 5)),
        users=chance.randrange(4, 40),
        sessions=chance.choice([1, 30, 200, 400]),
        seed=seed,
    )
    expected = simulate_history(books.engine, scenario)
    assert list(differences(books.reader, expected)) == []
    assert list(verify(books.engine)) == []


def test_the_command_fills_only_empty_books_and_needs_no_redis(books: Books) -> None:
    settings = {
        "database_url": books.url(WRITER),
        "redis_url": f"redis://127.0.0.1:{free_port()}",
        "log_level": "error",
    }
    filled = turn_accounting("simulate", *OPTIONS, "--json", **settings)
    assert (filled.code, filled.err) == (0, "")
    expected = json.loads(filled.out)
    assert expected["captured"] == sum(
        row["count"] for row in books.query("SELECT count(*) FROM accounting.reports")
    )
    assert {row["realm"] for row in expected["closed"]} == {"example.org", "example.net"}
    refused = turn_accounting("simulate", *OPTIONS, **settings)
    assert refused.code == 2
    assert refused.error_line == (
        "a history is only simulated in empty books: these have the source 'simulated'; "
        "name another database, or another data directory"
    )
