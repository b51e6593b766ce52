"""Setting a realm's rules before the books begin, as `realm set` does."""

from datetime import date
from typing import Any

from accounting.identities.realm_rules import set_rule
from tests.support.books import Books


def set_realm_rule(
    books: Books, realm: str, *, holds_from: date | None = None, **changes: Any
) -> None:
    """Set some of a realm's rules; the clock shows the start of the books."""
    set_rule(
        books.engine,
        realm,
        changes,
        default=books.rule,
        holds_from=holds_from,
        now=books.start,
    )


def set_time_zone(books: Books, realm: str, zone: str) -> None:
    """Let a realm have that time zone from the beginning."""
    set_realm_rule(books, realm, time_zone=zone)
