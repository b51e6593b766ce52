"""What tools ask of ``radacct``: tests/data/radacct, on books of 60,000 sessions, with the plans.

The expected rows are computed here, from ``reporting.sessions``.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg.rows import class_row

from benchmarks.web_books import BEGINS_AT, FILL, NOW_AT, SIZE
from tests.support.books import READER, cloned_database
from tests.support.servers import PostgresServer

DATA: Final = Path(__file__).resolve().parents[1] / "data/radacct"
QUERIES: Final = {path.stem: path.read_text() for path in sorted(DATA.glob("*.sql"))}
SESSIONS: Final = 60_000
REALM: Final = "realm0.example.org"
OTHER_REALM: Final = "realm9.example.org"
FILLED: Final = (
    "no log", "the clock", "realms:", "rules", "sources", "numbers", "users", "usernames",
    "sessions",
)  # fmt: skip
"""The statements that fill what radacct reads."""
TWO_BOBS: Final = """
UPDATE accounting.users SET user_id = 'bob' WHERE user_key IN (
    SELECT user_key FROM (
        SELECT DISTINCT ON (realm) realm, e.user_key
        FROM accounting.sessions e JOIN accounting.realms USING (realm_id)
        WHERE e.ended_at IS NULL AND realm IN (%s, %s) ORDER BY realm, e.user_key
    ) users
)
"""
DAY: Final = datetime(2026, 11, 27, tzinfo=UTC)
EARLY: Final = datetime(2026, 11, 5, tzinfo=UTC)
STARTED_BEFORE: Final = NOW_AT - timedelta(hours=2)
SILENT_SINCE: Final = NOW_AT - timedelta(seconds=30)
USERNAME: Final = f"bob@{OTHER_REALM}"
NAS: Final = ip_address("2001:db8::53")
RESETS: Final = {
    "daily": datetime(2026, 11, 28, tzinfo=UTC),
    "weekly": datetime(2026, 11, 22, tzinfo=UTC),
    "monthly": datetime(2026, 11, 1, tzinfo=UTC),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What ``reporting.sessions`` has of a session."""

    session_id: str
    realm: str
    user_id: str
    allocation_id: str
    started_at: datetime
    last_seen_at: datetime
    ended_at: datetime | None
    client_address: str
    server_address: str
    received_bytes: int
    sent_bytes: int

    @property
    def name(self) -> str:
        return f"{self.user_id}@{self.realm}"

    @property
    def unique_id(self) -> str:
        return self.session_id.replace("-", "")

    @property
    def number(self) -> int:
        digest = sha256(bytes.fromhex(self.unique_id)).digest()
        return int.from_bytes(digest[:8]) & (2**63 - 1)

    @property
    def seconds(self) -> int:
        return ((self.ended_at or self.last_seen_at) - self.started_at) // timedelta(seconds=1)

    @property
    def bytes(self) -> int:
        return self.received_bytes + self.sent_bytes

    @property
    def client(self) -> IPv4Address | IPv6Address:
        return host(self.client_address)

    @property
    def nas(self) -> IPv4Address | IPv6Address:
        return host(self.server_address)


def host(address: str) -> IPv4Address | IPv6Address:
    return ip_address(address.rpartition(":")[0].strip("[]"))


@dataclass(frozen=True, slots=True, kw_only=True)
class RadacctBooks:
    """A filled database, and its confirmed sessions in order of their ids."""

    connection: psycopg.Connection[Any]
    sessions: list[Session]
    open: list[Session]
    of_user: list[Session]
    of_day: list[Session]

    def parameters(self, reset: datetime = DAY) -> dict[str, Any]:
        """The parameters of all queries."""
        return {
            "username": USERNAME,
            "pattern": f"%{USERNAME[:6]}%",
            "nas": str(NAS),
            "address": str(self.of_user[0].client),
            "since": DAY,
            "until": DAY + timedelta(days=1),
            "from": EARLY,
            "to": DAY,
            "started_before": STARTED_BEFORE,
            "silent_since": SILENT_SINCE,
            "reset": int(reset.timestamp()),
        }


@pytest.fixture(scope="module")
def radacct_books(postgres_server: PostgresServer) -> Iterator[RadacctBooks]:
    with cloned_database(postgres_server) as name:
        with psycopg.connect(postgres_server.url(database=name), autocommit=True) as owner:
            owner.execute(SIZE, [SESSIONS, 5_000, 500, 0, BEGINS_AT, NOW_AT])
            for statement in FILL.split("\n\n")[1:]:
                heading = statement.strip().partition("\n")[0].removeprefix("-- ")
                if heading.startswith(FILLED) and not heading.startswith("hours"):
                    owner.execute(statement.encode())
            owner.execute(TWO_BOBS, [REALM, OTHER_REALM])
            owner.execute("ANALYZE")
        with (
            psycopg.connect(
                postgres_server.url(READER, name), autocommit=True, prepare_threshold=None
            ) as connection,
            connection.cursor(row_factory=class_row(Session)) as cursor,
        ):
            connection.execute("SET timezone = 'UTC'")
            sessions = cursor.execute(
                "SELECT session_id::text, realm, user_id, allocation_id, started_at, last_seen_at,"
                " ended_at, client_address, server_address, received_bytes, sent_bytes"
                " FROM reporting.sessions ORDER BY 1"
            ).fetchall()
            day_ends = DAY + timedelta(days=1)
            yield RadacctBooks(
                connection=connection,
                sessions=sessions,
                open=[s for s in sessions if s.ended_at is None],
                of_user=[s for s in sessions if s.name == USERNAME],
                of_day=[s for s in sessions if DAY < s.started_at < day_ends],
            )


def summed(sessions: Iterable[Session]) -> tuple[int, int, int]:
    """Seconds, received and sent bytes."""
    rows = [(session.seconds, session.received_bytes, session.sent_bytes) for session in sessions]
    seconds, received, sent = (sum(column) for column in zip(*rows, strict=True))
    return seconds, received, sent


def by_name(sessions: Iterable[Session]) -> dict[str, list[Session]]:
    names = defaultdict(list)
    for session in sessions:
        names[session.name].append(session)
    return dict(sorted(names.items()))


def online_users(books: RadacctBooks) -> list[tuple[Any, ...]]:
    found = [s for s in books.open if USERNAME[:6] in s.name]
    found.sort(key=lambda s: s.allocation_id)
    found.sort(key=lambda s: s.started_at, reverse=True)
    return [
        (
            s.name, s.client, str(s.client), s.started_at, s.seconds, s.nas, str(s.nas),
            s.allocation_id, s.received_bytes, s.sent_bytes,
        )
        for s in found[:100]
    ]  # fmt: skip


def online_by_nas(books: RadacctBooks) -> list[tuple[Any, ...]]:
    names = {"192.0.2.1": "turn-1", "192.0.2.2": "turn-2", "2001:db8::53": "turn-6"}
    users = {(names[str(s.nas)], s.name) for s in books.open}
    return sorted(Counter(name for name, _ in users).items())


def accounting_of_user(books: RadacctBooks) -> list[tuple[Any, ...]]:
    return [
        (
            s.number, s.name, s.client, s.started_at, s.ended_at, s.seconds, s.received_bytes,
            s.sent_bytes, "User-Request" if s.ended_at else None, s.nas,
        )
        for s in sorted(books.of_user, key=lambda s: s.started_at, reverse=True)[:25]
    ]  # fmt: skip


def accounting_by_nas(books: RadacctBooks) -> list[tuple[Any, ...]]:
    on_nas = [s for s in books.of_day if s.nas == NAS]
    return [(n, len(of), sum(s.bytes for s in of)) for n, of in by_name(on_nas).items()]


def top_users(books: RadacctBooks) -> list[tuple[Any, ...]]:
    ended = [(s, s.ended_at) for s in books.of_day if s.ended_at]
    last: dict[str, datetime] = {}
    for session, ended_at in ended:
        last[session.name] = max(last.get(session.name, ended_at), ended_at)
    rows = [(n, last[n], *summed(of)) for n, of in by_name(s for s, _ in ended).items()]
    return sorted(rows, key=lambda row: (-row[3] - row[4], row[0]))[:10]


def traffic_by_day(books: RadacctBooks) -> list[tuple[Any, ...]]:
    days = defaultdict(list)
    for session in books.of_user:
        if session.ended_at:
            days[session.started_at.date()].append(session)
    return [(day, *summed(of)[1:]) for day, of in sorted(days.items())]


def logins_by_hour(books: RadacctBooks) -> list[tuple[Any, ...]]:
    begun = [s for s in books.sessions if DAY <= s.started_at < DAY + timedelta(days=1)]
    counts = Counter((s.realm, s.started_at.hour) for s in begun)
    return [(*key, count) for key, count in sorted(counts.items())]


def octets_of_period(books: RadacctBooks) -> list[tuple[Any, ...]]:
    found = [s for s in books.sessions if s.ended_at is None or s.ended_at > DAY]
    return [(name, *summed(of)[1:]) for name, of in by_name(found).items()]


BY_USER: Final = ("users_by_radacct_name", "sessions_closed_by_user")
LIVE: Final = ("sessions_closed_live",)
OPEN_OF_USER: Final = ("users_by_radacct_name",)
BY_TIME: Final = ("sessions_closed_by_realm",)
EXPECTED: Final[
    dict[str, tuple[tuple[str, ...], Callable[[RadacctBooks], list[tuple[Any, ...]]]]]
] = {
    "online_users": ((), online_users),
    "online_count": (LIVE, lambda books: [(len({s.name for s in books.open}),)]),
    "online_by_nas": (LIVE, online_by_nas),
    "open_on_nas": (
        LIVE,
        lambda books: [
            (s.unique_id,) for s in books.open if s.nas == NAS and s.started_at <= STARTED_BEFORE
        ],
    ),
    "silent_sessions": (
        LIVE,
        lambda books: [(s.unique_id,) for s in books.open if s.last_seen_at < SILENT_SINCE],
    ),
    "simultaneous_use": (
        OPEN_OF_USER,
        lambda books: [(sum(s.ended_at is None for s in books.of_user),)],
    ),
    "simultaneous_use_check": (
        OPEN_OF_USER,
        lambda books: [
            (s.number, s.allocation_id, s.name, s.nas, s.allocation_id, s.client, str(s.client), "")
            for s in books.of_user
            if s.ended_at is None
        ],
    ),
    "accounting_of_user": (BY_USER, accounting_of_user),
    "accounting_of_user_between": (
        BY_USER[:1],
        lambda books: [
            (len(found := [s for s in books.of_user if EARLY < s.started_at < DAY]), *summed(found))
        ],
    ),
    "accounting_by_address": (
        ("sessions_closed_by_client",),
        lambda books: [
            (s.unique_id, s.name, s.started_at, int(s.client_address.rpartition(":")[2]))
            for s in books.sessions
            if s.client_address.startswith(books.of_user[0].client_address.rpartition(":")[0] + ":")
        ],
    ),
    "accounting_by_nas": (BY_TIME, accounting_by_nas),
    "top_users": (BY_TIME, top_users),
    "traffic_by_day": (BY_USER, traffic_by_day),
    "logins_by_hour": (BY_TIME, logins_by_hour),
    "session_time_ever": (BY_USER, lambda books: [(summed(books.of_user)[0],)]),
    "first_login": (BY_USER, lambda books: [(min(s.started_at for s in books.of_user),)]),
    "octets_ever": (BY_USER, lambda books: [(sum(s.bytes for s in books.of_user),)]),
    "octets_of_period": (("sessions_closed_by_end", *LIVE), octets_of_period),
}
"""For each query the indexes that its plan has, and its rows."""


def seconds_since(books: RadacctBooks, reset: datetime) -> float:
    return sum(
        s.seconds - max(int(reset.timestamp()) - s.started_at.timestamp(), 0)
        for s in books.of_user
        if s.started_at.timestamp() + s.seconds > int(reset.timestamp())
    )


def bytes_since(books: RadacctBooks, reset: datetime) -> int:
    return sum(s.bytes for s in books.of_user if s.started_at > reset)


COUNTERS_SINCE: Final = {"session_time_since": seconds_since, "octets_since": bytes_since}


def test_every_query_is_proved_here() -> None:
    assert sorted([*EXPECTED, *COUNTERS_SINCE]) == list(QUERIES)


def test_the_books_have_what_the_queries_are_about(radacct_books: RadacctBooks) -> None:
    assert len(radacct_books.sessions) > SESSIONS * 0.99
    assert len({s.realm for s in radacct_books.sessions if s.user_id == "bob"}) == 2
    ended = [s for s in radacct_books.of_user if s.ended_at]
    assert len(ended) > 5
    assert len(ended) < len(radacct_books.of_user)
    assert {s.client.version for s in radacct_books.sessions} == {4, 6}


@pytest.mark.parametrize("name", EXPECTED)
def test_query_has_the_rows_of_the_sessions(radacct_books: RadacctBooks, name: str) -> None:
    rows = radacct_books.connection.execute(
        QUERIES[name].encode(), radacct_books.parameters()
    ).fetchall()
    assert rows == EXPECTED[name][1](radacct_books)
    assert rows


@pytest.mark.parametrize("name", COUNTERS_SINCE)
@pytest.mark.parametrize("period", RESETS)
def test_counter_counts_since_its_reset(
    radacct_books: RadacctBooks, name: str, period: str
) -> None:
    reset = RESETS[period]
    [(count,)] = radacct_books.connection.execute(
        QUERIES[name].encode(), radacct_books.parameters(reset)
    ).fetchall()
    assert float(count) == pytest.approx(COUNTERS_SINCE[name](radacct_books, reset), abs=0.001)
    if period == "monthly":
        assert count > 0


@pytest.mark.parametrize("name", QUERIES)
def test_no_query_scans_the_sessions(radacct_books: RadacctBooks, name: str) -> None:
    lines = radacct_books.connection.execute(
        b"EXPLAIN " + QUERIES[name].encode(), radacct_books.parameters()
    ).fetchall()
    plan = "\n".join(line for (line,) in lines)
    assert "Seq Scan on sessions_closed" not in plan
    indexes, _ = EXPECTED.get(name, (BY_USER, None))
    missing = [index for index in indexes if not re.search(rf"\b{index}\b", plan)]
    assert missing == [], plan
