"""The tables that grow can be distributed by user, as their keys in the catalogue show.

Reports and queues have no key. The feed has one order for all users, so it stays on one node; so do
the tables of realms, sources and their hours, and the limits, which an operator sets one by one.
"""

from tests.support.books import Books

ONE_ORDER = {"feed", "feed_outbox"}
SET_BY_OPERATORS = {"limits"}

KEYS = """
SELECT c.relname AS name, k.contype::text AS kind, array(
    SELECT a.attname::text FROM unnest(k.conkey) AS n
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = n
) AS columns
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
WHERE c.relnamespace = 'accounting'::regnamespace AND k.contype IN ('p', 'u', 'f', 'x')
"""
UNIQUE_INDEXES = """
SELECT c.relname AS name, i.relname AS index
FROM pg_index x JOIN pg_class c ON c.oid = x.indrelid JOIN pg_class i ON i.oid = x.indexrelid
WHERE c.relnamespace = 'accounting'::regnamespace AND x.indisunique AND NOT x.indisprimary
"""
COLUMNS = """
SELECT table_name::text AS name, column_name::text AS column,
    is_identity = 'YES' OR column_default LIKE 'nextval%' AS is_numbered
FROM information_schema.columns JOIN information_schema.tables USING (table_schema, table_name)
WHERE table_schema = 'accounting' AND table_type = 'BASE TABLE'
"""


def growing_user_tables(books: Books) -> set[str]:
    """The tables with rows of users that grow with usage, except the feed."""
    of_users = {row["name"] for row in books.query(COLUMNS) if row["column"] == "user_key"}
    return of_users - ONE_ORDER - SET_BY_OPERATORS


def test_no_table_has_a_foreign_key(books: Books) -> None:
    assert [row for row in books.query(KEYS) if row["kind"] in "fx"] == []


def test_primary_keys_of_tables_of_users_hold_the_user(books: Books) -> None:
    keys = {row["name"]: set(row["columns"]) for row in books.query(KEYS) if row["kind"] == "p"}
    of_users = growing_user_tables(books)
    assert {"reports", "sessions", "session_usage", "statements"} <= of_users
    assert {name for name in of_users & set(keys) if "user_key" not in keys[name]} == set()
    without_key = {name for name in of_users - set(keys) if not name.startswith("reports_")}
    assert without_key == {"reports", "usage_deltas", "periods_to_adjust", "sessions"}
    for partition in ("sessions_open", "sessions_closed"):
        assert "user_key" in keys[partition]


def test_no_table_of_users_is_unique_or_numbered_across_them(books: Books) -> None:
    of_users = growing_user_tables(books)
    unique = {row["name"] for row in books.query(UNIQUE_INDEXES)}
    numbered = {row["name"] for row in books.query(COLUMNS) if row["is_numbered"]}
    assert (unique | numbered) & of_users == set()
    assert {"feed"} == unique & ONE_ORDER
