"""A year of three realms in three time zones: every period, statement and adjustment.

Berlin bills by the month, New York from the 15th, Lord Howe (whose daylight saving time is half an
hour) from the first until August and from the 10th afterwards. Of the three sources one is
punctual, one always arrives after the close, and one stops in May and is retired in June.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import count, pairwise
from typing import Final
from zoneinfo import ZoneInfo

import pytest

from accounting.audit.verify import verify
from accounting.billing.adjust import adjust, post_manual_adjustment
from accounting.billing.close_period import close_period, close_periods
from accounting.domain.calendar import to_micros
from accounting.domain.counters import COUNTERS
from accounting.domain.realm_rules import RealmRule
from accounting.domain.statements import StatementCutoff, line_digest
from accounting.errors import NotYet
from accounting.identities.realm_rules import set_rule
from accounting.sources.retire import retire_source
from tests.support.books import READER, Books, channel, status_payload, traffic_payload
from tests.support.command import turn_accounting
from tests.support.invariants import assert_closed_periods_add_up

BERLIN, NEW_YORK, LORD_HOWE = "berlin.example", "newyork.example", "lordhowe.example"
ZONES: Final = {
    BERLIN: ZoneInfo("Europe/Berlin"),
    NEW_YORK: ZoneInfo("America/New_York"),
    LORD_HOWE: ZoneInfo("Australia/Lord_Howe"),
}
MONTHS: Final = [date(2025, month, 1) for month in range(1, 13)] + [date(2026, 1, 1)]
# Literal, so that they check the derivation. The last period of each realm stays open.
FIRST_DAYS: Final = {
    BERLIN: [*MONTHS, date(2026, 2, 1)],
    NEW_YORK: [date(2024, 12, 15)] + [day.replace(day=15) for day in MONTHS] + [date(2026, 2, 15)],
    LORD_HOWE: MONTHS[:8] + [day.replace(day=10) for day in MONTHS[7:]] + [date(2026, 2, 10)],
}
PUNCTUAL, LATE, DYING = "default", "late", "dying"
DYING_UNTIL: Final = datetime(2025, 5, 20, tzinfo=UTC)
CHECKS: Final = [
    datetime(2025 + month // 12, month % 12 + 1, day, 12, tzinfo=UTC)
    for month, day in sorted([*((m, 15) for m in range(13)), *((m, 1) for m in range(1, 13))])
]
"""The jobs run at noon UTC of each first and fifteenth."""

Message = tuple[int, int, bytes, bytes]
Line = tuple[str, date, str]
ZERO: Final = (0,) * 12


def starts_at(realm: str, first_day: date) -> datetime:
    return datetime(first_day.year, first_day.month, first_day.day, tzinfo=ZONES[realm]).astimezone(
        UTC
    )


def period_of(realm: str, time: datetime) -> date:
    days = FIRST_DAYS[realm]
    return max(day for day in days if starts_at(realm, day) <= time)


def ends_at(realm: str, period: date) -> datetime:
    days = FIRST_DAYS[realm]
    return starts_at(realm, days[days.index(period) + 1])


def due_periods(realm: str, check: datetime) -> list[date]:
    """The periods whose end and grace lie before a check."""
    return [
        day
        for day, after in pairwise(FIRST_DAYS[realm])
        if starts_at(realm, after) + timedelta(seconds=60) < check
    ]


@dataclass(slots=True)
class Year:
    """The messages by source, and the statement lines and adjustments expected for them."""

    messages: dict[str, list[Message]] = field(default_factory=lambda: defaultdict(list))
    statements: dict[Line, tuple[int, ...]] = field(default_factory=dict)
    adjustments: dict[tuple[str, date, date, str], tuple[int, ...]] = field(default_factory=dict)
    _ids: "count[int]" = field(default_factory=lambda: count(1))

    def add_expected(
        self, realm: str, user: str, time: datetime, source: str, *numbers: int
    ) -> None:
        """Add the numbers of a statement line, all of one time, to the expected rows."""
        period = period_of(realm, time)
        next_check = next(check for check in CHECKS if check > time)
        if source == LATE and period in due_periods(realm, next_check):
            posting = realm, period, period_of(realm, next_check), user
            sums = self.adjustments.get(posting, ZERO)
            self.adjustments[posting] = tuple(map(sum, zip(sums, numbers, strict=True)))
        else:
            line = realm, period, user
            sums = self.statements.get(line, ZERO)
            self.statements[line] = tuple(map(sum, zip(sums, numbers, strict=True)))

    def receive(self, source: str, time: datetime, name: bytes, payload: bytes) -> None:
        self.messages[source].append((to_micros(time), 0, name, payload))

    def session(
        self,
        realm: str,
        user: str,
        time: datetime,
        seconds: int,
        counts: tuple[int, int, int, int],
        source: str = PUNCTUAL,
        missed_bytes: int = 0,
    ) -> None:
        """A session within one hour; its interims miss ``missed_bytes`` of its received bytes."""
        number = next(self._ids)
        names = {
            suffix: channel(suffix, user=user, realm=realm, allocation=number)
            for suffix in ("status", "traffic", "traffic/peer", "total_traffic")
        }
        end = time + timedelta(seconds=seconds)
        middle = time + timedelta(seconds=1)
        total = counts[0], counts[1] + missed_bytes, *counts[2:]
        self.receive(source, time, names["status"], status_payload("new"))
        self.receive(source, middle, names["traffic"], traffic_payload(*counts))
        self.receive(source, middle, names["traffic/peer"], traffic_payload(*counts))
        self.receive(source, end, names["status"], status_payload("deleted"))
        self.receive(source, end, names["total_traffic"], traffic_payload(*total))
        estimated = total[1] + total[3] if missed_bytes else 0
        self.add_expected(
            realm, user, time, source, *total, *counts, 1, 1, seconds * 1_000_000, estimated
        )

    def session_across_end(self, realm: str, period: date) -> None:
        """A session from a minute before a period's end to forty seconds after it.

        Bytes belong to the period in which they were reported.
        """
        end = ends_at(realm, period)
        name = channel("status", user="owl", realm=realm, allocation=next(self._ids))
        prefix = name.removesuffix(b"status")
        begin, done = end - timedelta(seconds=60), end + timedelta(seconds=40)
        self.receive(PUNCTUAL, begin, name, status_payload("new"))
        self.receive(
            PUNCTUAL, end - timedelta(seconds=1), prefix + b"traffic", traffic_payload(1, 10, 2, 20)
        )
        self.receive(PUNCTUAL, end, prefix + b"traffic", traffic_payload(3, 30, 4, 40))
        self.receive(PUNCTUAL, done, name, status_payload("deleted"))
        self.receive(PUNCTUAL, done, prefix + b"total_traffic", traffic_payload(4, 40, 6, 60))
        no_peer = (0, 0, 0, 0)
        self.add_expected(
            realm, "owl", begin, PUNCTUAL, 1, 10, 2, 20, *no_peer, 1, 0, 60_000_000, 0
        )
        self.add_expected(realm, "owl", end, PUNCTUAL, 3, 30, 4, 40, *no_peer, 0, 1, 40_000_000, 0)


def make_year() -> Year:
    year = Year()
    for realm, zone in ZONES.items():
        for month in MONTHS[:12]:
            size = month.month
            repeated_hour = 2 if realm == BERLIN else 1

            def local(
                day: int,
                hour: int,
                minute: int = 0,
                *,
                fold: int = 0,
                month: date = month,
                zone: ZoneInfo = zone,
            ) -> datetime:
                return datetime(
                    month.year, month.month, day, hour, minute, tzinfo=zone, fold=fold
                ).astimezone(UTC)

            year.session(realm, "alice", local(3, 10), 60, (size, 1_000 * size, 7, 700))
            year.session(realm, "alice", local(27, 23, 30), 90, (2, 200, size, 100 * size))
            year.session(realm, "bob", local(12, 0), 30, (5, 500, 6, 600))
            # In autumn in both of the repeated hours; in spring before and after the skipped one.
            for zone_day in (9, 30) if size == 3 else (5, 26) if size == 10 else (2, 6):
                for fold in (0, 1):
                    year.session(
                        realm,
                        "night",
                        local(zone_day, repeated_hour, 45, fold=fold),
                        10,
                        (1, 50, 1, 60),
                    )
            for day in (8, 20):
                year.session(realm, "carol", local(day, 15), 20, (size, 10 * size, 1, 1), LATE)
            if local(18, 9) < DYING_UNTIL:
                year.session(realm, "dave", local(18, 9), 40, (9, 900, 9, 900), DYING)
        for period in FIRST_DAYS[realm][:-2]:
            year.session_across_end(realm, period)
    march_gap = datetime(2025, 3, 11, 12, tzinfo=UTC)
    year.session(BERLIN, "erin", march_gap, 120, (10, 1_000, 10, 2_000), missed_bytes=5_000)
    for messages in year.messages.values():
        messages.sort(key=lambda message: message[0])
    return year


def receive_until(books: Books, year: Year, source: str, check: datetime) -> None:
    limit = to_micros(check)
    books.receive_all(
        [message for message in year.messages[source] if message[0] < limit], source=source
    )
    year.messages[source] = [message for message in year.messages[source] if message[0] >= limit]
    books.spool(source).checkpoint(limit)


def set_realm_rules(books: Books) -> None:
    for realm, changes in (
        (BERLIN, {"time_zone": "Europe/Berlin"}),
        (NEW_YORK, {"time_zone": "America/New_York", "anchor_day": 15}),
        (LORD_HOWE, {"time_zone": "Australia/Lord_Howe"}),
    ):
        set_rule(
            books.engine,
            realm,
            changes,
            default=RealmRule(),
            holds_from=None,
        )


def close_due_periods(books: Books, check: datetime, closed: set[tuple[str, date]]) -> None:
    for realm in ZONES:
        for period in due_periods(realm, check):
            if (realm, period) not in closed:
                close_period(books.engine, realm, period, excluded_sources=[LATE])
                closed.add((realm, period))


def run_year(books: Books, year: Year) -> None:
    """At each check: receive punctual messages, close the due periods, receive late messages."""
    closed: set[tuple[str, date]] = set()
    set_realm_rules(books)
    for source in (LATE, DYING):
        receive_until(books, year, source, datetime(2025, 1, 1, tzinfo=UTC))
    for check in CHECKS:
        if check == datetime(2025, 3, 15, 12, tzinfo=UTC):
            spool = books.spool()
            gap = spool.open_gap(to_micros(check - timedelta(days=4)), "disconnected", "a cut")
            spool.close_gap(gap, to_micros(check - timedelta(days=3)))
        if check == datetime(2025, 8, 1, 12, tzinfo=UTC):
            set_rule(
                books.engine,
                LORD_HOWE,
                {"anchor_day": 10},
                default=RealmRule(),
                holds_from=date(2025, 8, 5),
            )
        receive_until(books, year, PUNCTUAL, check)
        if check <= DYING_UNTIL:
            receive_until(books, year, DYING, check)
        elif year.messages[DYING]:
            receive_until(books, year, DYING, DYING_UNTIL)
        books.run_jobs()
        assert close_periods(books.engine) == 0
        if check == datetime(2025, 6, 1, 12, tzinfo=UTC):
            with pytest.raises(NotYet, match="source 'dying' captured until 2025-05-20 00:00:00Z"):
                close_period(books.engine, BERLIN, date(2025, 5, 1), excluded_sources=[LATE])
            retire_source(books.engine, DYING)
        close_due_periods(books, check, closed)
        receive_until(books, year, LATE, check)
        books.run_jobs()
        adjust(books.engine)
        if check == datetime(2025, 7, 15, 12, tzinfo=UTC):
            post_manual_adjustment(
                books.engine,
                NEW_YORK,
                date(2025, 6, 15),
                "alice",
                {"sent_bytes": -700, "session_microseconds": -500_000},
                reason="a relay of ours was broken",
                author="frank",
            )


@pytest.mark.long
def test_a_year_is_billed_to_the_byte(books: Books) -> None:
    year = make_year()
    expected = dict(year.statements)
    run_year(books, year)
    closed = {(realm, period) for realm in ZONES for period in due_periods(realm, CHECKS[-1])}
    assert len(closed) == 12 + 13 + 13

    # Every period with its borders, and the one that is open.
    assert [
        (row["realm"], row["period"], row["starts_at"], row["ends_at"], row["state"])
        for row in books.rows("periods", order="realm, starts_at")
    ] == [
        (
            realm,
            period,
            starts_at(realm, period),
            starts_at(realm, after),
            "closed" if (realm, period) in closed else "open",
        )
        for realm in sorted(ZONES)
        for period, after in pairwise(FIRST_DAYS[realm])
    ]

    # Every line of every statement, with its digest and the excluded sources.
    lines = books.rows("statements")
    assert {
        (row["realm"], row["period"], row["user_id"]): (
            *(row[name] for name in COUNTERS),
            row["sessions_started"],
            row["sessions_ended"],
            int(row["session_seconds"] * 1_000_000),
            row["estimated_bytes"],
        )
        for row in lines
    } == {line: numbers for line, numbers in expected.items() if line[:2] in closed}
    for row in lines:
        numbers = expected[row["realm"], row["period"], row["user_id"]]
        assert row["digest"] == line_digest(
            realm=row["realm"],
            period=row["period"],
            user_key=row["user_key"],
            numbers=numbers,
            cutoff=row["cutoff"],
        )
        is_retired = ends_at(row["realm"], row["period"]) > DYING_UNTIL
        excluded = (DYING, LATE) if is_retired else (LATE,)
        assert StatementCutoff.from_text(row["cutoff"]).excluded_sources == excluded

    # Late usage of every period, posted in the period then open; and one manual adjustment.
    rows = books.rows("adjustments")
    late = {
        (row["realm"], row["period"], row["posted_in"], row["user_id"]): (
            *(row[name] for name in COUNTERS),
            int(row["session_seconds"] * 1_000_000),
        )
        for row in rows
        if row["author"] == "turn-accounting"
    }
    assert late == {
        posting: (*numbers[:8], numbers[10]) for posting, numbers in year.adjustments.items()
    }
    last_late = datetime(2026, 1, 2, tzinfo=UTC)
    assert {posting[:2] for posting in late} == {
        (realm, period) for realm, period in closed if ends_at(realm, period) < last_late
    }
    [manual] = [row for row in rows if row["author"] != "turn-accounting"]
    assert (manual["realm"], manual["period"], manual["posted_in"], manual["user_id"]) == (
        NEW_YORK,
        date(2025, 6, 15),
        date(2025, 7, 15),
        "alice",
    )
    assert (manual["sent_bytes"], manual["session_seconds"]) == (-700, Decimal("-0.5"))
    assert len(rows) == len(late) + 1

    assert_closed_periods_add_up(books)
    books.assert_conserved()
    assert list(verify(books.engine)) == []
    assert_march_is_shown_with_its_gap(books)


def assert_march_is_shown_with_its_gap(books: Books) -> None:
    march = turn_accounting("statement", BERLIN, "2025-03-01", database_url=books.url(READER))
    assert "2025-03-01 00:00 to 2025-04-01 00:00 Europe/Berlin" in march.out
    assert "disconnected" in march.out
    assert "Estimated: 8,000 of" in march.out
    assert "Closed without: late\n" in march.out
