"""A backup of a database, and its restore, as copies within the server."""

import psycopg

from tests.support.books import Books


def back_up(books: Books) -> None:
    """Copy the database."""
    books.disconnect()
    with psycopg.connect(books.server.url(), autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {books.name}_copy TEMPLATE {books.name} STRATEGY file_copy"
        )


def restore_database(books: Books) -> None:
    """Replace the database by its copy; this terminates connections to it."""
    with psycopg.connect(books.server.url(), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {books.name} WITH (FORCE)")
        connection.execute(f"ALTER DATABASE {books.name}_copy RENAME TO {books.name}")
