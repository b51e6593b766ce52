"""A realm's rules, each from the moment from which it holds: zone, anchor day, grace, usernames."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from accounting.domain.calendar import TIME_MIN, Calendar
from accounting.domain.identity import UsernameRule


@dataclass(frozen=True, slots=True, kw_only=True)
class RealmRule:
    """What holds for a realm from ``holds_from`` on (microseconds since the epoch).

    ``anchor_day``: the day of the month, 1 to 31, on which its billing periods begin; where a
    month is shorter, on its last day.
    ``grace_seconds``: how long past its lifetime a session is given before it counts as expired.
    """

    holds_from: int = TIME_MIN
    time_zone: str = "UTC"
    anchor_day: int = 1
    grace_seconds: int = 60
    username_rule: UsernameRule = UsernameRule.AUTO
    separator: str = ":"


class RealmRules:
    """The rules of one realm over time."""

    def __init__(self, rules: Sequence[RealmRule]) -> None:
        """``rules`` in order of ``holds_from``; the first holds from BEGINNING."""
        self.rules = tuple(rules)
        self._starts = [rule.holds_from for rule in self.rules]
        self.calendar = Calendar([(rule.holds_from, rule.time_zone) for rule in self.rules])

    def rule_at(self, time: int) -> RealmRule:
        """The rule that holds at ``time`` (microseconds since the epoch)."""
        return self.rules[bisect_right(self._starts, time) - 1]
