"""Creates many days of history in the books.

The service itself makes the last day (spool, load, settle, roll up). SQL copies it to every earlier
day, with shifted times, positions, allocation ids and session ids. The columns come from the
catalogue, so that a changed table needs no change here. All days have the same users; months are
summed from the days.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Final

import psycopg

from accounting.feed.number_feed import number_feed
from accounting.identities.realm_queries import all_rules
from accounting.usage.fold_hours import fold_all
from benchmarks.fixture import BenchmarkDatabase
from benchmarks.measure import log_progress
from benchmarks.scale import Scale
from benchmarks.spool_filler import SpoolFiller, take_messages
from benchmarks.workload import MESSAGES_PER_SESSION, Workload
from tests.support.books import Books

LAST_DAY: Final = date(2026, 11, 2)
"""The queries of docs/sql.md select November 2026; all copied days are before it."""
FIRST_COPY: Final = 2
BILLED_DAY: Final = date(2026, 10, 15)
BILLED_REALM: Final = b"billed.example.org"
FIRST_POSITION: Final = 10**12
POSITIONS_A_DAY: Final = 10**9
DAY_US: Final = 86_400_000_000
SESSION_SECONDS: Final = 1_800
COPIED: Final = (
    "sessions",
    "session_usage",
    "user_usage_hourly",
    "user_usage_daily",
    "realm_usage_hourly",
    "realm_usage_daily",
)
VACUUMED: Final = (
    *COPIED,
    "user_usage_monthly",
    "realm_usage_monthly",
    "buckets",
    "users",
    "usernames",
    "usage_deltas",
    "peak_deltas",
    "realm_peak_slices",
    "feed",
    "feed_outbox",
)
TIMES: Final = "timestamp with time zone"


@dataclass(slots=True)
class History:
    """Books with a history that can be extended; ``days``: its length so far."""

    bed: BenchmarkDatabase
    scale: Scale
    books: Books = field(init=False)
    filler: SpoolFiller = field(init=False)
    days: int = 0
    day_reports: int = 0
    day_sessions: int = 0

    def begin(self) -> None:
        """Create the last day and, in the month before, one day of a small realm."""
        self.books = self.bed.books()
        noon = datetime.combine(BILLED_DAY, datetime.min.time(), UTC) + timedelta(hours=12)
        self.filler = SpoolFiller.starting_at(self.books.spool(), noon, FIRST_POSITION)
        small = self._day(Workload(50, 500, [BILLED_REALM]), self.scale.day_reports // 20, 3_600)
        midnight = datetime.combine(LAST_DAY, datetime.min.time(), UTC)
        self.filler = SpoolFiller.starting_at(self.books.spool(), midnight, self.filler.position)
        sessions = self.scale.day_reports * 3 // 4 // MESSAGES_PER_SESSION
        open_sessions = max(10, sessions * SESSION_SECONDS // 86_400)
        mix = Workload(open_sessions, self.scale.day_users, lifetime_seconds=2 * SESSION_SECONDS)
        self.day_reports = self._day(mix, self.scale.day_reports, 86_000)
        self.day_sessions = mix.started
        self.days = 1
        log_progress(f"history: {small + self.day_reports:,} reports by the real path")

    def _day(self, mix: Workload, reports: int, seconds: int) -> int:
        step_us = seconds * 1_000_000 // (reports + 10 * mix.open_sessions)
        self.filler.append(mix.open(), step_us)
        self.filler.append(take_messages(mix.churn(), reports), step_us)
        self.filler.append(mix.close(), step_us)
        self.books.run_jobs()
        number_feed(self.books.engine)
        with self.books.engine.begin() as connection:
            rules = all_rules(connection)
            for realm_id in rules:
                fold_all(connection, rules, realm_id)
        return mix.messages

    def reach(self, reports: int) -> None:
        """Copy the last day to earlier days until there are about so many reports."""
        days = max(1, round(reports / self.day_reports))
        with (
            self._without_page_images(),
            psycopg.connect(self.bed.url(), autocommit=True) as connection,
        ):
            connection.execute("SET synchronous_commit = off")
            while self.days < days:
                self._copy_day(connection, self.days)
                self.days += 1
                if self.days % 10 == 0 or self.days == days:
                    log_progress(f"history: {self.days} of {days} days")
            self._sum_months(connection)
        log_progress("history: statistics")
        # Not the reports: the work does not read old days, and VACUUM would rewrite them.
        self.bed.query(f"VACUUM ANALYZE {', '.join(f'accounting.{name}' for name in VACUUMED)}")
        self.bed.query("ANALYZE accounting.reports")
        self.bed.query("CHECKPOINT")

    @contextmanager
    def _without_page_images(self) -> Iterator[None]:
        """Turn full_page_writes off while copying: random keys touch all pages."""
        self.bed.query("ALTER SYSTEM SET full_page_writes = off")
        self.bed.query("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            self.bed.query("ALTER SYSTEM RESET full_page_writes")
            self.bed.query("SELECT pg_reload_conf()")

    def _copy_day(self, connection: "psycopg.Connection[tuple[object, ...]]", back: int) -> None:
        back += FIRST_COPY - 1
        day = LAST_DAY - timedelta(days=back)
        first = f"'{LAST_DAY} 00:00+00'"
        shift = f"interval '{back} days'"
        positions = back * POSITIONS_A_DAY
        with connection.transaction():
            connection.execute("SELECT accounting.ensure_report_partition(%s)", [day])
            partition = f"accounting.reports_{day:%Y%m%d}"
            connection.execute(f"ALTER TABLE {partition} SET (autovacuum_enabled = off)".encode())
            own = (
                f"received_at >= {first} AND received_at < {first}::timestamptz + interval '1 day'"
            )
            self._copy(connection, "reports", own, shift, positions)
            since = (
                f"started_at >= {first} AND started_at < {first}::timestamptz + interval '1 day'"
            )
            self._copy(connection, "sessions", since, shift, positions)
            since = since.replace("started_at", "starts_at")
            for table in COPIED[1:]:
                self._copy(connection, table, since, shift, positions)
            buckets = f"{since} AND level <> 'month'"
            self._copy(connection, "buckets", buckets, shift, positions)
            connection.execute(
                "INSERT INTO accounting.feed (seq, event_id, type, realm_id, payload, created_at)"
                " SELECT seq + (SELECT max(seq) FROM accounting.feed), gen_random_uuid(), type,"
                " realm_id, '{}', created_at FROM accounting.feed ORDER BY seq LIMIT %s",
                [self.day_sessions],
            )

    def _copy(
        self,
        connection: "psycopg.Connection[tuple[object, ...]]",
        table: str,
        where: str,
        shift: str,
        positions: int,
    ) -> None:
        columns = connection.execute(
            "SELECT column_name, data_type FROM information_schema.columns"
            " WHERE table_schema = 'accounting' AND table_name = %s"
            " AND is_generated = 'NEVER' ORDER BY ordinal_position",
            [table],
        ).fetchall()
        names = ", ".join(str(name) for name, _ in columns)
        values = ", ".join(
            _shifted(str(name), str(kind), shift, positions) for name, kind in columns
        )
        connection.execute(
            f"INSERT INTO accounting.{table} ({names})"  # noqa: S608
            f" SELECT {values} FROM accounting.{table} WHERE {where}".encode()
        )

    def _sum_months(self, connection: "psycopg.Connection[tuple[object, ...]]") -> None:
        for whose, key in (("user", "user_key"), ("realm", "realm_id")):
            columns = [
                str(row[0])
                for row in connection.execute(
                    "SELECT column_name FROM information_schema.columns WHERE table_schema ="
                    " 'accounting' AND table_name = %s AND column_name NOT IN"
                    " ('user_key', 'realm_id', 'starts_at')",
                    [f"{whose}_usage_monthly"],
                )
            ]
            how = ", ".join(
                f"{'max' if name == 'peak_sessions' else 'sum'}({name})" for name in columns
            )
            month = "date_trunc('month', starts_at, 'UTC')"
            kept = ", ".join(f"{name} = excluded.{name}" for name in columns)
            keys = "user_key, realm_id" if whose == "user" else "realm_id"
            connection.execute(
                f"INSERT INTO accounting.{whose}_usage_monthly"  # noqa: S608
                f" ({keys}, starts_at, {', '.join(columns)})"
                f" SELECT {keys}, {month}, {how} FROM accounting.{whose}_usage_daily"
                f" GROUP BY {keys}, {month}"
                f" ON CONFLICT ({key}, starts_at) DO UPDATE SET {kept}".encode()
            )
        connection.execute(
            "INSERT INTO accounting.buckets SELECT DISTINCT realm_id, 'month',"
            " date_trunc('month', starts_at, 'UTC'), date_trunc('month', starts_at, 'UTC')"
            " + interval '1 month', time_zone, tzdata_version"
            " FROM accounting.buckets WHERE level = 'day'"
            " ON CONFLICT DO NOTHING"
        )


def _shifted(name: str, kind: str, shift: str, positions: int) -> str:
    """The SQL expression of a column, shifted by whole days."""
    if name == "position":
        return f"position - {positions}"
    if name == "allocation_id":  # as if the servers counted on from day to day
        return f"allocation_id - {positions // 1000}"
    if name == "session_id":
        # The low 48 bits of the id are its first report's position.
        return (
            "(left(session_id::text, 24) || lpad(to_hex(('x' || right(session_id::text, 12))"
            f"::bit(48)::bigint - {positions}), 12, '0'))::uuid"
        )
    return f"{name} - {shift}" if kind == TIMES else name
