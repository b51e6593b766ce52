"""Change the rules of a realm, only for usage that is not accounted yet.

A rule begins after everything that was received, settled or billed, and after the database's now.
So each report, session and hour has the same rule whenever it is computed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

from sqlalchemy import Connection, Engine

from accounting.db.engine import lost_connections
from accounting.db.locks import lock
from accounting.domain.calendar import (
    TIME_MIN,
    Bucket,
    BucketLength,
    first_instant,
    from_micros,
    is_cut_bucket,
)
from accounting.domain.client_addresses import ClientAddresses
from accounting.domain.periods import PeriodBounds, periods
from accounting.domain.realm_rules import RealmRule, RealmRules
from accounting.domain.text_escaping import escape, unescape
from accounting.domain.time_zones import time_zone
from accounting.errors import UsageError
from accounting.identities import realm_queries
from accounting.identities.bucket_queries import redraw_buckets, redraw_limit_states
from accounting.identities.time_zone_check import check_time_zone
from accounting.identities.writer_locks import lock_out_settling_and_loaders
from accounting.plurals import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedRules:
    """A realm's rules after a change, as far as they matter from then on.

    ``rules``: in order: the one before the change, if there is one, and all from there on.
    ``client_addresses``: what the realm keeps of them from now on. ``has_usage``: whether it has
    any. ``others``: the names of the other realms.
    ``cut_month``: the month that ends where the change begins, and not at its own border.
    ``cut_period``: that period which the change ends elsewhere, and ``uncut_end``, where it ended.
    """

    rules: Sequence[RealmRule]
    client_addresses: ClientAddresses
    has_usage: bool
    others: frozenset[str]
    cut_month: Bucket | None = None
    cut_period: PeriodBounds | None = None
    uncut_end: int | None = None


def set_rule(
    engine: Engine,
    realm: str,
    changes: Mapping[str, Any],
    *,
    default: RealmRule,
    holds_from: date | None,
    client_addresses: ClientAddresses | None = None,
) -> ChangedRules:
    """Change some of a realm's rules from a day on, at midnight in its time zone.

    Without a day, they hold from the beginning for a realm without usage, else from the first
    midnight after all that is accounted. ``changes``: fields of RealmRule. They replace changes of
    the same fields that have not begun, from that day on; without a day, all of those. Waits until
    no loader, settling or roll-up runs. Raises UsageError for a day that is accounted already.

    ``client_addresses`` decides no figure: it holds at once, for whatever is loaded afterwards.
    """
    with lost_connections(), engine.begin() as connection:
        lock_rules(connection)
        return change_rules(
            connection,
            realm,
            changes,
            default=default,
            holds_from=holds_from,
            client_addresses=client_addresses,
        )


def lock_rules(connection: Connection) -> None:
    """Let everything that reads rules stand still until the transaction ends."""
    lock(connection, "rollup")  # in the order of closing
    lock_out_settling_and_loaders(connection)


def change_rules(
    connection: Connection,
    realm: str,
    changes: Mapping[str, Any],
    *,
    default: RealmRule,
    holds_from: date | None,
    client_addresses: ClientAddresses | None = None,
    accounted_elsewhere: int | None = None,
    lead_seconds: int = 0,
) -> ChangedRules:
    """As :func:`set_rule`, in a transaction that has :func:`lock_rules`.

    ``accounted_elsewhere``: up to when usage of the realm is accounted in databases with the same
    rules. ``lead_seconds``: how far ahead the change is at least, where no day is given.
    """
    if "time_zone" in changes:
        check_time_zone(connection, changes["time_zone"])
    # By the escaped name, as the views show it.
    ids = {name: realm_id for realm_id, name in realm_queries.names_by_id(connection).items()}
    realm_id = ids.get(realm)
    if realm_id is None:
        realm_id = realm_queries.add_realm(connection, unescape(realm), default)
    if client_addresses is not None:
        realm_queries.set_client_addresses(connection, realm_id, client_addresses)
    rules = realm_queries.read_rules(connection, realm_id)
    accounted_until = _latest(
        realm_queries.accounted_until(connection, realm_id), accounted_elsewhere
    )
    start = _start(realm, rules, changes, holds_from, accounted_until, lead_seconds)

    def is_replaced(rule: RealmRule) -> bool:
        if accounted_until is not None and rule.holds_from <= accounted_until:
            return False
        first_day = from_micros(rule.holds_from).astimezone(time_zone(rule.time_zone)).date()
        return holds_from is None or first_day >= holds_from

    changed = RealmRules(rules.with_change(changes, start, is_replaced))
    realm_queries.replace_rules(connection, realm_id, changed)
    if accounted_until is not None:
        # The current day and month may end elsewhere now.
        redraw_buckets(connection, realm_id, changed.calendar, accounted_until)
        redraw_limit_states(connection, realm_id, changed, accounted_until)
    before = [rule for rule in changed.rules if rule.holds_from < start]
    result = ChangedRules(
        rules=(*before[-1:], *changed.rules[len(before) :]),
        client_addresses=rules.client_addresses,
        has_usage=accounted_until is not None,
        others=frozenset(ids) - {realm},
    )
    return result if start == TIME_MIN else _with_cuts(result, rules, changed, start)


def put_rules(connection: Connection, realm: bytes, rules: RealmRules) -> bool:
    """Give a realm the rules that it has in other databases; returns whether it had others.

    In a transaction that has :func:`lock_rules`. Raises UsageError where usage is accounted by
    other rules, which stay then.
    """
    realm_id = realm_queries.add_realm(connection, realm, rules.rules[0])
    present = realm_queries.read_rules(connection, realm_id)
    if present.is_like(rules):
        return False
    accounted_until = realm_queries.accounted_until(connection, realm_id)
    if present.rules != rules.rules:
        if accounted_until is not None:
            _require_same_past(escape(realm), present, rules, accounted_until)
        realm_queries.replace_rules(connection, realm_id, rules)
        if accounted_until is not None:
            redraw_buckets(connection, realm_id, rules.calendar, accounted_until)
            redraw_limit_states(connection, realm_id, rules, accounted_until)
    realm_queries.set_client_addresses(connection, realm_id, rules.client_addresses)
    return True


def _require_same_past(
    realm: str, present: RealmRules, rules: RealmRules, accounted_until: int
) -> None:
    past, other_past = (
        [rule for rule in each.rules if rule.holds_from <= accounted_until]
        for each in (present, rules)
    )
    if past != other_past:
        raise UsageError(
            f"usage of realm {realm!r} is accounted by other rules already, up to "
            f"{from_micros(accounted_until):%Y-%m-%d %H:%M:%SZ}"
        )


def _with_cuts(
    result: ChangedRules, rules: RealmRules, changed: RealmRules, start: int
) -> ChangedRules:
    """Add what a change ends that runs until it begins."""
    last = start - 1
    month = changed.calendar.bucket(BucketLength.MONTH, last)
    is_cut = month.ends_at == start and is_cut_bucket(BucketLength.MONTH, month)
    [old_period] = periods(rules, last, last)
    [period] = periods(changed, last, last)
    return replace(
        result,
        cut_month=month if is_cut else None,
        cut_period=period if period.ends_at != old_period.ends_at else None,
        uncut_end=old_period.ends_at,
    )


def remove_realm(engine: Engine, realm: str) -> None:
    """Remove a realm of which nothing was reported, and its rules.

    Waits as :func:`set_rule` does. Raises UsageError for an unknown realm, and for one that has
    users, usage, periods, tokens, limits or webhooks.
    """
    with lost_connections(), engine.begin() as connection:
        lock_rules(connection)  # nobody resolves or accounts names of a realm until the commit
        delete_realm(connection, realm)


def delete_realm(connection: Connection, realm: str) -> None:
    """As :func:`remove_realm`, in a transaction that has :func:`lock_rules`."""
    realm_id = realm_queries.find_realm(connection, realm)
    if realm_queries.accounted_until(connection, realm_id) is not None:
        raise UsageError(
            f"realm {realm!r} has sessions or usage, and stays: only a realm of which nothing "
            "was ever reported can be removed"
        )
    if tokens := realm_queries.live_tokens(connection, realm):
        raise UsageError(
            f"realm {realm!r} is read by {counted(len(tokens), 'token')}: revoke them "
            f"before, as with `turn-accounting token revoke {tokens[0]}`"
        )
    if limits := realm_queries.limits_of(connection, realm_id):
        raise UsageError(
            f"realm {realm!r} has {counted(len(limits), 'limit')}: remove them before, as "
            f"with `turn-accounting limit remove {limits[0]}`"
        )
    if webhooks := realm_queries.webhooks_of(connection, realm_id):
        raise UsageError(
            f"{counted(len(webhooks), 'webhook')} would get nothing any more, as of realm "
            f"{realm!r} only: remove them before, as with "
            f"`turn-accounting webhook remove {webhooks[0]}`"
        )
    realm_queries.remove_realm(connection, realm_id)


def _start(
    realm: str,
    rules: RealmRules,
    changes: Mapping[str, Any],
    day: date | None,
    accounted_until: int | None,
    lead_seconds: int,
) -> int:
    """When the changes begin to hold. Raises UsageError for a day that is accounted already."""
    if day is None and accounted_until is None:
        return TIME_MIN
    if accounted_until is not None:
        earliest = _day_after(rules, changes, accounted_until)
        day = day or _day_after(rules, changes, accounted_until + lead_seconds * 1_000_000)
        if day < earliest:
            raise UsageError(
                f"usage of realm {realm!r} on {day} is accounted already, up to "
                f"{from_micros(accounted_until):%Y-%m-%d %H:%M:%SZ}: "
                f"the earliest day that works is {earliest}, also without --from"
            )
    assert day is not None
    return _midnight(rules, changes, day)


def _day_after(rules: RealmRules, changes: Mapping[str, Any], time: int) -> date:
    """The first day that begins after a time."""
    day = _local_day(rules, changes, time)
    while _midnight(rules, changes, day) <= time:
        day += timedelta(days=1)
    return day


def _latest(*times: int | None) -> int | None:
    return max((time for time in times if time is not None), default=None)


def _local_day(rules: RealmRules, changes: Mapping[str, Any], time: int) -> date:
    zone = changes.get("time_zone", rules.rule_at(time).time_zone)
    return from_micros(time).astimezone(time_zone(zone)).date()


def _midnight(rules: RealmRules, changes: Mapping[str, Any], day: date) -> int:
    """The first instant of a day in the time zone that then holds."""
    midnight_utc = first_instant(time_zone("UTC"), day)
    return first_instant(
        time_zone(changes.get("time_zone", rules.rule_at(midnight_utc).time_zone)), day
    )


def realm_names(engine: Engine) -> set[str]:
    """The names of all realms, as the views show them."""
    with lost_connections(), engine.connect() as connection:
        return set(realm_queries.names_by_id(connection).values())


def list_rules(engine: Engine, realm: str | None = None) -> Iterator[dict[str, Any]]:
    """The rules of one realm or all, by realm and time. ``holds_from`` None: from the beginning."""
    with lost_connections(), engine.connect() as connection:
        names = realm_queries.names_by_id(connection)
        rules = realm_queries.all_rules(connection)
        forms = realm_queries.radacct_usernames(connection)
    for realm_id, name in sorted(names.items(), key=lambda pair: pair[1]):
        if realm is not None and name != realm:
            continue
        for rule in rules[realm_id].rules:
            yield {
                "realm": name,
                "holds_from": None if rule.holds_from == TIME_MIN else from_micros(rule.holds_from),
                "time_zone": rule.time_zone,
                "anchor_day": rule.anchor_day,
                "grace_seconds": rule.grace_seconds,
                "username_rule": rule.username_rule.value,
                "separator": rule.separator,
                "client_addresses": rules[realm_id].client_addresses.value,
                "radacct_username": forms[realm_id].value,
            }
