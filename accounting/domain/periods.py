"""Derive the billing periods of a realm from its rules; no other module computes them.

A period runs from local midnight of the realm's anchor day (the last day of a month that is too
short for it) to the next. A changed rule ends the current period at the rule's own first border.
Periods are half-open, contiguous, and named by their first local day.
"""

from calendar import monthrange
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final

from accounting.domain.calendar import TIME_MAX, TIME_MIN, first_instant, from_micros
from accounting.domain.realm_rules import RealmRule, RealmRules
from accounting.domain.time_zones import time_zone

LATE_USAGE_AUTHOR: Final = "turn-accounting"
"""The author of late usage, reserved: readers of the view tell the two kinds apart by it."""
NOTHING: Final = "nothing: the job that closes periods closes it next"
"""What a period waits for that can be closed."""
ITS_END: Final = "its end"
"""What the database's function ``period_waits`` returns for a period that is not over."""
ITS_GRACE: Final = "its grace"
NOT_COUNTED: Final = "everything that was received in it to be counted"
"""What a period waits for, to customers: the words of the database name sources and times."""
_DAY_MICROS: Final = 86_400_000_000
_MAX_PERIOD_MICROS: Final = 64 * _DAY_MICROS
"""Longer than any period of one rule: going back this far finds the border before a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodBounds:
    """A half-open span, ``starts_at <= t < ends_at``, microseconds since the epoch.

    ``due_at``: its end plus the realm's grace at that time; it closes when all sources are settled
    beyond it.
    """

    first_day: date
    starts_at: int
    ends_at: int
    due_at: int
    time_zone: str


def periods(rules: RealmRules, since: int, until: int) -> Iterator[PeriodBounds]:
    """The periods of a realm from the one that contains ``since`` to that of ``until``, in order.

    Times in microseconds since the epoch.
    """
    borders = _borders(rules, since)
    starts_at, first_day, time_zone = next(borders)
    for border in borders:
        ends_at = border[0]
        if ends_at > since:
            yield PeriodBounds(
                first_day=first_day,
                starts_at=starts_at,
                ends_at=ends_at,
                due_at=ends_at + rules.rule_at(ends_at).grace_seconds * 1_000_000,
                time_zone=time_zone,
            )
        if ends_at > until:
            return
        starts_at, first_day, time_zone = border


def describe_wait(waits_for: str | None, ends_at: datetime, zone_name: str) -> str:
    """What a period that is not closed waits for, as text. ``waits_for``: None for nothing."""
    if waits_for is None:
        return NOTHING
    if waits_for == ITS_END:
        return f"{ITS_END}, {ends_at.astimezone(time_zone(zone_name)):%Y-%m-%d %H:%M} {zone_name}"
    return waits_for


def wait_for_customers(waits_for: str | None) -> str | None:
    """What a period waits for, without what is the operator's."""
    return waits_for if waits_for in {None, ITS_END, ITS_GRACE} else NOT_COUNTED


def _borders(rules: RealmRules, time: int) -> Iterator[tuple[int, date, str]]:
    """(instant, local day, time zone) of the borders in order, the first not after ``time``."""
    last: date | None = None
    for index, rule in enumerate(rules.rules):
        final = index + 1 == len(rules.rules)
        holds_until = TIME_MAX if final else rules.rules[index + 1].holds_from
        first = rule.holds_from
        if first == TIME_MIN:
            # No rule came before this one: the borders may be derived from any time.
            first = min(time, holds_until - 1) - _MAX_PERIOD_MICROS
        elif final:
            # As above, but not before this rule takes effect.
            first = max(first, time - _MAX_PERIOD_MICROS)
        for instant, day in _anchor_midnights(rule, first):
            if instant >= holds_until:
                break
            # A zone that moves west can repeat a local day: only its first border counts.
            if last is None or day > last:
                last = day
                yield instant, day, rule.time_zone


def _anchor_midnights(rule: RealmRule, since: int) -> Iterator[tuple[int, date]]:
    """Local midnights of the anchor day, by one rule, that are not before ``since``."""
    zone = time_zone(rule.time_zone)
    month = from_micros(since).astimezone(zone).date().replace(day=1)
    while True:
        day = month.replace(day=min(rule.anchor_day, monthrange(month.year, month.month)[1]))
        instant = first_instant(zone, day)
        if instant >= since:
            yield instant, day
        month = (month + timedelta(days=31)).replace(day=1)
