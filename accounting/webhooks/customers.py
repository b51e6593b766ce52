"""Whom a metering receiver bills: the customers of an endpoint, by a table or by a template.

The table has users by ``user_key``, not by name. It may have users who come later: their key is
computed from the name. Erasing a user removes its rows.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Engine, select

from accounting.db.engine import lost_connections
from accounting.db.queries import Queries
from accounting.db.schema import installation
from accounting.domain.human_text import visible
from accounting.domain.identity import user_key
from accounting.domain.spreadsheet_text import unescape_formulas
from accounting.domain.text_escaping import unescape
from accounting.errors import UsageError
from accounting.feed.reader import FeedEvent
from accounting.webhooks.endpoint_numbers import read_format
from accounting.webhooks.formats.envelope import occurred_at
from accounting.webhooks.formats.metering import EventCustomer, EventCustomers
from accounting.webhooks.formats.options import METERING_TYPES, FormatName, fill_template

MAX_CUSTOMER_LENGTH: Final = 200
_QUERIES: Final = Queries("accounting.webhooks")
HEADINGS: Final = (
    ("realm", "user", "customer"),
    ("user_key", "customer"),
    ("realm", "user", "user_key", "customer"),
)
"""The columns that a file may have; the last ones are those of the printed table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerChanges:
    """What a file changed. ``unknown``: how many of its users have no usage so far."""

    set: int
    removed: int
    unknown: int


def read_event_customers(
    connection: Connection, number: int, events: Sequence[FeedEvent], template: str | None
) -> EventCustomers:
    """Whom an endpoint bills for each of the events that count, by event_id.

    A row of the endpoint's table comes before the template.
    """
    counting = {event.event_id: event for event in events if event.type in METERING_TYPES}
    if not counting:
        return {}
    rows = connection.execute(
        _QUERIES.text("event_customers"),
        {
            "number": number,
            "event_ids": list(counting),
            "user_keys": [event.payload["user_key"] for event in counting.values()],
            "times": [occurred_at(event) for event in counting.values()],
        },
    )
    return {
        row.event_id: _event_customer(row, counting[row.event_id].realm, template) for row in rows
    }


def _event_customer(row: Any, realm: str, template: str | None) -> EventCustomer:
    customer, reason = row.customer, ""
    if customer is None and template is not None:
        if "{user}" in template and not row.user_id:
            reason = "the user has no name, and is not in the table of customers"
        else:
            names = {"realm": realm, "user": row.user_id, "user_key": str(row.user_key)}
            customer = fill_template(template, names)
    elif customer is None:
        reason = "the user is not in the table of customers"
    if customer is not None and len(customer) > MAX_CUSTOMER_LENGTH:
        reason = f"the customer would have more than {MAX_CUSTOMER_LENGTH} characters"
        customer = None
    return EventCustomer(
        customer=customer,
        reason=f"{reason} (user_key {row.user_key})" if reason else "",
        period_ends_at=row.period_ends_at,
    )


def set_customers(engine: Engine, number: int, lines: Iterable[str]) -> CustomerChanges:
    """Read a CSV file into the table of an endpoint; all of it, or nothing where a line is wrong.

    Raises UsageError, also for an endpoint whose format bills nobody.
    """
    with lost_connections(), engine.begin() as connection:
        _require_metering(connection, number)
        return write_customers(connection, number, lines)


def write_customers(connection: Connection, number: int, lines: Iterable[str]) -> CustomerChanges:
    """Write the customers of a CSV file into the table of an endpoint. Raises UsageError.

    Its columns are those of HEADINGS; ``user_key`` comes before the names. A row with an empty
    customer removes the user's; users that the file doesn't have keep theirs.
    """
    identity_key = bytes(connection.execute(select(installation.c.identity_key)).scalar_one())
    customers = _parse(lines, identity_key)
    changes = connection.execute(
        _QUERIES.text("set_customers"),
        {
            "number": number,
            "user_keys": list(customers),
            "customers": list(customers.values()),
        },
    )
    return CustomerChanges(**changes.mappings().one())


def list_customers(engine: Engine, number: int) -> list[Mapping[str, Any]]:
    """The table of an endpoint, by realm and user; realm and user are empty without usage.

    Raises UsageError for an unknown endpoint, and for one whose format bills nobody.
    """
    with lost_connections(), engine.connect() as connection:
        _require_metering(connection, number)
        rows = connection.execute(_QUERIES.text("list_customers"), {"number": number})
        return [dict(row) for row in rows.mappings()]


def _require_metering(connection: Connection, number: int) -> None:
    name = FormatName(read_format(connection, number))
    if not name.is_metering:
        raise UsageError(f"webhook {number} has no customers: its format {name} bills nobody")


def _parse(lines: Iterable[str], identity_key: bytes) -> dict[UUID, str]:
    reader = csv.DictReader(lines, strict=True)
    customers: dict[UUID, str] = {}
    seen: dict[UUID, int] = {}
    try:
        headings = set(reader.fieldnames or ())
        if headings not in map(set, HEADINGS):
            expected = " or ".join(map(",".join, HEADINGS))
            raise UsageError(f"line 1: expected the columns {expected}")
        for row in reader:
            line = reader.line_num
            if None in row or None in row.values():
                raise UsageError(f"line {line}: expected {len(headings)} values")
            key = _key(row, identity_key, line)
            if key in seen:
                raise UsageError(f"line {line}: the same user as in line {seen[key]}")
            seen[key] = line
            customers[key] = _customer(row["customer"], line)
    except csv.Error as error:
        raise UsageError(f"line {reader.line_num}: not CSV: {error}") from None
    return customers


def _key(row: Mapping[str, str], identity_key: bytes, line: int) -> UUID:
    """The user of a line: by its key, or by its names, which must be of the same user."""
    text = row.get("user_key", "")
    realm, user = row.get("realm", ""), row.get("user", "")
    if "user_key" not in row:
        return _key_of_names(realm, user, identity_key)
    try:
        key = UUID(text)
    except ValueError:
        shown = visible(text)
        raise UsageError(f"line {line}: '{shown}' is not a user_key, which is a UUID") from None
    printed = unescape_formulas(realm), unescape_formulas(user)
    keys = (_key_of_names(*names, identity_key) for names in ((realm, user), printed))
    if (realm or user) and key not in keys:
        raise UsageError(
            f"line {line}: the user_key is not that of '{visible(user)}' in '{visible(realm)}'"
        )
    return key


def _key_of_names(realm: str, user: str, identity_key: bytes) -> UUID:
    return UUID(bytes=user_key(identity_key, unescape(realm), unescape(user)))


def _customer(text: str, line: int) -> str:
    text = unescape_formulas(text)
    if len(text) > MAX_CUSTOMER_LENGTH or text != visible(text) or text != text.strip():
        raise UsageError(
            f"line {line}: '{visible(text[:MAX_CUSTOMER_LENGTH])}': expected a customer of at most "
            f"{MAX_CUSTOMER_LENGTH} printable characters, without spaces at its ends"
        )
    return text
