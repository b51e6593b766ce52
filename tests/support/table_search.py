"""Where in a database a word is stored."""

import psycopg
from psycopg.sql import SQL, Identifier

from tests.support.books import Books


def tables_containing(books: Books, word: bytes) -> set[str]:
    """The tables that contain the word, as text or as bytes."""
    with psycopg.connect(books.url()) as connection:
        tables = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'accounting'"
        ).fetchall()
        query = SQL(
            "SELECT count(*) FROM accounting.{} t WHERE position(%s in t::text) > 0"
            " OR position(%s in t::text) > 0"
        )
        return {
            name
            for (name,) in tables
            if connection.execute(
                query.format(Identifier(name)), (word.decode(), word.hex())
            ).fetchall()
            != [(0,)]
        }
