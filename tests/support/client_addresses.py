"""Addresses as coturn publishes them, what is kept of them, and where the books have them."""

from typing import Any, Final

import psycopg
from psycopg.sql import SQL, Identifier

from accounting.domain.client_addresses import ClientAddresses
from accounting.identities.realm_rules import set_rule
from tests.support.books import Books

NETWORKS: Final[dict[str, str | None]] = {
    "198.51.100.7:50000": "198.51.100.0/24",
    "198.51.100.255": "198.51.100.0/24",
    "198.51.100.0/24": "198.51.100.0/24",
    "0.0.0.0:1": "0.0.0.0/24",
    "[2001:db8:1:2::3]:50000": "2001:db8:1::/48",
    "2001:DB8:1:2::3": "2001:db8:1::/48",
    "2001:db8:1::/48": "2001:db8:1::/48",
    "[::]:1": "::/48",
    "[fe80::1%eth0]:9": "fe80::/48",
    "[::ffff:198.51.100.7]:50000": "198.51.100.0/24",
    "::ffff:c633:6407": "198.51.100.0/24",
    "[2002:c633:6407:1::1]:50000": "198.51.100.0/24",
    "2002:c633:6407::/48": "198.51.100.0/24",
    "": None,
    "somewhere:50000": None,
    "198.51.100:1": None,
    "198.51.100.256:1": None,
    "[2001:db8:::1]:1": None,
    "1:2:3": None,
}

ADDRESS: Final = "198.51.100.7:50000"
"""Of every fake allocation."""
UNKNOWN_FORM: Final = b"new lifetime=600, client=198.51.100.7:50000"


def set_addresses(books: Books, kept: ClientAddresses, realm: str = "example.org") -> None:
    set_rule(books.engine, realm, {}, default=books.rule, holds_from=None, client_addresses=kept)


def addresses(books: Books, view: str = "sessions") -> set[str | None]:
    return {row["client_address"] for row in books.rows(view)}


def figures(books: Books) -> list[dict[str, Any]]:
    rows = books.rows("sessions", order="session_id")
    return [{name: row[name] for name in row if name != "client_address"} for row in rows]


def tables_with_addresses(books: Books) -> set[str]:
    """The tables that contain the host's address, as text or as bytes."""
    with psycopg.connect(books.url()) as connection:
        tables = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'accounting'"
        ).fetchall()
        query = SQL(
            "SELECT count(*) FROM accounting.{} t WHERE position('198.51.100.7' in t::text) > 0"
            " OR position(encode('198.51.100.7', 'hex') in t::text) > 0"
        )
        return {
            name
            for (name,) in tables
            if connection.execute(query.format(Identifier(name))).fetchone() != (0,)
        }
