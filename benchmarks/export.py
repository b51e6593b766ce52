"""Rows a second of an export in each format, compared with COPY TO of the same rows.

The rows are one day of usage for many users. COPY TO writes them as CSV in the same order, and the
client discards them. The memory of this process must not grow with the number of rows.
"""

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from accounting.export.export import export_to_directory, export_to_stream
from accounting.export.selection import ExportFormat, ExportKind, Selection
from accounting.reporting.reader import DatabaseReader
from benchmarks.figures import Figure, Rounds
from benchmarks.fixture import benchmark_database
from benchmarks.measure import log_progress, measure, peak_bytes, reset_peak, resident_bytes
from benchmarks.scale import Scale
from tests.support.servers import PostgresServer

FILL = """
INSERT INTO accounting.sources (source, mode) VALUES ('default', 'subscribe');
INSERT INTO accounting.settle_watermarks (source_id, settled_until)
    SELECT source_id, '2027-01-01' FROM accounting.sources;
INSERT INTO accounting.realms (realm, realm_bytes) VALUES ('example.org', 'example.org');
INSERT INTO accounting.buckets VALUES
    (1, 'day', '2026-11-02 00:00+00', '2026-11-03 00:00+00', 'UTC', ''),
    (1, 'month', '2026-11-01 00:00+00', '2026-12-01 00:00+00', 'UTC', '');
INSERT INTO accounting.realm_usage_monthly
VALUES (1, '2026-11-01 00:00+00', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO accounting.fold_watermarks VALUES (1, '2026-11-03 00:00+00');
INSERT INTO accounting.users
SELECT md5(n::text)::uuid, 1, 'user' || n FROM generate_series(1::bigint, {rows}) n;
INSERT INTO accounting.user_usage_daily
SELECT md5(n::text)::uuid, '2026-11-02 00:00+00', 1,
    n, n * 1000, n, n * 900, n, n * 800, n, n * 700, 3, 3, n * 1234567, 0
FROM generate_series(1::bigint, {rows}) n;
ANALYZE;
"""
SELECTION = Selection(
    kind=ExportKind.USAGE,
    realm="example.org",
    since=datetime(2026, 11, 2, tzinfo=UTC),
    until=datetime(2026, 11, 3, tzinfo=UTC),
)
COPY = (
    "COPY (SELECT * FROM reporting.user_usage_daily WHERE realm = 'example.org'"
    " AND starts_at >= '2026-11-02 00:00+00' AND starts_at < '2026-11-03 00:00+00'"
    " ORDER BY starts_at, user_key) TO STDOUT (FORMAT csv)"
)


@dataclass(slots=True)
class RowCounter:
    """Calls an export and keeps its number of rows."""

    work: Callable[[], int]
    rows: int = 0

    def __call__(self) -> None:
        self.rows = self.work()


class NullStream(io.RawIOBase):
    """A stream that discards all bytes."""

    def write(self, data: object, /) -> int:
        return len(data)  # type: ignore[arg-type]


def run(server: PostgresServer, scale: Scale) -> list[Figure]:
    """Measure COPY TO, then every format."""
    rounds = Rounds("export")
    with benchmark_database(server) as bed:
        bed.query(FILL.format(rows=scale.rows))
        bed.vacuum_and_checkpoint()
        reader = DatabaseReader(bed.url())
        before = resident_bytes(os.getpid()) / 1e6
        reset_peak()
        works: dict[str, Callable[[], int]] = {"limit: COPY TO": lambda: bare_copy(bed.url())}
        for format_ in ExportFormat:
            works[f"{format_.value}, a stream"] = to_stream(reader, format_)
            works[f"{format_.value}, a file"] = to_file(reader, format_, bed.directory)
        for number in range(scale.rounds):
            log_progress(f"export: round {number + 1} of {scale.rounds}")
            limit = 0.0
            for name, work in works.items():
                counter = RowCounter(work)
                span = measure(server.pid, counter)
                assert counter.rows == scale.rows, f"{name}: {counter.rows} of {scale.rows} rows"
                limit = limit or span.wall
                rounds.add(f"{name}: rate", scale.rows / span.wall, "rows/s")
                if name.startswith("limit"):
                    continue
                rounds.add(
                    f"{name}: ratio",
                    limit / span.wall,
                    "",
                    limit="COPY TO",
                    target=0.5 if name.startswith("csv") else None,
                    bound="at least",
                )
                rounds.add(f"{name}: CPU, client", span.client * 1e6 / scale.rows, "us/row")
        reader.close()
    rounds.add("memory over that at the start, at the most", peak_bytes() / 1e6 - before, "MB")
    return rounds.figures()


def bare_copy(url: str) -> int:
    with (
        psycopg.connect(url) as connection,
        connection.cursor() as cursor,
        cursor.copy(COPY) as copy,
    ):
        for _ in copy:
            pass
        return copy.cursor.rowcount


def to_stream(reader: DatabaseReader, format_: ExportFormat) -> Callable[[], int]:
    return lambda: export_to_stream(reader, SELECTION, format_, NullStream())


def to_file(reader: DatabaseReader, format_: ExportFormat, directory: Path) -> Callable[[], int]:
    return lambda: export_to_directory(reader, SELECTION, format_, directory).rows
