"""Setting a realm's rules, so that what is accounted already never changes its meaning."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Engine

from accounting.db.engine import lost_connections
from accounting.db.locks import lock
from accounting.domain.calendar import TIME_MIN, from_micros, to_micros
from accounting.domain.realm_rules import RealmRule
from accounting.domain.text_escaping import unescape
from accounting.errors import UsageError
from accounting.identities import realm_queries
from accounting.identities.bucket_queries import redraw_buckets


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

    Without a day: from the beginning for a realm without usage, else from the next midnight.
    ``changes``: fields of RealmRule. Raises UsageError for a day that is accounted already.
    """
    with lost_connections(), engine.begin() as connection:
        # By the name that the views show, which spells bytes that are no text.
        known = {name: realm_id for realm_id, name in realm_queries.names_by_id(connection).items()}
        realm_id = known.get(realm)
        if realm_id is None:
            realm_id = realm_queries.add_realm(connection, unescape(realm), default)
        rules = realm_queries.all_rules(connection)[realm_id]
        used = realm_queries.has_usage(connection, realm_id)
        start = TIME_MIN
        if holds_from is not None or used:
            before = rules.rule_at(to_micros(now))
            zone = ZoneInfo(changes.get("time_zone", before.time_zone))
            day = holds_from or now.astimezone(zone).date() + timedelta(days=1)
            midnight = datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)
            if used and midnight <= now:
                raise UsageError(
                    f"usage of realm {realm!r} on {day} is accounted already: "
                    f"choose a later day, or none for the next midnight"
                )
            start = to_micros(midnight)
        rule = replace(rules.rule_at(start), **changes, holds_from=start)
        realm_queries.upsert_rule(connection, realm_id, rule)
        if start != TIME_MIN:
            # The day and month under way may end there now; no roll-up may write them meanwhile.
            lock(connection, "rollup")
            calendar = realm_queries.all_rules(connection)[realm_id].calendar
            redraw_buckets(connection, realm_id, calendar, start)
        return rule


def realm_names(engine: Engine) -> set[str]:
    """Every realm that was ever reported or set up, as the views spell it."""
    with lost_connections(), engine.connect() as connection:
        return set(realm_queries.names_by_id(connection).values())


def list_rules(engine: Engine, realm: str | None = None) -> Iterator[dict[str, Any]]:
    """Every rule of every realm, in order of realm and time; ``holds_from`` null: always."""
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
