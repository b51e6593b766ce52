"""Changes of a realm's rules: what docs/billing.md say of ``realm set``."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from tests.histories.oracle import Rule, day_begins, moment
from tests.histories.plan import ZONES

FIELDS = ("time_zone", "anchor_day", "grace_seconds", "username_rule", "separator")


def rule_fields(rule: Rule) -> Iterator[tuple[str, Any]]:
    for name in FIELDS:
        yield name, getattr(rule, name)


def rule_options(changes: Mapping[str, Any]) -> list[str]:
    """The options of ``realm set``."""
    options = []
    for name, value in changes.items():
        text = value.decode() if isinstance(value, bytes) else str(value)
        options += [f"--{name.replace('_', '-')}", text]
    return options


def random_changes(chance: random.Random) -> dict[str, Any]:
    values = {
        "time_zone": chance.choice(ZONES),
        "anchor_day": chance.randint(1, 31),
        "grace_seconds": chance.choice((0, 60, 3600)),
        "username_rule": chance.choice(("auto", "rest", "plain")),
        "separator": chance.choice((b":", b"|")),
    }
    return {name: values[name] for name in chance.sample(FIELDS, chance.randint(1, 3))}


def changed_rules(
    rules: Sequence[Rule], changes: Mapping[str, Any], now: int, day: date | None
) -> list[Rule]:
    """The rules after ``changes`` that begin on a day; None: at the first midnight after now.

    They replace changes of the same fields that have not begun, from that day on; without a day,
    all of those. Other fields keep what they have at each time.
    """
    start = _start(rules, changes, now, day)
    changed: list[Rule] = []
    times = sorted({start, *[rule.holds_from for rule in rules if rule.holds_from is not None]})
    before = rules[0]
    changed = [before]
    for time in times:
        rule = _rule_at(rules, time)
        differences = {
            name: value for name, value in rule_fields(rule) if value != getattr(before, name)
        }
        first_day = moment(time).astimezone(ZoneInfo(rule.time_zone)).date()
        if time > now and (day is None or first_day >= day):
            differences = {n: value for n, value in differences.items() if n not in changes}
        if time == start:
            differences |= changes
        changed.append(replace(changed[-1], holds_from=time, **differences))
        before = rule
    return changed


def _rule_at(rules: Sequence[Rule], time: int) -> Rule:
    return [rule for rule in rules if (rule.holds_from or 0) <= time][-1]


def _start(rules: Sequence[Rule], changes: Mapping[str, Any], now: int, day: date | None) -> int:
    if day is not None:
        return day_begins(_zone(rules, changes, day), day)
    day = moment(now).date() - timedelta(days=2)
    while (start := day_begins(_zone(rules, changes, day), day)) <= now:
        day += timedelta(days=1)
    return start


def _zone(rules: Sequence[Rule], changes: Mapping[str, Any], day: date) -> str:
    zone: str = changes.get("time_zone") or _rule_at(rules, day_begins("UTC", day)).time_zone
    return zone
