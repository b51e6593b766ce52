"""Complete cells and a front as processes, with one clock that a test sets.

A cell has a Postgres, a Valkey, a collector and a scheduler; the front a Postgres and schedulers.
Months pass in seconds, and periods close by themselves: the machines' processes see the clock
through the C library, and the databases read it from the same file.
"""

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import psycopg

from accounting.capture.clock import wall_clock
from accounting.db.engine import open_engine
from accounting.domain.calendar import to_micros
from accounting.front import join
from tests.support import faulty_libc
from tests.support.books import WRITER, Books, make_template
from tests.support.faulty_libc import FaultyMachine
from tests.support.fronts import CELLS, change_identity_key
from tests.support.servers import PostgresServer, ValkeyServer, wait_until
from tests.support.service import ROOT, Service, environment

FREQUENT_JOBS: Final = "tests.support.frequent_jobs"
"""A program: a test that imported it could import no rich."""
NEXT_MIGRATIONS: Final = "NEXT_MIGRATIONS"
"""The variable that names to it the migrations of a later version."""
DATABASE: Final = "accounting"
"""As docs/restore.md has it."""
LEASE_SECONDS: Final = 3
SETTINGS: Final[Mapping[str, str]] = {
    "ACCOUNTING_LEASE_SECONDS": str(LEASE_SECONDS),
    "ACCOUNTING_CAPTURE": "replication",
    "ACCOUNTING_SETTLE_INTERVAL_SECONDS": "1",
    "ACCOUNTING_ROLLUP_INTERVAL_SECONDS": "1",
    "ACCOUNTING_SPOOL_RETENTION_SECONDS": str(400 * 86_400),
}
# What a killed Postgres has committed stays.
POSTGRES: Final = {"synchronous_commit": "on"}
VALKEY: Final = {"repl-backlog-size": str(32 << 20), "repl-backlog-ttl": "0"}
_CLOCK: Final = """
CREATE OR REPLACE FUNCTION accounting.database_now() RETURNS timestamptz
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT clock_timestamp() + make_interval(
        secs => sum(get_byte(f.error, i)::bigint << 8 * i)::float8 / 1e9)
    FROM (SELECT pg_read_binary_file('{path}', 0, 8) AS error) f, generate_series(0, 7) i
$$;
ALTER FUNCTION accounting.database_now() OWNER TO CURRENT_USER
"""
_NEXT_MIGRATION: Final = '''
"""A column that the version before does not have."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.get_bind().exec_driver_sql("""
        DO $$ BEGIN
            EXECUTE 'CREATE OR REPLACE VIEW reporting.sources AS SELECT v.*, 2 AS next FROM ('
                || rtrim(pg_get_viewdef('reporting.sources'::regclass), ';') || ') v';
        END $$
    """)
'''


@dataclass(slots=True)
class Site:
    """A database, and the services that run on it: a cell, or the front."""

    name: str
    books: Books
    directory: Path
    settings: dict[str, str]
    services: dict[str, Service] = field(default_factory=dict)

    @property
    def postgres(self) -> PostgresServer:
        return self.books.server

    def start(self, *commands: str) -> None:
        """Start services. One more of the same: ``schedule 2``."""
        for command in commands:
            word, _, number = command.partition(" ")
            self.services[command] = Service(
                word,
                self.directory / f"{word}{number}",
                self.settings,
                module=FREQUENT_JOBS,
            )

    def stop(self, *commands: str) -> None:
        """Stop services, or all."""
        for command in commands or tuple(self.services):
            with self.services.pop(command) as service:
                assert service.stop() == 0, service.log_text()[-3000:]

    def kill(self, *commands: str) -> None:
        """As the kernel does. Their children end with them."""
        for command in commands or tuple(self.services):
            with self.services.pop(command) as service:
                service.stop(signal.SIGKILL)

    def run(self, *words: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end."""
        return subprocess.run(
            [sys.executable, "-m", FREQUENT_JOBS, *words],
            cwd=ROOT,
            env=environment(self.directory / "operator", {**self.settings, **settings}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def output(self, *words: str, **settings: str) -> str:
        """What a command writes that succeeds."""
        result = self.run(*words, **settings)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def upgrade(self, migrations: Path) -> None:
        """Install a later version while the services are stopped."""
        assert not self.services
        self.settings[NEXT_MIGRATIONS] = str(migrations)
        self.output("db", "upgrade", ACCOUNTING_DATABASE_URL=self.books.url())


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell and its Valkey."""

    site: Site
    valkey: ValkeyServer


@dataclass(frozen=True, slots=True)
class CellSites:
    """A front with its cells, all of whose processes run."""

    front: Site
    cells: Mapping[str, Cell]
    directory: Path
    _clock: FaultyMachine

    def set_clock(self, at: datetime) -> None:
        """Set the time of all machines and databases; it goes on from there."""
        self._clock.set_clock(to_micros(at) - wall_clock())

    def wait_until_clocks_agree(self) -> None:
        """Wait until all collectors have compared their clocks since they captured.

        A step of the clock then leaves the times of what they captured as they are.
        """
        query = "SELECT renewed_at FROM accounting.source_leases"
        for cell in self.cells.values():
            books = cell.site.books
            [now] = books.query("SELECT clock_timestamp() AS at")
            compared_at = now["at"] + timedelta(seconds=LEASE_SECONDS / 2)
            wait_until(
                lambda: all(row["renewed_at"] > compared_at for row in books.query(query)),  # noqa: B023
                120,
            )

    def is_quiet(self, at: datetime) -> bool:
        """Whether all cells have captured until then, and all sessions have ended."""
        query = """
            SELECT bool_and(s.captured_until >= %s) AND NOT EXISTS (
                SELECT FROM reporting.sessions e WHERE e.ended_at IS NULL) AS quiet
            FROM reporting.sources s
        """
        return all(
            row["quiet"]
            for cell in self.cells.values()
            for row in cell.site.books.query(query, [at])
        )

    def next_version(self) -> Path:
        """The migrations of a version with one more, which gives a view another column."""
        directory = self.directory / "next-version"
        shutil.copytree(ROOT / "migrations", directory)
        (directory / "versions" / "0002_next.py").write_text(_NEXT_MIGRATION)
        return directory


@contextmanager
def open_cell_sites(
    directory: Path, at: datetime, cells: Sequence[str] = CELLS
) -> Iterator[CellSites]:
    """A front with two schedulers and its cells, from a time on."""
    with ExitStack() as stack:
        # Postgres is another user, who may not look into the directories of tests.
        shared = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ta-test-")))
        shared.chmod(0o755)
        clock = FaultyMachine(shared / "machine")
        clock.set_clock(to_micros(at) - wall_clock())
        machine = clock.environment(faulty_libc.build(shared))

        def open_site(name: str, **settings: str) -> Site:
            server = stack.enter_context(PostgresServer(settings=POSTGRES))
            make_template(server, DATABASE)
            with psycopg.connect(server.url(database=DATABASE)) as connection:
                connection.execute(_CLOCK.format(path=clock.path).encode())
            books = Books(server, DATABASE, directory / name / "books")
            stack.callback(books.close)
            all_settings = {**machine, "ACCOUNTING_DATABASE_URL": books.url(WRITER), **settings}
            site = Site(name, books, directory / name, all_settings)
            stack.callback(site.kill)
            return site

        front = open_site("front")
        engine = open_engine(front.books.url())
        stack.callback(engine.dispose)
        join.make_front(engine)
        by_name = {}
        for name in cells:
            valkey = stack.enter_context(ValkeyServer(VALKEY))
            site = open_site(
                name, **SETTINGS, ACCOUNTING_SOURCE=name, ACCOUNTING_REDIS_URL=valkey.url
            )
            change_identity_key(site.books)
            join.join_cell(engine, name, site.books.url(), None)
            by_name[name] = Cell(site, valkey)
        for cell in by_name.values():
            cell.site.start("collect", "schedule")
        front.start("schedule", "schedule 2")
        for cell in by_name.values():
            cell.site.services["collect"].wait_until_capturing()
        yield CellSites(front, by_name, directory, clock)
        for site in (*(cell.site for cell in by_name.values()), front):
            site.stop()
