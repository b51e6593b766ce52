"""The borders of periods: any anchor day, any zone, rules that change."""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Final
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounting.domain.calendar import TIME_MIN, BucketLength, from_micros, to_micros
from accounting.domain.identity import UsernameRule
from accounting.domain.periods import PeriodBounds, periods
from accounting.domain.realm_rules import RealmRule, RealmRules

DAY: Final = 86_400_000_000
ZONES: Final = (
    "UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu",
    "America/Santiago", "Pacific/Kiritimati", "Pacific/Pago_Pago", "Africa/Cairo",
)  # fmt: skip


def at(year: int, month: int, day: int, hour: int = 0, *, zone: str = "UTC") -> int:
    return to_micros(datetime(year, month, day, hour, tzinfo=ZoneInfo(zone)).astimezone(UTC))


def rule(holds_from: int = TIME_MIN, zone: str = "UTC", anchor: int = 1) -> RealmRule:
    return RealmRule(holds_from=holds_from, time_zone=zone, anchor_day=anchor)


def borders(rules: RealmRules, since: int, until: int) -> list[tuple[str, str, str]]:
    return [
        (str(bounds.first_day), f"{from_micros(bounds.starts_at):%m-%d %H:%M}", bounds.time_zone)
        for bounds in periods(rules, since, until)
    ]


def test_a_period_runs_from_local_midnight_of_the_anchor_day_to_the_next() -> None:
    rules = RealmRules([rule(zone="Europe/Berlin", anchor=15)])
    [march, april] = periods(rules, at(2025, 3, 20), at(2025, 4, 20))
    assert march == PeriodBounds(
        first_day=date(2025, 3, 15),
        starts_at=at(2025, 3, 14, 23),
        ends_at=at(2025, 4, 14, 22),
        due_at=at(2025, 4, 14, 22) + 60_000_000,
        time_zone="Europe/Berlin",
    )
    assert (april.first_day, april.starts_at) == (date(2025, 4, 15), march.ends_at)


def test_periods_are_half_open() -> None:
    rules = RealmRules([rule()])
    start = at(2025, 3, 1)
    assert [bounds.first_day.month for bounds in periods(rules, start, start)] == [3]
    assert [bounds.first_day.month for bounds in periods(rules, start - 1, start - 1)] == [2]


def test_a_changed_anchor_ends_the_period_under_way_at_its_next_border() -> None:
    rules = RealmRules([rule(), rule(at(2025, 3, 10), anchor=20)])
    assert borders(rules, at(2025, 2, 5), at(2025, 4, 25)) == [
        ("2025-02-01", "02-01 00:00", "UTC"),
        ("2025-03-01", "03-01 00:00", "UTC"),
        ("2025-03-20", "03-20 00:00", "UTC"),
        ("2025-04-20", "04-20 00:00", "UTC"),
    ]


def test_a_changed_zone_ends_the_period_under_way_at_its_next_border() -> None:
    rules = RealmRules([rule(), rule(at(2025, 3, 10, zone="Asia/Tokyo"), zone="Asia/Tokyo")])
    assert borders(rules, at(2025, 3, 5), at(2025, 4, 25)) == [
        ("2025-03-01", "03-01 00:00", "UTC"),
        ("2025-04-01", "03-31 15:00", "Asia/Tokyo"),
    ]


def test_periods_have_distinct_names_when_the_zone_moves_west_on_a_border() -> None:
    """The first of April begins twice, in Tokyo and in New York. It names one period."""
    new_york = "America/New_York"
    rules = RealmRules(
        [rule(zone="Asia/Tokyo"), rule(at(2025, 4, 1, zone=new_york), zone=new_york)]
    )
    assert borders(rules, at(2025, 3, 5), at(2025, 5, 25)) == [
        ("2025-03-01", "02-28 15:00", "Asia/Tokyo"),
        ("2025-04-01", "03-31 15:00", "Asia/Tokyo"),
        ("2025-05-01", "05-01 04:00", new_york),
    ]


def test_the_grace_is_that_of_the_rule_at_the_end_of_the_period() -> None:
    rules = RealmRules(
        [
            RealmRule(grace_seconds=10),
            RealmRule(
                holds_from=at(2025, 4, 1), grace_seconds=300, username_rule=UsernameRule.AUTO
            ),
        ]
    )
    [february, march] = periods(rules, at(2025, 2, 5), at(2025, 3, 5))
    assert february.due_at - february.ends_at == 10_000_000
    assert march.due_at - march.ends_at == 300_000_000


changes = st.lists(
    st.tuples(st.integers(0, 900), st.sampled_from(ZONES), st.integers(1, 31)),
    max_size=4,
    unique_by=lambda change: change[0],
)


@given(
    first=st.tuples(st.sampled_from(ZONES), st.integers(1, 31)),
    later=changes,
    since=st.integers(-400, 1200),
    length=st.integers(0, 400),
)
def test_periods_cover_all_time_once_and_split_no_hour(
    first: tuple[str, int], later: list[tuple[int, str, int]], since: int, length: int
) -> None:
    origin = date(2024, 1, 1)
    changed = [
        rule(
            at(*(origin + timedelta(days=day)).timetuple()[:3], zone=zone), zone=zone, anchor=anchor
        )
        for day, zone, anchor in later
    ]
    changed.sort(key=lambda rule: rule.holds_from)
    rules = RealmRules([rule(zone=first[0], anchor=first[1]), *changed])
    begin = at(2024, 1, 1) + since * DAY
    end = begin + length * DAY
    derived = list(periods(rules, begin, end))
    assert derived[0].starts_at <= begin < derived[0].ends_at
    assert derived[-1].starts_at <= end < derived[-1].ends_at
    for before, after in pairwise(derived):
        assert before.ends_at == after.starts_at
        assert before.first_day < after.first_day
    for bounds in derived:
        assert bounds.starts_at < bounds.ends_at <= bounds.due_at
        hour = rules.calendar.bucket(BucketLength.HOUR, bounds.starts_at)
        assert hour.starts_at == bounds.starts_at
        # The borders don't depend on where the derivation starts.
        assert bounds in list(periods(rules, begin - 200 * DAY, end + 40 * DAY))


@pytest.mark.parametrize("anchor", [1, 28])
def test_every_month_has_its_anchor_day(anchor: int) -> None:
    rules = RealmRules([rule(anchor=anchor)])
    derived = list(periods(rules, at(2024, 1, 28), at(2024, 12, 28)))
    assert [bounds.first_day for bounds in derived] == [
        date(2024, month, anchor) for month in range(1, 13)
    ]


def test_an_anchor_day_that_a_month_lacks_is_its_last_day() -> None:
    rules = RealmRules([rule(anchor=31)])
    derived = list(periods(rules, at(2024, 1, 31), at(2024, 6, 30) - 1))
    assert [str(bounds.first_day)[5:] for bounds in derived] == [
        "01-31",
        "02-29",
        "03-31",
        "04-30",
        "05-31",
    ]
