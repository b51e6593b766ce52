"""A simulated history goes through the real path, and its oracle finds what differs."""

import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
import pytest

from accounting.audit.verify import verify
from accounting.db.clock import database_now
from accounting.domain.calendar import to_micros
from accounting.ops.simulated_history import differences, simulate_history
from accounting.simulator.history import HistoryScenario, realm_names
from accounting.simulator.history_oracle import HistoryExpected
from tests.support.books import WRITER, Books
from tests.support.command import turn_accounting, turn_accounting_on_terminal
from tests.support.servers import free_port

EXPLAIN: Final = (
    "-c session_preload_libraries=auto_explain -c auto_explain.log_min_duration=0"
    " -c auto_explain.log_nested_statements=on -c auto_explain.log_level=warning"
)
DELETE_UNATTRIBUTED: Final = """
SELECT accounting.delete_unattributed_reports(
    max(source_id), array_agg(session_id), 1, 0, 100, 0
) FROM accounting.sessions WHERE NOT confirmed AND phase = 0
"""
OPTIONS: Final = ["--history", "1month", "--users", "4", "--sessions", "40", "--seed", "3"]


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
    gaps = books.rows("capture_gaps")
    assert len(gaps) == expected.gaps
    assert any("made exact by their totals" in gap["detail"] for gap in gaps)
    assert not any("still live" in gap["detail"].replace("0 still live", "") for gap in gaps)
    [source] = books.rows("sources")
    assert source["source"] == "simulated"
    assert source["retired_at"] is not None
    assert {row["type"] for row in books.rows("feed")} == {
        "session.ended", "usage.counted", "period.closed", "adjustment.posted", "source.trouble"
    }  # fmt: skip
    pruning_joins_reports_without_a_nested_loop(books)
    find_each_corruption(books, expected)


def pruning_joins_reports_without_a_nested_loop(books: Books) -> None:
    """Nothing has analyzed these books yet, as after a restore."""
    notices: list[str] = []
    with psycopg.connect(books.url(), options=EXPLAIN) as connection:
        connection.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
        [(deleted,)] = connection.execute(DELETE_UNATTRIBUTED).fetchall()
        connection.rollback()
    assert deleted > 100
    [plan] = [notice for notice in notices if "Delete on reports_" in notice]
    assert "Hash Join" in plan
    assert "Nested Loop" not in plan


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
    settings: dict[str, Any] = {
        "database_url": books.url(WRITER),
        "redis_url": f"redis://127.0.0.1:{free_port()}",
        "log_level": "error",
    }
    shown = turn_accounting_on_terminal(
        "simulate", *OPTIONS, "--json", with_errors=True, **settings
    )
    assert "\rsimulating days  [" in shown
    expected = json.loads(shown.rpartition("\r")[2])
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
