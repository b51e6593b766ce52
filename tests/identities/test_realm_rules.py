"""A rule begins after everything that is accounted, so that no usage has two rules."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, Final
from zoneinfo import ZoneInfo

import pytest

from accounting.audit.verify import verify
from accounting.billing.close_period import close_periods, refresh_periods
from accounting.db.locks import lock
from accounting.domain.calendar import TIME_MIN, from_micros
from accounting.domain.identity import UsernameRule, billed_user
from accounting.errors import LockHeld, UsageError
from accounting.identities import realm_queries
from accounting.identities.realm_rules import list_rules, remove_realm
from accounting.sources import source_queries
from accounting.web.access.tokens import create_token
from tests.support.books import Books, cloned_database
from tests.support.coturn_messages import FakeAllocation, run_jobs_at
from tests.support.realm_rules import set_realm_rule
from tests.support.servers import PostgresServer, wait_until

REALM: Final = "example.org"
HOUR: Final = 3600.0
DAY: Final = 24 * HOUR
CHANGES: Final[dict[str, Any]] = {
    "time_zone": "Asia/Kolkata",
    "username_rule": UsernameRule.PLAIN,
    "separator": "|",
    "grace_seconds": 5,
    "anchor_day": 15,
}


@pytest.fixture
def books(shared_books: Books) -> Books:
    return shared_books


@pytest.fixture
def own_books(postgres_server: PostgresServer, tmp_path: Path) -> Iterator[Books]:
    """Books of their own, for tests that close periods: what is closed can't be emptied."""
    with cloned_database(postgres_server) as name:
        books = Books(postgres_server, name, tmp_path)
        yield books
        books.close()


def receive_session(books: Books, until: float = HOUR) -> None:
    """Receive and account a session that is active at the end of the capture."""
    alice = FakeAllocation(books)
    alice.new(0, int(10 * DAY))
    alice.interim(until, 1, 100, 0, 0)
    run_jobs_at(books, until)


def starts(books: Books, realm: str = REALM) -> list[datetime | None]:
    return [rule["holds_from"] for rule in list_rules(books.engine, realm)]


def zones(books: Books) -> list[tuple[datetime | None, str]]:
    return [(rule["holds_from"], rule["time_zone"]) for rule in list_rules(books.engine, REALM)]


def utc(day: int, hour: int = 0, minute: int = 0, month: int = 11) -> datetime:
    return datetime(2026, month, day, hour, minute, tzinfo=UTC)


def execute(books: Books, statement: str) -> None:
    books.query(f"{statement} RETURNING 1")


@pytest.mark.parametrize("field", CHANGES)
def test_a_rule_begins_after_the_databases_now_whatever_is_received(
    books: Books, field: str
) -> None:
    receive_session(books)
    books.set_database_clock(utc(5, 23, 59))
    set_realm_rule(books, REALM, **{field: CHANGES[field]})
    [_, start] = starts(books)
    zone = ZoneInfo(CHANGES[field] if field == "time_zone" else "UTC")
    assert start is not None
    assert start.astimezone(zone).time() == datetime.min.time()
    assert timedelta(0) < start - utc(5, 23, 59) <= timedelta(days=1)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE accounting.sources SET captured_until = '2026-11-20 23:30+00'",
        "UPDATE accounting.sources SET loaded_until = '2026-11-20 23:30+00'",
        "UPDATE accounting.sources SET last_received_at = '2026-11-20 23:30+00'",
        "UPDATE accounting.settle_watermarks SET settled_until = '2026-11-20 23:30+00'",
        "UPDATE accounting.settle_watermarks SET received_at = '2026-11-20 23:30+00'",
        (
            "INSERT INTO accounting.buckets SELECT realm_id, 'hour', '2026-11-20 23:30+00',"
            " '2026-11-21 00:00+00', 'UTC', '2026a' FROM accounting.realms"
        ),
        "UPDATE accounting.fold_watermarks SET folded_until = '2026-11-20 23:30+00'",
    ],
)
def test_a_rule_begins_after_what_is_received_settled_and_billed(
    books: Books, statement: str
) -> None:
    """As after a collector's clock was ahead: the database's now is still the second."""
    receive_session(books)
    receive_session(books, 2 * HOUR)
    execute(books, statement)
    for holds_from in (date(2026, 11, 3), date(2026, 11, 20)):
        with pytest.raises(UsageError, match="the earliest day that works is 2026-11-21"):
            set_realm_rule(books, REALM, grace_seconds=5, holds_from=holds_from)
    with pytest.raises(UsageError, match="the earliest day that works is 2026-11-22"):
        set_realm_rule(books, REALM, time_zone="Asia/Tokyo", holds_from=date(2026, 11, 21))
    assert starts(books) == [None]
    set_realm_rule(books, REALM, grace_seconds=5, holds_from=date(2026, 11, 21))
    set_realm_rule(books, REALM, time_zone="Asia/Tokyo")
    assert starts(books) == [None, utc(21), utc(21, 15)]


def test_a_rule_begins_after_the_periods_that_are_closed(own_books: Books) -> None:
    receive_session(own_books)
    execute(
        own_books,
        "INSERT INTO accounting.periods SELECT realm_id, '2026-11-01', '2026-11-01',"
        " '2026-12-20', '2026-12-20', 'UTC', now(), '{}' FROM accounting.realms",
    )
    with pytest.raises(UsageError, match="the earliest day that works is 2026-12-21"):
        set_realm_rule(own_books, REALM, anchor_day=15, holds_from=date(2026, 12, 20))


def test_the_earliest_day_follows_a_source_that_only_this_realm_does_not_use(
    books: Books,
) -> None:
    """Another source may have captured, but not loaded, usage of the realm."""
    receive_session(books)
    books.advance_clock(9 * DAY, source="second")
    books.load(source="second")
    books.set_database_clock(utc(2, 13))
    set_realm_rule(books, REALM, grace_seconds=1)
    assert starts(books) == [None, utc(12)]


def test_rules_of_a_realm_without_usage_hold_from_the_beginning(books: Books) -> None:
    receive_session(books)
    set_realm_rule(books, "unseen", time_zone="Asia/Tokyo")
    assert starts(books, "unseen") == [None]
    set_realm_rule(books, "unseen", grace_seconds=9, holds_from=date(2020, 2, 3))
    set_realm_rule(books, "unseen", grace_seconds=8)
    assert starts(books, "unseen") == [None]


def test_a_realm_without_usage_is_removed(books: Books) -> None:
    """One with a user, usage or a token stays; a removed one comes again with new rules."""
    receive_session(books)
    set_realm_rule(books, "unseen", time_zone="Asia/Tokyo")
    create_token(books.engine, realm="unseen", days=None)
    with pytest.raises(UsageError, match="is read by 1 token: revoke them before"):
        remove_realm(books.engine, "unseen")
    execute(books, "UPDATE access.tokens SET revoked_at = now()")
    remove_realm(books.engine, "unseen")
    assert starts(books, "unseen") == []
    with pytest.raises(UsageError, match="no realm 'unseen' is known"):
        remove_realm(books.engine, "unseen")
    with pytest.raises(UsageError, match="has sessions or usage, and stays"):
        remove_realm(books.engine, REALM)
    bob = FakeAllocation(books, realm="unseen", allocation=2)
    bob.interim(HOUR + 1, 1, 100, 0, 0)  # unauthenticated
    run_jobs_at(books, HOUR + 2)
    assert [rule["time_zone"] for rule in list_rules(books.engine, "unseen")] == ["UTC"]
    with pytest.raises(UsageError, match="has sessions or usage, and stays"):
        remove_realm(books.engine, "unseen")


def test_a_change_of_another_kind_holds_through_rules_that_begin_later(books: Books) -> None:
    """The rule at Kolkata's midnight and the one at Greenwich's are set in either order."""
    receive_session(books)
    for changes in ({"grace_seconds": 5}, {"time_zone": "Asia/Kolkata"}):
        set_realm_rule(books, REALM, **changes)
    rules = [
        (rule["holds_from"], rule["time_zone"], rule["grace_seconds"])
        for rule in list_rules(books.engine, REALM)
    ]
    assert rules == [
        (None, "UTC", 60),
        (utc(2, 18, 30), "Asia/Kolkata", 60),
        (utc(3), "Asia/Kolkata", 5),
    ]


def test_a_change_replaces_those_of_its_kind_that_have_not_begun(books: Books) -> None:
    receive_session(books)
    set_realm_rule(books, REALM, time_zone="Asia/Tokyo")
    assert zones(books)[1:] == [(utc(2, 15), "Asia/Tokyo")]
    set_realm_rule(books, REALM, time_zone="UTC")
    assert zones(books) == [(None, "UTC")]
    set_realm_rule(books, REALM, time_zone="Asia/Tokyo", holds_from=date(2026, 12, 1))
    set_realm_rule(books, REALM, grace_seconds=5, holds_from=date(2026, 12, 5))
    set_realm_rule(books, REALM, time_zone="Europe/Berlin", holds_from=date(2026, 12, 1))
    assert zones(books)[1:] == [
        (utc(30, 23), "Europe/Berlin"),
        (utc(4, 15, month=12), "Europe/Berlin"),
    ]


def test_a_replaced_rule_leaves_no_border(books: Books) -> None:
    """Also where the current day, month and hour were drawn up to it."""
    receive_session(books)
    set_realm_rule(books, REALM, time_zone="Asia/Kolkata")
    ends = books.rows("user_usage_daily", "ends_at")
    assert ends == [{"ends_at": utc(2, 18, 30)}]
    set_realm_rule(books, REALM, time_zone="UTC")
    assert books.rows("user_usage_daily", "ends_at") == [{"ends_at": utc(3)}]
    assert books.rows("user_usage_monthly", "ends_at") == [{"ends_at": utc(1, month=12)}]
    receive_more(books, 20 * HOUR)
    assert list(verify(books.engine)) == []


def receive_more(books: Books, seconds: float) -> None:
    FakeAllocation(books).interim(seconds, 1, 100, 0, 0)
    run_jobs_at(books, seconds + 1)


def hold_rollup(books: Books, release: threading.Event) -> None:
    with books.engine.begin() as connection:
        lock(connection, "rollup")
        release.wait(30)


def hold_settling(books: Books, release: threading.Event) -> None:
    with books.engine.begin() as connection:
        lock(connection, f"settle.{books.source_id()}")
        release.wait(30)


def hold_loading(books: Books, release: threading.Event) -> None:
    with books.engine.begin() as connection:
        source_queries.lock_source(connection, "default", "subscribe")
        release.wait(30)


def hold_loading_of_a_new_source(books: Books, release: threading.Event) -> None:
    with books.engine.begin() as connection:
        source_queries.lock_source(connection, "new", "subscribe")
        release.wait(30)


@pytest.mark.parametrize(
    "hold", [hold_rollup, hold_settling, hold_loading, hold_loading_of_a_new_source]
)
def test_a_rule_is_decided_after_the_jobs_that_run(
    books: Books, hold: Callable[[Books, threading.Event], None]
) -> None:
    """Its start is not fixed before it has waited for them: they may account a later time."""
    receive_session(books)
    release = threading.Event()
    with ThreadPoolExecutor() as threads:
        try:
            holding = threads.submit(hold, books, release)
            wait_until(lambda: open_transactions(books) == 1)
            setting = threads.submit(set_realm_rule, books, REALM, time_zone="Asia/Kolkata")
            wait_until(lambda: open_transactions(books) == 2)
            wait_until(lambda: waiting_sessions(books) == 1)
            books.set_database_clock(utc(20, 12))
        finally:
            release.set()
        holding.result()
        setting.result()
    assert starts(books) == [None, utc(20, 18, 30)]


def open_transactions(books: Books) -> int:
    return count_sessions(books, "state LIKE '%%transaction%%' OR wait_event_type = 'Lock'")


def waiting_sessions(books: Books) -> int:
    return count_sessions(books, "wait_event_type = 'Lock'")


def count_sessions(books: Books, condition: str) -> int:
    [row] = books.query(
        "SELECT count(*) AS sessions FROM pg_stat_activity"  # noqa: S608
        f" WHERE datname = current_database() AND pid <> pg_backend_pid() AND ({condition})",
        [],
    )
    return int(row["sessions"])


def test_two_commands_at_once_both_hold(books: Books) -> None:
    receive_session(books)
    with ThreadPoolExecutor() as threads:
        for setting in [
            threads.submit(set_realm_rule, books, REALM, **{field: value})
            for field, value in CHANGES.items()
        ]:
            setting.result()
    *_, last = list_rules(books.engine, REALM)
    assert {field: last[field] for field in CHANGES} == CHANGES


def test_an_open_period_keeps_its_past_when_its_rule_changes(own_books: Books) -> None:
    receive_session(own_books)
    run_jobs_at(own_books, 30 * DAY)
    own_books.settle()
    set_realm_rule(own_books, REALM, anchor_day=15)
    set_realm_rule(own_books, REALM, time_zone="America/New_York")
    refresh_periods(own_books.engine)
    assert close_periods(own_books.engine) == 1
    assert [row["period"] for row in own_books.rows("periods", order="starts_at")] == [
        date(2026, 11, 1),
        date(2026, 12, 1),
    ]


class RandomTraffic:
    """Allocations of two sources in two realms, with all kinds of usernames."""

    def __init__(self, books: Books, random: Random) -> None:
        self.books = books
        self.random = random
        self.now = 0.0
        self.allocations = [
            FakeAllocation(books, realm=realm, user=user, allocation=number, source=source)
            for number, (realm, user, source) in enumerate(
                (realm, user, source)
                for realm in (REALM, "example.net")
                for user in ("alice", "1999999999:alice", "1999999999|bob", "77")
                for source in ("default", "second")
            )
        ]

    def receive(self) -> None:
        for _ in range(self.random.randrange(1, 8)):
            self.now += self.random.choice([1, 60, 400, 1900, HOUR, 3 * HOUR])
            allocation = self.random.choice(self.allocations)
            match self.random.randrange(4):
                case 0 | 1:
                    allocation.new(self.now, self.random.choice([600, 86_400]))
                case 2 | 3:
                    allocation.interim(self.now, 1, 100, 1, 50)
                case 4:
                    allocation.refreshed(self.now, self.random.choice([600, 86_400]))
                case _:
                    allocation.close(self.now, (9, 900, 9, 450), (0, 0, 0, 0))

    def run_a_job(self) -> None:
        source = self.random.choice(["default", "second"])
        match self.random.randrange(5):
            case 0 | 1:
                self.books.advance_clock(self.now, source=source)
                self.books.load(source=source, limit=self.random.randrange(1, 9))
            case 2:
                self.books.settle(self.random.randrange(1, 9))
            case 3:
                self.books.rollup()
            case _:
                close_periods(self.books.engine)

    def set_a_rule(self) -> None:
        changes: list[tuple[str, list[Any]]] = [
            (
                "time_zone",
                ["UTC", "Asia/Kolkata", "America/New_York", "Pacific/Kiritimati"],
            ),
            ("username_rule", list(UsernameRule)),
            ("separator", [":", "|"]),
            ("grace_seconds", [0, 60, 7200]),
            ("anchor_day", [1, 3, 31]),
        ]
        field, values = self.random.choice(changes)
        day = (self.books.start + timedelta(seconds=self.now)).date()
        with suppress(UsageError):  # of a day that is accounted
            set_realm_rule(
                self.books,
                self.random.choice([REALM, "example.net"]),
                holds_from=self.random.choice([None, None, day, day + timedelta(days=2)]),
                **{field: self.random.choice(values)},
            )


def assert_identities_by_the_rules(books: Books) -> None:
    """The user of each report is the one by the realm's rule of its receipt."""
    with books.engine.connect() as connection:
        rules = realm_queries.all_rules(connection)
        ids = {name: of_id for of_id, name in realm_queries.names_by_id(connection).items()}
    reports = books.query(
        "SELECT m.realm, n.username, u.user_id, p.received_at FROM accounting.reports p"
        " JOIN accounting.realms m USING (realm_id)"
        " JOIN accounting.usernames n USING (username_key, user_key)"
        " JOIN accounting.users u USING (user_key)"
    )
    assert reports
    for report in reports:
        rules_backwards = reversed(rules[ids[report["realm"]]].rules)
        rule = next(
            rule
            for rule in rules_backwards
            if rule.holds_from == TIME_MIN or from_micros(rule.holds_from) <= report["received_at"]
        )
        user = billed_user(report["username"].encode(), rule.username_rule, rule.separator.encode())
        assert report["user_id"] == user.decode(), report


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 4))]
)
def test_random_rules_while_random_traffic_settles_leave_no_difference(
    own_books: Books, seed: int
) -> None:
    traffic = RandomTraffic(own_books, Random(seed))
    for _ in range(25):
        traffic.receive()
        for _ in range(traffic.random.randrange(3)):
            traffic.run_a_job()
        if not traffic.random.randrange(3):
            traffic.set_a_rule()
    run_jobs_at(own_books, traffic.now, "default", "second")
    assert list(verify(own_books.engine)) == []
    assert_identities_by_the_rules(own_books)


@pytest.mark.parametrize("rounds", [12, pytest.param(40, marks=pytest.mark.long)])
def test_rules_set_while_other_threads_load_and_settle_leave_no_difference(
    own_books: Books, rounds: int
) -> None:
    traffic = RandomTraffic(own_books, Random(99))
    stop = threading.Event()

    def run_jobs() -> None:
        while not stop.is_set():
            with suppress(LockHeld):  # by the rule that is set
                own_books.settle(20)
                own_books.rollup()
                close_periods(own_books.engine)

    with ThreadPoolExecutor() as threads:
        try:
            jobs = threads.submit(run_jobs)
            for _ in range(rounds):
                traffic.receive()
                own_books.advance_clock(traffic.now)
                loading = threads.submit(own_books.load)
                if not traffic.random.randrange(3):
                    traffic.set_a_rule()
                loading.result()
        finally:
            stop.set()
        jobs.result()
    run_jobs_at(own_books, traffic.now, "default", "second")
    assert list(verify(own_books.engine)) == []
    assert_identities_by_the_rules(own_books)
