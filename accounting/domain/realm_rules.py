"""A realm's rules over time: time zone, anchor day, grace and usernames."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from accounting.domain.calendar import TIME_MIN, Calendar
from accounting.domain.client_addresses import ClientAddresses
from accounting.domain.identity import UsernameRule

_SECOND: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RealmRule:
    """The rule of a realm from ``holds_from`` on (microseconds since the epoch).

    ``anchor_day``: the day of the month, 1 to 31, on which billing periods begin; the last day of
    a shorter month. ``grace_seconds``: a session expires this long after its lifetime.
    """

    holds_from: int = TIME_MIN
    time_zone: str = "UTC"
    anchor_day: int = 1
    grace_seconds: int = 60
    username_rule: UsernameRule = UsernameRule.AUTO
    separator: str = ":"


class RealmRules:
    """The rules of one realm over time.

    ``client_addresses`` is no rule over time: it holds for whatever is stored from now on.
    """

    def __init__(
        self,
        rules: Sequence[RealmRule],
        client_addresses: ClientAddresses = ClientAddresses.KEEP,
    ) -> None:
        """``rules`` in order of ``holds_from``; the first holds from TIME_MIN."""
        self.rules = tuple(rules)
        self.client_addresses = client_addresses
        self._only_grace = rules[0].grace_seconds * _SECOND if len(rules) == 1 else None
        self._starts = [rule.holds_from for rule in self.rules]
        self._hour_starts_at = self._hour_ends_at = 0
        self.calendar = Calendar([(rule.holds_from, rule.time_zone) for rule in self.rules])

    def is_like(self, other: "RealmRules") -> bool:
        """Whether both say the same."""
        return self.rules == other.rules and self.client_addresses is other.client_addresses

    def hour_at(self, time: int) -> int:
        """The start of the hour that contains ``time``. Cheap for times in ascending order."""
        if not self._hour_starts_at <= time < self._hour_ends_at:
            hour = self.calendar.hour(time)
            self._hour_starts_at, self._hour_ends_at = hour.starts_at, hour.ends_at
        return self._hour_starts_at

    def rule_at(self, time: int) -> RealmRule:
        """The rule that holds at ``time`` (microseconds since the epoch)."""
        return self.rules[bisect_right(self._starts, time) - 1]

    def grace_at(self, started_at: int) -> int:
        """The grace of sessions that started then; microseconds. Called for every report."""
        if self._only_grace is not None:
            return self._only_grace
        return self.rule_at(started_at).grace_seconds * _SECOND

    def with_change(
        self,
        changes: Mapping[str, Any],
        start: int,
        is_replaced: Callable[[RealmRule], bool],
    ) -> list[RealmRule]:
        """The rules after ``changes``, fields of RealmRule, that hold from ``start`` on.

        Other fields keep what they have at each time. Where a rule ``is_replaced``, the fields of
        ``changes`` no longer change there; a rule that then changes nothing is left out.
        """
        differences = {
            rule.holds_from: _differences(before, rule)
            for before, rule in zip((None, *self.rules), self.rules, strict=False)
        }
        for rule in self.rules[1:]:
            if is_replaced(rule):
                for field in changes:
                    differences[rule.holds_from].pop(field, None)
        differences.setdefault(start, {}).update(changes)
        rules = [self.rules[0]]
        for time in sorted(differences):
            rule = replace(rules[-1], **differences[time], holds_from=time)
            if time == TIME_MIN:
                rules = [rule]
            elif _differences(rules[-1], rule):
                rules.append(rule)
        return rules


def _differences(before: RealmRule | None, rule: RealmRule) -> dict[str, Any]:
    """The fields in which a rule differs from the one before; ``holds_from`` is not one of them."""
    if before is None:
        return {}
    return {
        field: getattr(rule, field)
        for field in RealmRule.__dataclass_fields__
        if field != "holds_from" and getattr(rule, field) != getattr(before, field)
    }
