"""Every query of docs/sql.md, run by the reader on the sample books, has the expected result."""

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import psycopg
import pytest

from tests.support.books import READER, Books

PAGE: Final = (Path(__file__).resolve().parents[2] / "docs/sql.md").read_text()
QUERIES: Final[dict[str, str]] = dict(
    re.findall(
        r"^### (\d+\. [^\n]+)\n(?:(?!^### ).)*?^```sql\n(.*?)^```$",
        PAGE,
        re.DOTALL | re.MULTILINE,
    )
)


def at(day: int, hour: int = 0, minute: int = 0, second: int = 0, *, month: int = 11) -> datetime:
    return datetime(2026, month, day, hour, minute, second, tzinfo=UTC)


CLIENT: Final = "198.51.100.7:50000"
SERVER: Final = "192.0.2.1:3478"
HOSTILE: Final = "\x1b]0;owned\x07\\xff\\\\x41\n"
EXPECTED: Final[dict[str, list[tuple[Any, ...]]]] = {
    "1. Usage of a month, per user": [
        ("example.net", HOSTILE, 0, 10, 0),
        ("example.net", "carol", 0, 50, 0),
        ("example.org", "alice", 239_000, 200, 33_000),
        ("example.org", "bob", 48_200, 220, 0),
    ],
    "2. The top users of a realm": [("alice", 239_000, 2), ("bob", 48_200, 2)],
    "3. A user's sessions of a day": [
        (at(2, 22), at(2, 22, 1, 40), "deleted", CLIENT, 30_000, 3_000),
    ],
    "4. How much of a month is estimated": [
        ("example.net", 0, 0, None),
        ("example.org", 287_200, 33_000, Decimal("11.49")),
    ],
    "5. Sessions whose totals disagree": [
        (UUID("37a90000-0001-8000-8000-00000000000e"), "example.org", "bob",
         at(2, 22, 3, 20), 40_000, 500, True),
    ],
    "6. Live sessions now": [
        ("example.org", "bob", at(4, 10), at(4, 10, 2), CLIENT, SERVER, 7_700),
    ],
    "7. A realm day by day, with its peak": [
        (date(2026, 11, 1), 206_000, 1, 1),
        (date(2026, 11, 2), 73_500, 2, 1),
        (date(2026, 11, 3), 0, 0, 0),
        (date(2026, 11, 4), 7_700, 1, 1),
    ],
    "8. Traffic that belongs to no session": [
        ("example.org", "bob", 400, at(4, 10), at(4, 10)),
    ],
    "9. Capture gaps in a month": [
        ("default", "disconnected", at(1), at(1, 1), False),
        ("default", "disconnected", at(4, 12), at(1, month=12), True),
    ],
    "11. Who is nearest to a limit": [
        ("alice", "month", 239_000, 200_000, Decimal("119.5")),
        ("bob", "month", 48_200, 200_000, Decimal("24.1")),
    ],
    "12. Load per server": [("192.0.2.1", 287_200, 4, 1)],
    "13. Where to send the next session": [("192.0.2.1", 1, 0)],
}  # fmt: skip
MORE_USERS: Final = """
INSERT INTO accounting.users
SELECT md5(n::text)::uuid, realm_id, 'user' || n
FROM accounting.realms, generate_series(1, 5000) n ON CONFLICT DO NOTHING;
CREATE TEMP TABLE others AS
SELECT e.*, u.user_key AS other FROM accounting.users u
JOIN (
    SELECT * FROM accounting.sessions
    WHERE ended_at IS NOT NULL AND NOT disputed AND realm_id = 1 LIMIT 2
) e USING (realm_id);
UPDATE others SET session_id = gen_random_uuid(), user_key = other;
ALTER TABLE others DROP COLUMN other;
INSERT INTO accounting.sessions SELECT * FROM others;
ANALYZE accounting.sessions, accounting.users, accounting.realms;
"""
LAG_HEADING: Final = "10. How far behind each source is"


def run_query(books: Books, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(books.url(READER)) as connection:
        connection.execute("SET timezone = 'UTC'")
        return connection.execute(query.encode()).fetchall()


def test_the_page_has_the_queries_that_are_proved_here() -> None:
    assert list(QUERIES) == sorted(
        [*EXPECTED, LAG_HEADING], key=lambda heading: int(heading.split(".")[0])
    )
    assert len(QUERIES) == PAGE.count("```sql") == 13


@pytest.fixture
def later_clock(sample_books: Books) -> Iterator[None]:
    """It is an hour later: rates of what was just loaded are over."""
    sample_books.set_database_clock(datetime.now(UTC) + timedelta(hours=1))
    yield
    sample_books.set_database_clock()


@pytest.mark.parametrize("heading", EXPECTED)
@pytest.mark.usefixtures("later_clock")
def test_query_answers_what_its_heading_asks(sample_books: Books, heading: str) -> None:
    assert run_query(sample_books, QUERIES[heading]) == EXPECTED[heading]


def test_lag_of_a_source_is_what_is_not_captured_loaded_and_settled_yet(
    sample_books: Books,
) -> None:
    first, second = run_query(sample_books, QUERIES[LAG_HEADING])
    assert (first[0], first[2], first[3]) == ("default", timedelta(0), timedelta(0))
    assert (second[0], second[2], second[3]) == ("second", timedelta(0), timedelta(0))
    assert second[1] - first[1] == timedelta(hours=1)
    since = datetime.now(UTC) - at(4, 12)
    assert timedelta(0) <= since - first[1] < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("heading", "indexes"),
    [
        ("3. A user's sessions of a day", ("users_by_name", "sessions_by_user")),
        ("5. Sessions whose totals disagree", ("sessions_disputed",)),
        ("6. Live sessions now", ("sessions_live",)),
    ],
)
def test_query_for_few_sessions_reads_no_more_than_those(
    sample_books: Books, heading: str, indexes: tuple[str, ...]
) -> None:
    """Among sessions of 5,000 more users, all of which have ended."""
    with psycopg.connect(sample_books.url()) as connection:
        connection.execute(MORE_USERS)
        rows = connection.execute(f"EXPLAIN {QUERIES[heading]}".encode()).fetchall()
        connection.rollback()
    plan = re.sub("sessions_(open|closed)_", "sessions_", "\n".join(line for (line,) in rows))
    for index in indexes:
        assert f"{index} on" in plan or f"on {index}" in plan, plan
    assert "Seq Scan on sessions_closed" not in plan
