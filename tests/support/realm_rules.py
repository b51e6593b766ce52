"""Sets the rules of a realm as `realm set` does."""

from datetime import date
from typing import Any

from accounting.identities.realm_rules import set_rule
from tests.support.books import Books


def set_realm_rule(
    books: Books, realm: str, *, holds_from: date | None = None, **changes: Any
) -> None:
    """Set some rules of a realm."""
    set_rule(
        books.engine,
        realm,
        changes,
        default=books.rule,
        holds_from=holds_from,
    )


def set_time_zone(books: Books, realm: str, zone: str) -> None:
    """Set the time zone of a realm for all times."""
    set_realm_rule(books, realm, time_zone=zone)
