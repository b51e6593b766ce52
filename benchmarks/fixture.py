"""A durable Postgres for the benchmarks, and an empty database for each part.

fsync, synchronous_commit and full_page_writes are on; all other settings are those of the embedded
Postgres.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg

from benchmarks.figures import Figure, Rounds
from benchmarks.measure import log_progress
from benchmarks.scale import Scale
from tests.support.books import WRITER, Books, cloned_database, make_template
from tests.support.servers import PostgresServer

SHOWN_SETTINGS: Final = (
    "server_version",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "shared_buffers",
    "max_wal_size",
)


@contextmanager
def durable_postgres(settings: Mapping[str, str]) -> Iterator[PostgresServer]:
    """A Postgres with the template database and additional ``settings``."""
    with PostgresServer(fsync=True, settings=settings) as server:
        make_template(server)
        yield server


def server_settings(server: PostgresServer) -> dict[str, str]:
    """The server settings that affect the figures."""
    with psycopg.connect(server.url()) as connection:
        rows = connection.execute(
            "SELECT name, current_setting(name) FROM unnest(%s::text[]) name",
            [list(SHOWN_SETTINGS)],
        ).fetchall()
        return {str(name): str(value) for name, value in rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkDatabase:
    """An empty database and a directory, which are removed at the end of the part."""

    server: PostgresServer
    name: str
    directory: Path

    def url(self, role: str | None = None) -> str:
        return self.server.url(role, self.name)

    @property
    def writer_url(self) -> str:
        return self.url(WRITER)

    def books(self, spool: Path | None = None) -> Books:
        """The books with their spools in a directory."""
        return Books(self.server, self.name, spool or self.directory)

    def query(self, query: str, parameters: Mapping[str, Any] | None = None) -> list[Any]:
        """Rows of a query, as the superuser."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            cursor = connection.execute(query.encode(), parameters)
            return cursor.fetchall() if cursor.description else []

    def sums(self, view: str, columns: Iterable[str]) -> list[int]:
        """The sums of columns over a view of ``reporting``."""
        sums = ", ".join(f"coalesce(sum({name}), 0)" for name in columns)
        (row,) = self.query(f"SELECT {sums} FROM reporting.{view}")  # noqa: S608
        return [int(value) for value in row]

    def wal_bytes(self) -> int:
        """The bytes that Postgres has written to its WAL so far."""
        (row,) = self.query("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")
        return int(row[0])

    def vacuum_and_checkpoint(self) -> None:
        """Update the statistics and flush dirty pages, which would affect the next figure."""
        self.query("VACUUM ANALYZE")
        self.query("CHECKPOINT")


@contextmanager
def benchmark_database(server: PostgresServer) -> Iterator[BenchmarkDatabase]:
    with cloned_database(server) as name, tempfile.TemporaryDirectory(prefix="ta-bench-") as home:
        yield BenchmarkDatabase(server=server, name=name, directory=Path(home))


def measure_rounds(
    part: str,
    server: PostgresServer,
    scale: Scale,
    measure: Callable[[BenchmarkDatabase, Scale, Rounds], None],
) -> list[Figure]:
    """Measure a part in ``scale.rounds`` rounds, each in an empty database."""
    rounds = Rounds(part)
    for number in range(scale.rounds):
        log_progress(f"{part}: round {number + 1} of {scale.rounds}")
        with benchmark_database(server) as bed:
            measure(bed, scale, rounds)
    return rounds.figures()
