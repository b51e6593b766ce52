"""The cost of the same work with a million reports of history, with ten million, and with more.

At each size it runs each query of docs/sql.md, closes a period of a small realm as a dry run,
loads, settles and rolls up some of the workload, and lets its sessions expire. A figure that does
not grow means that history has no cost. Queries and closing take the best of three runs, so that
the first read from disk does not count as growth.
"""

import re
import shutil
import time
from collections.abc import Iterator
from datetime import date
from typing import Final

import psycopg

from accounting.billing.close_period import close_period
from accounting.feed.number_feed import number_feed
from benchmarks.figures import Figure, Rounds, format_number
from benchmarks.fixture import BenchmarkDatabase, benchmark_database
from benchmarks.history import BILLED_REALM, COPIED, History
from benchmarks.load import STEP_US
from benchmarks.measure import Cost, log_progress, measure
from benchmarks.scale import Scale
from benchmarks.settle import SECONDS_TO_EXPIRY
from benchmarks.spool_filler import take_messages
from benchmarks.storage import sizes
from benchmarks.workload import REALMS, Workload
from tests.support.books import READER
from tests.support.servers import PostgresServer
from tests.support.service import ROOT

QUERY: Final = re.compile(
    r"^### (\d+\. [^\n]+)\n(?:(?!^### ).)*?^```sql\n(.*?)^```$", re.DOTALL | re.MULTILINE
)
BYTES_A_REPORT: Final = 600
"""Approximate disk space for a report, with all derived rows and the WAL."""
CLOSED: Final = date(2026, 10, 1)
TRIES: Final = 3
WORK_REALMS: Final = [b"work." + realm for realm in REALMS]


def run(server: PostgresServer, scale: Scale) -> list[Figure]:
    free = shutil.disk_usage(server.data_dir).free
    wanted = scale.reports * BYTES_A_REPORT
    if wanted > free:
        raise SystemExit(
            f"{scale.reports:,} reports of history take about {wanted / 1e9:.0f} GB, and"
            f" {free / 1e9:.0f} GB are free: choose fewer with --reports"
        )
    figures: list[Figure] = []
    with benchmark_database(server) as bed:
        history = History(bed, scale)
        history.begin()
        size = history.day_reports
        while True:
            history.reach(size)
            began = time.monotonic()
            rounds = Rounds(f"growth, {format_number(size / 1e6)} M reports")
            for name, value, unit in _measure(bed, history, scale):
                rounds.add(name, value, unit)
            log_progress(f"growth: {size:,} reports measured in {time.monotonic() - began:.0f} s")
            figures += rounds.figures()
            if size >= scale.reports:
                break
            size = min(size * 10, scale.reports)
        history.books.close()
    return figures


def _measure(
    bed: BenchmarkDatabase, history: History, scale: Scale
) -> list[tuple[str, float, str]]:
    whole = sum(megabytes for _, _, megabytes in sizes(bed))
    queries = list(_queries(bed))
    close = _close(bed, history)
    work = _work(bed, history, scale)
    _delete_work(bed)
    return [*work, *close, *queries, ("on disk", whole / 1e3, "GB")]


def _work(bed: BenchmarkDatabase, history: History, scale: Scale) -> list[tuple[str, float, str]]:
    books, filler = history.books, history.filler
    mix = Workload(scale.growth_open_sessions, scale.day_users, WORK_REALMS)
    filler.append(mix.open(), STEP_US)
    books.run_jobs()
    churn, events = mix.churn(), 0
    loading, settling, rolling = Cost(), Cost(), Cost()
    while events < scale.growth_events:
        events += filler.append(take_messages(churn, scale.step_events), STEP_US)
        with loading.measuring(bed.server.pid):
            books.load()
        with settling.measuring(bed.server.pid):
            books.settle()
        with rolling.measuring(bed.server.pid):
            books.rollup()
    alive = mix.open_now
    filler.advance_clock(SECONDS_TO_EXPIRY)
    books.load()
    expiring = measure(bed.server.pid, books.settle)
    rolled = measure(bed.server.pid, books.rollup)
    number_feed(books.engine)
    micro = 1e6 / events
    wall = loading.wall + settling.wall + rolling.wall
    return [
        ("load: CPU, Postgres", loading.postgres * micro, "us/event"),
        ("settle: CPU, Postgres", settling.postgres * micro, "us/event"),
        ("roll-up: CPU, Postgres", rolling.postgres * micro, "us/event"),
        ("settle: CPU, jobs", settling.client * micro, "us/event"),
        ("load, settle, roll-up: wall", wall * micro, "us/event"),
        ("expiry: CPU, Postgres", expiring.postgres * 1e6 / alive, "us/session"),
        ("expiry: wall", expiring.wall * 1e6 / alive, "us/session"),
        ("roll-up after expiry: wall", rolled.wall * 1e3, "ms"),
    ]


def _delete_work(bed: BenchmarkDatabase) -> None:
    """Delete the rows of the measured work, so that the next size has only its history."""
    for table in (*COPIED, "user_usage_monthly", "realm_usage_monthly"):
        bed.query(
            f"DELETE FROM accounting.{table} WHERE realm_id IN (SELECT realm_id"  # noqa: S608
            " FROM accounting.realms WHERE realm LIKE 'work.%%')",
            {},
        )


def _close(bed: BenchmarkDatabase, history: History) -> list[tuple[str, float, str]]:
    spans = [
        measure(
            bed.server.pid,
            lambda: close_period(history.books.engine, BILLED_REALM.decode(), CLOSED, dry_run=True),
        )
        for _ in range(TRIES)
    ]
    return [("closing one realm's period: wall", min(span.wall for span in spans) * 1e3, "ms")]


def _queries(bed: BenchmarkDatabase) -> Iterator[tuple[str, float, str]]:
    """The time of each query, and the pages that it reads, which other processes don't affect."""
    page = (ROOT / "docs/sql.md").read_text()
    with psycopg.connect(bed.url(READER), autocommit=True) as connection:
        connection.execute("SET timezone = 'UTC'")
        for heading, query in QUERY.findall(page):
            asked = _adapt_query(query)
            best = float("inf")
            for _ in range(TRIES):
                began = time.perf_counter()
                connection.execute(asked.encode()).fetchall()
                best = min(best, time.perf_counter() - began)
            yield f"query {heading}", best * 1e3, "ms"
            (row,) = connection.execute(
                f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {asked}".encode()
            ).fetchall()
            plan = row[0][0]["Plan"]
            pages = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
            yield f"query {heading}: looks at", pages, "pages"


def _adapt_query(query: str) -> str:
    """A query of the page with a realm, a user and a time zone of the history."""
    return (
        query.replace("'example.org'", f"'{REALMS[0].decode()}'")
        .replace("'alice'", "'user000000'")
        .replace("Europe/Berlin", "UTC")
    )
