"""Change the rules of a realm, only for usage that is not accounted yet."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import Engine

from accounting.db.engine import lost_connections
from accounting.db.locks import lock
from accounting.domain.calendar import TIME_MIN, from_micros, to_micros
from accounting.domain.realm_rules import RealmRule
from accounting.domain.text_escaping import unescape
from accounting.domain.time_zones import time_zone
from accounting.errors import UsageError
from accounting.identities import realm_queries
from accounting.identities.bucket_queries import redraw_buckets
from accounting.identities.time_zone_check import check_time_zone


def set_rule(
    engine: Engine,
    realm: str,
    changes: Mapping[str, Any],
    *,
    default: RealmRule,
    holds_from: date | None,
    now: datetime,
) -> RealmRule:
    """Change some of a realm's rules from a day on, at midnight in its time zone.

    Without a day, they hold from the beginning for a realm without usage, else from the next
    midnight. ``changes``: fields of RealmRule. Raises UsageError for a day with accounted usage.
    """
    with lost_connections(), engine.begin() as connection:
        if "time_zone" in changes:
            check_time_zone(connection, changes["time_zone"])
        # By the escaped name, as the views show it.
        ids = {name: realm_id for realm_id, name in realm_queries.names_by_id(connection).items()}
        realm_id = ids.get(realm)
        if realm_id is None:
            realm_id = realm_queries.add_realm(connection, unescape(realm), default)
        rules = realm_queries.read_rules(connection, realm_id)
        has_usage = realm_queries.has_usage(connection, realm_id)
        start = TIME_MIN
        if holds_from is not None or has_usage:
            current = rules.rule_at(to_micros(now))
            zone = time_zone(changes.get("time_zone", current.time_zone))
            day = holds_from or now.astimezone(zone).date() + timedelta(days=1)
            midnight = datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)
            if has_usage and midnight <= now:
                raise UsageError(
                    f"usage of realm {realm!r} on {day} is accounted already: "
                    f"choose a later day, or none for the next midnight"
                )
            start = to_micros(midnight)
        rule = replace(rules.rule_at(start), **changes, holds_from=start)
        realm_queries.upsert_rule(connection, realm_id, rule)
        if start != TIME_MIN:
            # The current day and month may end at ``start`` now: no roll-up may write meanwhile.
            lock(connection, "rollup")
            calendar = realm_queries.read_rules(connection, realm_id).calendar
            redraw_buckets(connection, realm_id, calendar, start)
        return rule


def realm_names(engine: Engine) -> set[str]:
    """The names of all realms, as the views show them."""
    with lost_connections(), engine.connect() as connection:
        return set(realm_queries.names_by_id(connection).values())


def list_rules(engine: Engine, realm: str | None = None) -> Iterator[dict[str, Any]]:
    """The rules of one realm or all, by realm and time. ``holds_from`` None: from the beginning."""
    with lost_connections(), engine.connect() as connection:
        names = realm_queries.names_by_id(connection)
        rules = realm_queries.all_rules(connection)
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
            }
