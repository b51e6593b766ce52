"""Books with a month of sessions for benchmarks of readers, filled by SQL within minutes.

``web_books.sql`` inserts what the service would have derived, so that views and pages answer as
they would over real books. A directory can keep the filled database for later runs of the same
schema and sizes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psycopg

from accounting.embedded import run_postgres
from benchmarks.fixture import benchmark_database
from benchmarks.measure import log_progress
from benchmarks.scale import Scale
from tests.support.books import make_template
from tests.support.servers import PostgresServer

FILL: Final = (Path(__file__).parent / "web_books.sql").read_text()
DATABASE: Final = "web_books"
UNFINISHED: Final = "web_books_unfinished"
LARGEST_REALM: Final = "realm0.example.org"
BEGINS_AT: Final = datetime(2026, 10, 30, tzinfo=UTC)
NOW_AT: Final = datetime(2026, 11, 28, 15, 20, tzinfo=UTC)
SIZE: Final = """
CREATE TEMP TABLE size AS
SELECT %s::bigint AS sessions, %s::bigint AS users, %s::bigint AS live, %s::bigint AS feed_events,
    %s::timestamptz AS begins_at, %s::timestamptz AS now_at
"""
FILLING: Final = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "1GB"}


class KeptPostgres(PostgresServer):
    """A Postgres in a directory that stays."""

    def __init__(self, directory: Path, settings: dict[str, str]) -> None:
        super().__init__(fsync=True, settings=settings)
        self.data_dir.rmdir()
        self.data_dir = directory

    def start(self) -> None:
        self._context = run_postgres(self.data_dir, settings=self.settings)
        self._running = self._last = self._context.__enter__()

    def __exit__(self, *_: object) -> None:
        self.stop()


@contextmanager
def web_books(server: PostgresServer, scale: Scale) -> Iterator[tuple[PostgresServer, str]]:
    """A server and its database with filled books: in ``scale.kept``, or to be removed."""
    if scale.kept is None:
        with benchmark_database(server) as bed:
            fill(bed.url(), scale)
            yield server, bed.name
        return
    scale.kept.mkdir(parents=True, exist_ok=True)
    with KeptPostgres(scale.kept, FILLING) as filling:
        if not _is_filled(filling):
            _command(filling, f"DROP DATABASE IF EXISTS {UNFINISHED}")
            make_template(filling, UNFINISHED)
            fill(filling.url(database=UNFINISHED), scale)
            _command(filling, f"ALTER DATABASE {UNFINISHED} RENAME TO {DATABASE}")
    with KeptPostgres(scale.kept, {}) as kept:
        yield kept, DATABASE


def _command(server: PostgresServer, command: str) -> None:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(command.encode())


def _is_filled(server: PostgresServer) -> bool:
    with psycopg.connect(server.url()) as connection:
        names = connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE])
        return names.fetchone() is not None


def fill(url: str, scale: Scale) -> None:
    """Fill an empty database."""
    with psycopg.connect(url, autocommit=True) as connection:
        size = (scale.web_sessions, scale.web_users, scale.web_live, scale.rows)
        connection.execute(SIZE, [*size, BEGINS_AT, NOW_AT])
        for statement in FILL.split("\n\n")[1:]:
            log_progress(statement.strip().partition("\n")[0].removeprefix("-- "))
            connection.execute(statement.encode())
