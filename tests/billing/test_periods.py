"""The borders of periods: any anchor day, any zone, rules that change, nothing missing between."""

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
        (str(one.first_day), f"{from_micros(one.starts_at):%m-%d %H:%M}", one.time_zone)
        for one in periods(rules, since, until)
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


def test_half_open_the_end_of_one_is_the_start_of_the_next() -> None:
    rules = RealmRules([rule()])
    start = at(2025, 3, 1)
    assert [one.first_day.month for one in periods(rules, start, start)] == [3]
    assert [one.first_day.month for one in periods(rules, start - 1, start - 1)] == [2]


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


def test_no_two_periods_have_one_name_where_the_zone_moves_west_on_a_border() -> None:
    """The first of April begins twice: in Tokyo, then in New York. It names one period."""
    new_york = "America/New_York"
    rules = RealmRules(
        [rule(zone="Asia/Tokyo"), rule(at(2025, 4, 1, zone=new_york), zone=new_york)]
    )
    assert borders(rules, at(2025, 3, 5), at(2025, 5, 25)) == [
        ("2025-03-01", "02-28 15:00", "Asia/Tokyo"),
        ("2025-04-01", "03-31 15:00", "Asia/Tokyo"),
        ("2025-05-01", "05-01 04:00", new_york),
    ]


def test_the_grace_is_the_one_that_holds_when_the_period_ends() -> None:
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
def test_periods_cover_all_time_once_and_no_hour_lies_in_two(
    first: tuple[str, int], later: list[tuple[int, str, int]], since: int, length: int
) -> None:
    origin = date(2024, 1, 1)
    changed = [
        rule(
            at(*(origin + timedelta(days=day)).timetuple()[:3], zone=zone), zone=zone, anchor=anchor
        )
        for day, zone, anchor in later
    ]
    changed.sort(key=lambda one: one.holds_from)
    rules = RealmRules([rule(zone=first[0], anchor=first[1]), *changed])
    begin = at(2024, 1, 1) + since * DAY
    end = begin + length * DAY
    found = list(periods(rules, begin, end))
    assert found[0].starts_at <= begin < found[0].ends_at
    assert found[-1].starts_at <= end < found[-1].ends_at
    for before, after in pairwise(found):
        assert before.ends_at == after.starts_at
        assert before.first_day < after.first_day
    for one in found:
        assert one.starts_at < one.ends_at <= one.due_at
        hour = rules.calendar.bucket(BucketLength.HOUR, one.starts_at)
        assert hour.starts_at == one.starts_at
        # Wherever the walk begins, it comes by the same borders.
        assert one in list(periods(rules, begin - 200 * DAY, end + 40 * DAY))


@pytest.mark.parametrize("anchor", [1, 28])
def test_every_month_has_its_anchor_day(anchor: int) -> None:
    rules = RealmRules([rule(anchor=anchor)])
    found = list(periods(rules, at(2024, 1, 28), at(2024, 12, 28)))
    assert [one.first_day for one in found] == [date(2024, month, anchor) for month in range(1, 13)]


def test_an_anchor_that_a_month_lacks_is_its_last_day() -> None:
    rules = RealmRules([rule(anchor=31)])
    found = list(periods(rules, at(2024, 1, 31), at(2024, 6, 30) - 1))
    assert [str(one.first_day)[5:] for one in found] == [
        "01-31",
        "02-29",
        "03-31",
        "04-30",
        "05-31",
    ]
