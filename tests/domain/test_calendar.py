"""Hours, days and months are contiguous, half-open and nested, in every time zone."""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Final
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from accounting.domain.calendar import (
    TIME_MAX,
    TIME_MIN,
    Bucket,
    BucketLength,
    Calendar,
    from_micros,
    to_micros,
)
from accounting.domain.realm_rules import RealmRule, RealmRules
from accounting.domain.time_zones import time_zone_names

SECOND: Final = 1_000_000
HOUR: Final = 3600 * SECOND
ZONES: Final = sorted(time_zone_names())
FIRST, LAST = (to_micros(datetime(year, 1, 1, tzinfo=UTC)) for year in (1990, 2040))


def micros(text: str) -> int:
    """Microseconds of an ISO time; UTC if it has no offset."""
    time = datetime.fromisoformat(text)
    return to_micros(time if time.tzinfo else time.replace(tzinfo=UTC))


def calendar(zone: str) -> Calendar:
    return Calendar([(TIME_MIN, zone)])


def span(zone: str, level: BucketLength, time: str) -> tuple[str, str]:
    """Start and end of the bucket around a time, as UTC."""
    bucket = calendar(zone).bucket(level, micros(time))
    start, end = (
        from_micros(bound).strftime("%m-%d %H:%M") for bound in (bucket.starts_at, bucket.ends_at)
    )
    return start, end


def borders(zone: str, level: BucketLength, start: str, end: str) -> list[str]:
    """Every border of a level within [start, end], as UTC."""
    starts, time = [], micros(start)
    while time <= micros(end):
        starts.append(from_micros(time).strftime("%m-%d %H:%M"))
        time = calendar(zone).bucket(level, time).ends_at
    return starts


@lru_cache(maxsize=64)
def clock_changes(zone: str) -> list[int]:
    """The changes of the local clock from 1990 to 2040, to the second."""
    info, step = ZoneInfo(zone), 6 * 24 * HOUR

    def offset(time: int) -> timedelta | None:
        return from_micros(time).astimezone(info).utcoffset()

    changes = []
    for start in range(FIRST, LAST, step):
        before, after = start, start + step
        if offset(before) == offset(after):
            continue
        while after - before > SECOND:
            middle = (before + after) // 2 // SECOND * SECOND
            before, after = (middle, after) if offset(middle) == offset(start) else (before, middle)
        changes.append(after)
    return changes


@st.composite
def times(draw: st.DrawFn, zone: str) -> int:
    """Any time; half of them close to a change of the local clock, if the zone has any."""
    changes = clock_changes(zone)
    near_a_change = draw(st.booleans())
    if changes and near_a_change:
        near, edges = draw(st.sampled_from(changes)), [-HOUR, -1, 0, 1, HOUR - 1, HOUR]
        return near + draw(st.sampled_from(edges) | st.integers(-26 * HOUR, 26 * HOUR))
    return draw(st.integers(FIRST, LAST))


@settings(max_examples=120, deadline=None)
@given(st.data(), st.sampled_from(ZONES))
def test_buckets_of_every_zone_are_contiguous_half_open_and_nested(
    data: st.DataObject, zone: str
) -> None:
    time = data.draw(times(zone))
    zone_calendar = calendar(zone)
    hour, day, month = (zone_calendar.bucket(level, time) for level in BucketLength)
    for level, bucket in zip(BucketLength, (hour, day, month), strict=True):
        assert bucket.starts_at <= time < bucket.ends_at
        assert zone_calendar.bucket(level, bucket.starts_at) == bucket
        assert zone_calendar.bucket(level, bucket.ends_at - 1) == bucket
        assert zone_calendar.bucket(level, bucket.ends_at).starts_at == bucket.ends_at
        assert zone_calendar.bucket(level, bucket.starts_at - 1).ends_at == bucket.starts_at
    assert month.starts_at <= day.starts_at <= hour.starts_at
    assert hour.ends_at <= day.ends_at <= month.ends_at
    assert zone_calendar.hour(time) == hour


@settings(max_examples=80, deadline=None)
@given(st.data(), st.sampled_from(ZONES))
def test_borders_are_those_of_the_local_clock_and_calendar(data: st.DataObject, zone: str) -> None:
    """An hour ends at a full hour or a jump; a day at the first instant of a later local date."""
    time = data.draw(times(zone))
    info = ZoneInfo(zone)

    def local(instant: int) -> datetime:
        return from_micros(instant).astimezone(info)

    hour, day, month = (calendar(zone).bucket(level, time) for level in BucketLength)
    for border in (hour.starts_at, hour.ends_at):
        full_hour = (local(border).minute, local(border).second) == (0, 0)
        assert full_hour or local(border).utcoffset() != local(border - 1).utcoffset()
    assert local(hour.starts_at).utcoffset() == local(hour.ends_at - 1).utcoffset()
    assert local(hour.starts_at).hour == local(hour.ends_at - 1).hour
    assert hour.ends_at - hour.starts_at <= HOUR
    for border in (day.starts_at, day.ends_at, month.starts_at, month.ends_at):
        before = [border - 1, *range(border - 26 * HOUR, border, HOUR // 2)]
        assert local(border).date() > max(local(instant).date() for instant in before)
    inside = range(day.starts_at, day.ends_at, HOUR // 2)
    assert {local(instant).date() for instant in inside} <= {
        local(day.starts_at).date(),
        # Where the clock went back over midnight.
        local(day.starts_at).date() - timedelta(days=1),
    }
    assert local(month.starts_at).month == local(month.ends_at - 1).month


@given(st.sampled_from(ZONES), st.integers(FIRST, LAST), st.integers(0, 40 * HOUR))
@settings(max_examples=100, deadline=None)
@example("Australia/Lord_Howe", micros("2026-04-04T14:00"), 2 * HOUR)
def test_the_hours_of_a_span_cover_it_in_order(zone: str, start: int, length: int) -> None:
    hours = calendar(zone).hours(start, start + length)
    assert hours[0].starts_at <= start < hours[0].ends_at
    assert hours[-1].starts_at <= start + length < hours[-1].ends_at
    for before, after in pairwise(hours):
        assert before.ends_at == after.starts_at


def test_an_empty_span_has_the_hour_of_its_start_also_on_a_border() -> None:
    (hour,) = calendar("UTC").hours(micros("2026-11-02T12:00"), micros("2026-11-02T12:00"))
    assert hour == Bucket(
        starts_at=micros("2026-11-02T12:00"), ends_at=micros("2026-11-02T13:00"), time_zone="UTC"
    )


def test_hours_of_kolkata_begin_at_half_past_utc() -> None:
    zone = "Asia/Kolkata"
    assert span(zone, BucketLength.HOUR, "2026-11-02T12:29:59.999999") == (
        "11-02 11:30",
        "11-02 12:30",
    )
    assert span(zone, BucketLength.HOUR, "2026-11-02T12:30") == ("11-02 12:30", "11-02 13:30")
    assert span(zone, BucketLength.DAY, "2026-11-02T18:30") == ("11-02 18:30", "11-03 18:30")
    assert span(zone, BucketLength.MONTH, "2026-11-30T18:29") == ("10-31 18:30", "11-30 18:30")


def test_a_day_of_new_york_has_23_hours_in_march_and_25_in_november() -> None:
    zone = "America/New_York"
    assert span(zone, BucketLength.DAY, "2026-03-08T12:00") == ("03-08 05:00", "03-09 04:00")
    assert span(zone, BucketLength.DAY, "2026-11-01T12:00") == ("11-01 04:00", "11-02 05:00")
    assert borders(zone, BucketLength.HOUR, "2026-03-08T05:00", "2026-03-08T09:00") == [
        "03-08 05:00",  # 00:00 EST
        "03-08 06:00",
        "03-08 07:00",  # 03:00 EDT: there is no 02:00
        "03-08 08:00",
        "03-08 09:00",
    ]
    assert len(borders(zone, BucketLength.HOUR, "2026-11-01T04:00", "2026-11-02T05:00")) == 26
    assert span(zone, BucketLength.MONTH, "2026-11-15T00:00") == ("11-01 04:00", "12-01 05:00")


def test_lord_howe_shifts_by_half_an_hour_and_has_half_hours_there() -> None:
    zone = "Australia/Lord_Howe"
    assert borders(zone, BucketLength.HOUR, "2026-04-04T13:00", "2026-04-04T17:30") == [
        "04-04 13:00",  # 00:00 at UTC+11
        "04-04 14:00",  # 01:00
        "04-04 15:00",  # 02:00 becomes 01:30 at UTC+10:30
        "04-04 15:30",  # 02:00
        "04-04 16:30",
        "04-04 17:30",
    ]
    assert span(zone, BucketLength.DAY, "2026-04-04T20:00") == ("04-04 13:00", "04-05 13:30")
    assert borders(zone, BucketLength.HOUR, "2026-10-03T13:30", "2026-10-03T18:00") == [
        "10-03 13:30",  # 00:00 at UTC+10:30
        "10-03 14:30",  # 01:00
        "10-03 15:30",  # 02:00 becomes 02:30 at UTC+11
        "10-03 16:00",  # 03:00
        "10-03 17:00",
        "10-03 18:00",
    ]
    assert span(zone, BucketLength.DAY, "2026-10-03T20:00") == ("10-03 13:30", "10-04 13:00")


@pytest.mark.parametrize(
    ("zone", "time", "day"),
    [
        # 00:00 becomes 01:00: the day begins with the jump.
        ("America/Havana", "2026-03-08T12:00", ("03-08 05:00", "03-09 04:00")),
        ("Asia/Beirut", "2026-03-29T12:00", ("03-28 22:00", "03-29 21:00")),
        ("Africa/Cairo", "2026-04-24T12:00", ("04-23 22:00", "04-24 21:00")),
        # 01:00 becomes 00:00 of the same date: two midnights, the day begins with the first.
        ("America/Havana", "2025-11-02T12:00", ("11-02 04:00", "11-03 05:00")),
        # 00:00 becomes 23:00 of the day before, which goes on.
        ("Asia/Beirut", "2026-10-24T12:00", ("10-23 21:00", "10-24 22:00")),
        ("Africa/Cairo", "2026-10-29T12:00", ("10-28 21:00", "10-29 22:00")),
        # 00:01 becomes 23:01 of the day before: the day that had begun goes on.
        ("America/St_Johns", "2010-11-07T02:45", ("11-07 02:30", "11-08 03:30")),
        ("America/St_Johns", "2010-11-07T02:29", ("11-06 02:30", "11-07 02:30")),
        # There was no 30 December 2011.
        ("Pacific/Apia", "2011-12-30T09:59", ("12-29 10:00", "12-30 10:00")),
        ("Pacific/Apia", "2011-12-30T10:00", ("12-30 10:00", "12-31 10:00")),
    ],
)
def test_odd_midnights_end_a_day_at_the_first_instant_of_the_next_date(
    zone: str, time: str, day: tuple[str, str]
) -> None:
    assert span(zone, BucketLength.DAY, time) == day


@pytest.mark.parametrize("zone", ["America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"])
def test_the_hours_of_a_year_add_up_to_its_days_and_its_months(zone: str) -> None:
    zone_calendar = calendar(zone)
    start, end = (
        zone_calendar.bucket(BucketLength.MONTH, micros(f"{year}-01-15T00:00")).starts_at
        for year in (2026, 2027)
    )
    for level in BucketLength:
        time = start
        while time < end:
            time = zone_calendar.bucket(level, time).ends_at
        assert time == end
    assert end - start == 365 * 24 * HOUR


def test_a_change_of_zone_ends_the_hour_day_and_month() -> None:
    change = micros("2026-11-09T18:30")  # midnight of the tenth in Kolkata
    zone_calendar = Calendar([(TIME_MIN, "UTC"), (change, "Asia/Kolkata")])
    for level, start, end in (
        (BucketLength.HOUR, "2026-11-09T18:00", "2026-11-09T19:30"),
        (BucketLength.DAY, "2026-11-09T00:00", "2026-11-10T18:30"),
        (BucketLength.MONTH, "2026-11-01T00:00", "2026-11-30T18:30"),
    ):
        assert zone_calendar.bucket(level, change - 1) == Bucket(
            starts_at=micros(start), ends_at=change, time_zone="UTC"
        )
        assert zone_calendar.bucket(level, change) == Bucket(
            starts_at=change, ends_at=micros(end), time_zone="Asia/Kolkata"
        )


def test_a_rule_that_keeps_the_zone_ends_no_bucket() -> None:
    change = micros("2026-11-10T00:00")
    rules = RealmRules([RealmRule(), RealmRule(holds_from=change, grace_seconds=5)])
    assert rules.calendar.bucket(BucketLength.MONTH, change) == Bucket(
        starts_at=micros("2026-11-01T00:00"), ends_at=micros("2026-12-01T00:00"), time_zone="UTC"
    )
    assert [rules.rule_at(change - 1).grace_seconds, rules.rule_at(change).grace_seconds] == [60, 5]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(ZONES), min_size=2, max_size=2),
    st.integers(FIRST, LAST),
    st.integers(-30 * HOUR, 30 * HOUR),
)
def test_buckets_stay_contiguous_and_nested_over_a_change_of_zone(
    zones: list[str], change: int, distance: int
) -> None:
    zone_calendar = Calendar([(TIME_MIN, zones[0]), (change, zones[1])])
    time = change + distance
    hour, day, month = (zone_calendar.bucket(level, time) for level in BucketLength)
    for level, bucket in zip(BucketLength, (hour, day, month), strict=True):
        assert bucket.starts_at <= time < bucket.ends_at
        assert zone_calendar.bucket(level, bucket.ends_at).starts_at == bucket.ends_at
        assert zone_calendar.bucket(level, bucket.starts_at - 1).ends_at == bucket.starts_at
    assert month.starts_at <= day.starts_at <= hour.starts_at
    assert hour.ends_at <= day.ends_at <= month.ends_at


def test_a_calendar_covers_all_times() -> None:
    with pytest.raises(ValueError, match="from the beginning"):
        Calendar([(0, "UTC")])
    with pytest.raises(ValueError, match="from the beginning"):
        Calendar([])
    assert TIME_MIN < FIRST < LAST < TIME_MAX


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_become_microseconds_and_back_without_loss(time: datetime) -> None:
    assert from_micros(to_micros(time)) == time
