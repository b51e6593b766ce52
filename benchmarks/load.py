"""Load the workload from a spool into the reports, compared with a binary COPY of the same rows.

The limit copies the rows from memory into the same, emptied table in one transaction. CPU time is
that of the loader (this process) and of all Postgres processes.
"""

from datetime import UTC, datetime
from typing import Final

import psycopg

from benchmarks.figures import Figure, Rounds
from benchmarks.fixture import BenchmarkDatabase, measure_rounds
from benchmarks.measure import measure
from benchmarks.scale import Scale
from benchmarks.spool_filler import SpoolFiller, take_messages
from benchmarks.workload import Workload
from tests.support.servers import PostgresServer

START: Final = datetime(2026, 11, 2, 12, 0, tzinfo=UTC)
STEP_US: Final = 40
"""Between two messages; 25,000 messages a second."""
CHUNK_BYTES: Final = 1 << 18


def run(server: PostgresServer, scale: Scale) -> list[Figure]:
    return measure_rounds("load", server, scale, _measure)


def _measure(bed: BenchmarkDatabase, scale: Scale, rounds: Rounds) -> None:
    books = bed.books()
    mix = Workload(scale.open_sessions, scale.users)
    filler = SpoolFiller.starting_at(books.spool(), START)
    filler.append(mix.open(), STEP_US)
    books.load()
    opened = mix.messages
    events = filler.append(take_messages(mix.churn(), scale.events), STEP_US)
    bed.vacuum_and_checkpoint()
    loading = measure(bed.server.pid, books.load)
    assert bed.query("SELECT count(*) FROM accounting.reports") == [(opened + events,)]
    books.close()

    rows = _rows(bed, opened)
    bed.query("TRUNCATE accounting.reports")
    bed.vacuum_and_checkpoint()
    copying = measure(bed.server.pid, lambda: _copy(bed, rows))
    assert bed.query("SELECT count(*) FROM accounting.reports") == [(events,)]

    micro = 1e6 / events
    rounds.add("rate", events / loading.wall, "events/s")
    rounds.add("limit: a bare COPY", events / copying.wall, "events/s")
    rounds.add(
        "ratio",
        copying.wall / loading.wall,
        "",
        limit="a bare binary COPY",
        target=0.3,
        bound="at least",
    )
    rounds.add("CPU, loader", loading.client * micro, "us/event", target=11.0)
    rounds.add("CPU, Postgres", loading.postgres * micro, "us/event")
    rounds.add("limit: CPU, bare COPY's client", copying.client * micro, "us/event")
    rounds.add("limit: CPU, Postgres at a bare COPY", copying.postgres * micro, "us/event")


def _rows(bed: BenchmarkDatabase, after: int) -> list[bytes]:
    """The reports after a position in the format of binary COPY, in chunks."""
    query = (
        "COPY (SELECT * FROM accounting.reports WHERE position > %s ORDER BY position)"
        " TO STDOUT (FORMAT binary)"
    )
    with (
        psycopg.connect(bed.url()) as connection,
        connection.cursor() as cursor,
        cursor.copy(query, [after]) as copy,
    ):
        whole = b"".join(bytes(chunk) for chunk in copy)
    return [whole[at : at + CHUNK_BYTES] for at in range(0, len(whole), CHUNK_BYTES)]


def _copy(bed: BenchmarkDatabase, rows: list[bytes]) -> None:
    with (
        psycopg.connect(bed.writer_url) as connection,
        connection.cursor() as cursor,
        cursor.copy("COPY accounting.reports FROM STDIN (FORMAT binary)") as copy,
    ):
        for chunk in rows:
            copy.write(chunk)
