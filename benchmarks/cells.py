"""Cells beside one another, each a source with its own Postgres, and each with the same load.

The cost of an event must not depend on the number of cells. Afterwards a front joins them, and
reads what one database with the same sources reads: the same queries, the same rows, in turn.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Final

import psycopg

from accounting.db.engine import open_engine
from accounting.front import join
from benchmarks.figures import Figure, Rounds
from benchmarks.fixture import BenchmarkDatabase, benchmark_database, durable_postgres
from benchmarks.measure import log_progress
from benchmarks.pipeline import MeasuredRun, Pipeline
from benchmarks.scale import Scale
from tests.support.books import READER
from tests.support.servers import PostgresServer

QUERIES: Final = {
    "a user by day": "SELECT * FROM reporting.user_usage_daily WHERE realm = %(realm)s"
    " AND user_id = %(user)s",
    "all realms by month": "SELECT * FROM reporting.realm_usage_monthly ORDER BY realm",
    "newest 100 sessions": "SELECT page_session_id FROM reporting.session_page("
    "NULL, NULL, NULL, NULL, NULL, false, NULL, NULL, 100)",
    "top 10 users of all realms": "SELECT realm, user_key, received_bytes + sent_bytes"
    " FROM reporting.user_usage_monthly ORDER BY 3 DESC LIMIT 10",
    "all users of a realm by month": "SELECT user_key, received_bytes"
    " FROM reporting.user_usage_monthly WHERE realm = %(realm)s ORDER BY user_key",
}
READINGS: Final = 20


def run(server: PostgresServer, scale: Scale) -> list[Figure]:
    figures: list[Figure] = []
    for count in scale.cells:
        with running_cells(server, scale, count) as (beds, lines):
            rounds = Rounds(f"cells, {count}")
            add_cells_cpu(rounds, publish(lines, scale))
            for line in lines:
                line.check(line.stop_publishing())
            figures += rounds.figures()
            if count == max(scale.cells):
                figures += compare_front(server, scale, beds)
    return figures


@contextmanager
def running_cells(
    server: PostgresServer, scale: Scale, count: int
) -> Iterator[tuple[list[BenchmarkDatabase], list[Pipeline]]]:
    """So many cells whose sessions are open. The first one is in the benchmark's own server."""
    with ExitStack() as stack:
        beds, lines = [], []
        for number in range(count):
            own = server if number == 0 else stack.enter_context(durable_postgres({}))
            beds.append(stack.enter_context(cell_database(own)))
            lines.append(stack.enter_context(Pipeline(beds[-1], scale, first_source=number)))
            log_progress(f"cell {number + 1} of {count}, opening {scale.open_sessions:,} sessions")
            lines[-1].open_sessions()
        yield beds, lines


@contextmanager
def cell_database(server: PostgresServer) -> Iterator[BenchmarkDatabase]:
    """An empty database with the key of this benchmark's installation."""
    with benchmark_database(server) as bed:
        bed.query("UPDATE accounting.installation SET identity_key = sha256('cells')")
        yield bed


def publish(lines: Sequence[Pipeline], scale: Scale) -> list[MeasuredRun]:
    """Publish to all cells at once, to each at the rate of a source."""
    with ThreadPoolExecutor(len(lines)) as pool:
        return list(
            pool.map(lambda line: line.run(scale.sources_rate, scale.sources_seconds), lines)
        )


def add_cells_cpu(rounds: Rounds, stretches: Sequence[MeasuredRun]) -> None:
    """Add the rate and the CPU time for each message over all cells."""
    sent = sum(stretch.sent for stretch in stretches)
    rounds.add("rate, published", sum(stretch.rate for stretch in stretches), "events/s")
    rounds.add("usage behind, most", max(stretch.max_lag for stretch in stretches), "s")
    for kind in stretches[0].cpu:
        seconds = sum(stretch.cpu[kind] for stretch in stretches)
        rounds.add(f"CPU, {kind}", seconds * 1e6 / max(sent, 1), "us/event")
    everything = sum(sum(stretch.cpu.values()) for stretch in stretches)
    rounds.add("CPU, all of it", everything * 1e6 / max(sent, 1), "us/event")


def compare_front(
    server: PostgresServer, scale: Scale, beds: Sequence[BenchmarkDatabase]
) -> list[Figure]:
    """Read the same from a front over these cells, and from one database with as many sources."""
    rounds = Rounds(f"front, {len(beds)} cells")
    of_all = replace(
        scale,
        open_sessions=scale.open_sessions * len(beds),
        users=scale.users * len(beds),
        sources_rate=scale.sources_rate * len(beds),
    )
    with cell_database(server) as front, cell_database(server) as whole:
        with Pipeline(whole, of_all, sources=len(beds)) as line:
            line.open_sessions()
            publish([line], of_all)
            line.stop_publishing()
        engine = open_engine(front.url())
        join.make_front(engine)
        for number, bed in enumerate(beds):
            join.join_cell(engine, f"cell-{number}", bed.url(), None)
        engine.dispose()
        for bed in (*beds, whole):
            bed.vacuum_and_checkpoint()
        with psycopg.connect(front.url(READER)) as over, psycopg.connect(whole.url(READER)) as one:
            for name, query in QUERIES.items():
                for connection in (over, one):
                    read(connection, query)  # plans and caches
                times: dict[str, list[float]] = {"front": [], "one database": []}
                for _ in range(READINGS):
                    times["front"].append(read(over, query))
                    times["one database"].append(read(one, query))
                for where, seconds in times.items():
                    rounds.add(f"{name}, {where}", sorted(seconds)[READINGS // 2] * 1e3, "ms")
    return rounds.figures()


def read(connection: psycopg.Connection, query: str) -> float:
    """The seconds that a query takes with its rows."""
    began = time.perf_counter()
    connection.execute(query.encode(), parameters()).fetchall()
    connection.rollback()
    return time.perf_counter() - began


def parameters() -> dict[str, Any]:
    """A realm of the first source, and one of its users."""
    return {"realm": "0.example.org", "user": "user000000"}
