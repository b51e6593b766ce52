"""Realms and their rules: rows of ``realms`` and ``realm_rules``."""

from typing import Final

from sqlalchemy import Connection, delete, select, update
from sqlalchemy.dialects.postgresql import insert

from accounting.db.binary_copy import binary_cursor
from accounting.db.engine import psycopg_connection
from accounting.db.queries import Queries
from accounting.db.schema import limits, realm_rules, realms, webhooks
from accounting.domain.calendar import TIME_MIN, from_micros, micros_or_none
from accounting.domain.client_addresses import ClientAddresses
from accounting.domain.identity import RadacctUsername, UsernameRule
from accounting.domain.realm_rules import RealmRule, RealmRules
from accounting.domain.text_escaping import escape
from accounting.errors import unknown_name

_QUERIES: Final = Queries("accounting.identities")

_RULES: Final = (
    "SELECT realm_id, CASE WHEN isfinite(holds_from) THEN holds_from END, time_zone, anchor_day,"
    " grace_seconds, username_rule, separator, client_addresses"
    " FROM accounting.realm_rules JOIN accounting.realms USING (realm_id)"
    " WHERE %(realm_id)s::int IS NULL OR realm_id = %(realm_id)s::int"
    " ORDER BY realm_id, holds_from"
)


def all_rules(connection: Connection) -> dict[int, RealmRules]:
    """The rules of every realm, by realm_id."""
    return _rules(connection, None)


def read_rules(connection: Connection, realm_id: int) -> RealmRules:
    """The rules of one realm."""
    return _rules(connection, realm_id)[realm_id]


def _rules(connection: Connection, realm_id: int | None) -> dict[int, RealmRules]:
    """The rules of one realm, or of every realm."""
    by_realm: dict[int, list[RealmRule]] = {}
    addresses: dict[int, ClientAddresses] = {}
    with binary_cursor(psycopg_connection(connection)) as cursor:
        rows = cursor.execute(_RULES, {"realm_id": realm_id})
        for row_realm_id, holds_from, zone, anchor, grace, rule, separator, kept in rows:
            addresses[row_realm_id] = ClientAddresses(kept)
            by_realm.setdefault(row_realm_id, []).append(
                RealmRule(
                    holds_from=TIME_MIN if holds_from is None else holds_from,
                    time_zone=zone,
                    anchor_day=anchor,
                    grace_seconds=grace,
                    username_rule=UsernameRule(rule),
                    separator=separator,
                )
            )
    return {
        realm_id: RealmRules(rules, addresses[realm_id]) for realm_id, rules in by_realm.items()
    }


def channel_prefix(realm: bytes) -> bytes:
    """What the channels of a realm begin with."""
    return b"turn/realm/" + realm + b"/user/" if realm else b"turn/user/"


def realm_ids(connection: Connection) -> dict[bytes, int]:
    """The id of every realm by its unescaped name."""
    rows = connection.execute(select(realms.c.realm_bytes, realms.c.realm_id))
    return {bytes(name): realm_id for name, realm_id in rows}


def add_realm(connection: Connection, realm: bytes, rule: RealmRule) -> int:
    """The id of a realm; inserts it with that first rule if it is new."""
    inserted = connection.execute(
        insert(realms)
        .values(realm=escape(realm), realm_bytes=realm)
        .on_conflict_do_nothing()
        .returning(realms.c.realm_id)
    ).scalar()
    if inserted is None:
        realm_id: int = connection.execute(
            select(realms.c.realm_id).where(realms.c.realm_bytes == realm)
        ).scalar_one()
        return realm_id
    insert_rule(connection, inserted, rule)
    return int(inserted)


def insert_rule(connection: Connection, realm_id: int, rule: RealmRule) -> None:
    """Insert a rule."""
    connection.execute(
        insert(realm_rules).values(
            realm_id=realm_id,
            holds_from="-infinity" if rule.holds_from == TIME_MIN else from_micros(rule.holds_from),
            time_zone=rule.time_zone,
            anchor_day=rule.anchor_day,
            grace_seconds=rule.grace_seconds,
            username_rule=rule.username_rule.value,
            separator=rule.separator,
        )
    )


def remove_realm(connection: Connection, realm_id: int) -> None:
    """Delete a realm without usage, and its rules."""
    connection.execute(delete(realm_rules).where(realm_rules.c.realm_id == realm_id))
    connection.execute(delete(realms).where(realms.c.realm_id == realm_id))


def live_tokens(connection: Connection, realm: str) -> list[int]:
    """The numbers of the tokens that read a realm, by its name in the views."""
    return list(
        connection.execute(_QUERIES.text("live_tokens_of_realm"), {"realm": realm}).scalars()
    )


def limits_of(connection: Connection, realm_id: int) -> list[int]:
    """The numbers of the limits of a realm's usage."""
    query = select(limits.c.limit_id).where(limits.c.realm_id == realm_id)
    return list(connection.execute(query.order_by("limit_id")).scalars())


def webhooks_of(connection: Connection, realm_id: int) -> list[int]:
    """The numbers of the endpoints that get events of this realm only."""
    query = select(webhooks.c.number).where(webhooks.c.realm_id == realm_id)
    return list(connection.execute(query.order_by("number")).scalars())


def replace_rules(connection: Connection, realm_id: int, rules: RealmRules) -> None:
    """Replace all rules of a realm."""
    connection.execute(delete(realm_rules).where(realm_rules.c.realm_id == realm_id))
    for rule in rules.rules:
        insert_rule(connection, realm_id, rule)


def set_client_addresses(connection: Connection, realm_id: int, kept: ClientAddresses) -> None:
    """Set what is stored of the addresses of a realm's clients."""
    connection.execute(
        update(realms).where(realms.c.realm_id == realm_id).values(client_addresses=kept.value)
    )


def accounted_until(connection: Connection, realm_id: int) -> int | None:
    """Up to when usage of a realm may be accounted, in microseconds; None without usage.

    The latest time that was received, settled or billed anywhere, or the database's now. The caller
    has locked out the loaders, settling and the roll-up.
    """
    return micros_or_none(
        connection.execute(_QUERIES.text("accounted_until"), {"realm_id": realm_id}).scalar_one()
    )


def realms_with_usage(connection: Connection) -> set[int]:
    """The realms of which any usage is accounted."""
    return set(connection.execute(_QUERIES.text("realms_with_usage")).scalars())


def names_by_id(connection: Connection) -> dict[int, str]:
    """The name of every realm as the views show it, by realm_id."""
    return dict(connection.execute(select(realms.c.realm_id, realms.c.realm)).all())


def radacct_usernames(connection: Connection) -> dict[int, RadacctUsername]:
    """How ``radacct`` names the users of every realm, by realm_id."""
    rows = connection.execute(select(realms.c.realm_id, realms.c.named_in_radacct))
    return {
        realm_id: RadacctUsername.USER_AT_REALM if is_named else RadacctUsername.USER
        for realm_id, is_named in rows
    }


def radacct_usernames_by_name(connection: Connection) -> dict[str, RadacctUsername]:
    """How ``radacct`` names the users of every realm, by its name in the views."""
    names = names_by_id(connection)
    return {names[realm_id]: form for realm_id, form in radacct_usernames(connection).items()}


def find_realm(connection: Connection, realm: str) -> int:
    """The id of a realm by its name in the views. Raises UsageError for an unknown one."""
    known = {name: realm_id for realm_id, name in names_by_id(connection).items()}
    if realm not in known:
        raise unknown_name("realm", realm, known)
    return known[realm]
