"""The file of a spool: one SQLite database a source, in WAL mode, synced at every commit.

Owns its place, its format, its transactions, and what its errors mean in words. SQLite's locks keep
the two processes apart that have it open: the collector, which writes messages, and the loader,
which reads and prunes them.

Must not say what a row means: that is `spool`'s, `adoption`'s and `pruning`'s.
"""

import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from accounting.capture.clock import wall_clock
from accounting.errors import SpoolDiskError, SpoolError

APPLICATION_ID = 0x7475726E  # "turn": SQLite's application_id, so that no stranger's file is used
FORMAT_VERSION = 2

# How long one process waits for the other's transaction. Those take milliseconds; half a minute
# without the lock means that something holds it which should not.
LOCK_TIMEOUT_SECONDS = 30.0

# Rows that one statement inserts. SQLite before 3.32 takes 999 values at the most.
ROWS_PER_INSERT = 100

Value = int | str | bytes | None

SCHEMA = """
CREATE TABLE spool (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    source TEXT NOT NULL,
    captured_from INTEGER,
    captured_until INTEGER,
    captured_epoch INTEGER NOT NULL,
    captured_position INTEGER NOT NULL,
    last_received_at INTEGER NOT NULL,
    loaded_epoch INTEGER NOT NULL,
    loaded_position INTEGER NOT NULL,
    pruned_epoch INTEGER NOT NULL,
    pruned_position INTEGER NOT NULL,
    pruned_received_at INTEGER NOT NULL,
    replication_id TEXT,
    stream_database INTEGER,
    server_run TEXT,
    mode TEXT,
    holder TEXT NOT NULL,
    next_gap INTEGER NOT NULL
);
CREATE TABLE epochs (
    epoch INTEGER PRIMARY KEY,
    token TEXT NOT NULL UNIQUE,
    began_at INTEGER NOT NULL,
    cause TEXT NOT NULL
);
CREATE TABLE messages (
    epoch INTEGER NOT NULL,
    position INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    estimated INTEGER NOT NULL,
    database INTEGER NOT NULL,
    channel BLOB NOT NULL,
    payload BLOB NOT NULL,
    PRIMARY KEY (epoch, position)
) WITHOUT ROWID;
CREATE TABLE gaps (
    gap INTEGER PRIMARY KEY,
    epoch INTEGER NOT NULL,
    position INTEGER NOT NULL,
    from_at INTEGER NOT NULL,
    to_at INTEGER CHECK (to_at > from_at),
    cause TEXT NOT NULL,
    detail TEXT NOT NULL
);
CREATE TABLE sightings (
    sighting INTEGER PRIMARY KEY AUTOINCREMENT,
    epoch INTEGER NOT NULL,
    position INTEGER NOT NULL,
    began_at INTEGER NOT NULL,
    seen_at INTEGER NOT NULL,
    database INTEGER NOT NULL,
    key BLOB NOT NULL,
    idle_seconds INTEGER NOT NULL
);
"""


def spool_path(data_dir: Path, source: str) -> Path:
    """The file of a source, whose name may hold anything: percent-encoded."""
    return data_dir / "spool" / f"{quote(source, safe='')}.sqlite3"


class BulkInsert:
    """An INSERT of rows of so many `columns`: of one, and of many with one statement.

    A statement for each row costs half as much again.
    """

    def __init__(self, head: str, *, columns: int) -> None:
        row = f"({', '.join('?' * columns)})"
        self.columns = columns
        self.values_per_statement = columns * ROWS_PER_INSERT
        self.single_row_sql = head + row
        self.many_rows_sql = head + ", ".join([row] * ROWS_PER_INSERT)


class SpoolFile:
    """An open file. One thread at a time may use it; another process may have it open too.

    Every method raises SpoolError when the disk is full, or the file damaged or out of reach; a
    write is then undone as a whole.
    """

    def __init__(
        self, path: Path, source: str, connection: sqlite3.Connection, clock: Callable[[], int]
    ) -> None:
        self.path = path
        self.source = source
        self._connection = connection
        self._clock = clock
        self._file = _file_identity(path)

    @classmethod
    def open(cls, path: Path, source: str, *, clock: Callable[[], int] = wall_clock) -> Self:
        """Open the spool of `source`, and create it with its first epoch where there is none."""
        # Python looks for how bytes are to be stored each time, and raises an error within when it
        # finds nothing: 0.1 us for each value, of which a message has two.
        sqlite3.register_adapter(bytes, bytes)
        with translate_errors(path, "opened"):
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                # Usernames are personal data; SQLite gives its side files the mode of this one.
                # Only where there is no file yet: closing a descriptor of a file that this process
                # has open already would drop SQLite's locks on it (POSIX).
                with suppress(FileExistsError):
                    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            except OSError as error:
                raise SpoolError(f"the spool {path} can't be opened: {error.strerror}") from error
            connection = sqlite3.connect(
                path, timeout=LOCK_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
            )
            spool = cls(path, source, connection, clock)
            try:
                spool._initialize(source)
            except BaseException:
                connection.close()
                raise
        return spool

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. The last process to do so folds the write-ahead log into it."""
        with translate_errors(self.path, "closed"):
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything written inside is on disk together, or not at all. May be nested."""
        if self._connection.in_transaction:
            yield
            return
        with translate_errors(self.path, "written"):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                # SQLite has rolled back by itself after a full disk, and says so when asked again;
                # the error under way says more than that.
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise

    def execute(self, query: str, values: Sequence[Value] = ()) -> sqlite3.Cursor:
        """Run a statement that writes, within a transaction."""
        return self._connection.execute(query, values)

    def execute_many(self, query: str, rows: Sequence[Sequence[Value]]) -> None:
        """Run one for each row, within a transaction."""
        self._connection.executemany(query, rows)

    def insert(self, insert: BulkInsert, values: Sequence[Value]) -> None:
        """Insert rows, whose values follow one another, within a transaction."""
        whole = len(values) - len(values) % insert.values_per_statement
        for begin in range(0, whole, insert.values_per_statement):
            self.execute(insert.many_rows_sql, values[begin : begin + insert.values_per_statement])
        width = insert.columns
        rest = range(whole, len(values), width)
        self.execute_many(insert.single_row_sql, [values[begin : begin + width] for begin in rest])

    def fetch_all(self, query: str, values: Sequence[Value] = ()) -> list[Any]:
        """What a query finds."""
        with translate_errors(self.path, "read"):
            return self._connection.execute(query, values).fetchall()

    def fetch_one(self, query: str, values: Sequence[Value] = ()) -> tuple[Any, ...]:
        """The one row of a query that must find one."""
        with translate_errors(self.path, "read"):
            row: tuple[Any, ...] | None = self._connection.execute(query, values).fetchone()
        if row is None:
            raise SpoolError(f"the spool {self.path} is damaged: it has lost its state")
        return row

    def check_not_moved(self) -> None:
        """Raise SpoolError when the file is not where it was.

        SQLite would go on writing what no loader that starts from now on can find.
        """
        if _file_identity(self.path) != self._file:
            raise SpoolError(
                f"the spool {self.path} was moved or deleted while it was in use: start again, and"
                " a new one begins a new epoch"
            )

    def size_bytes(self) -> int:
        """What the spool takes on disk, its write-ahead log included."""
        wal = self.path.with_name(f"{self.path.name}-wal")
        return sum(path.stat().st_size for path in (self.path, wal) if path.exists())

    def _initialize(self, source: str) -> None:
        run = self._connection.execute
        # Before the first write, the only time when it counts; messages are some 200 bytes.
        run("PRAGMA page_size = 8192")
        if run("PRAGMA journal_mode").fetchone() != ("wal",):
            run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")
        # Each fold of the log into the file costs syncs, so not oftener than every 32 MB.
        run("PRAGMA wal_autocheckpoint = 4096")
        run(f"PRAGMA journal_size_limit = {64 << 20}")
        run("PRAGMA cache_size = -16384")
        with self.transaction():
            found = run("PRAGMA application_id").fetchone(), run("PRAGMA user_version").fetchone()
            if found == ((0,), (0,)) and not run("SELECT 1 FROM sqlite_schema").fetchone():
                self._create(source)
            elif found[0] != (APPLICATION_ID,):
                raise SpoolError(f"{self.path} is a database, but not a spool: move it away")
            elif found[1] != (FORMAT_VERSION,):
                raise SpoolError(
                    f"the spool {self.path} has format {found[1][0]}, this version knows"
                    f" {FORMAT_VERSION}: use the version that wrote it"
                )
        (owner,) = self.fetch_one("SELECT source FROM spool")
        if owner != source:
            raise SpoolError(
                f"the spool {self.path} belongs to source {owner!r}, not {source!r}:"
                " set ACCOUNTING_SOURCE or ACCOUNTING_DATA_DIR right"
            )

    def _create(self, source: str) -> None:
        run = self._connection.execute
        for statement in SCHEMA.split(";")[:-1]:  # executescript() would commit the transaction
            run(statement)
        run(f"PRAGMA application_id = {APPLICATION_ID}")
        run(f"PRAGMA user_version = {FORMAT_VERSION}")
        run(
            "INSERT INTO epochs VALUES (1, ?, ?, 'first')",
            (secrets.token_hex(16), self._clock()),
        )
        run(
            "INSERT INTO spool VALUES"
            " (1, ?, NULL, NULL, 1, 0, 0, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL, ?, 1)",
            (source, secrets.token_hex(16)),
        )


def _file_identity(path: Path) -> tuple[int, int] | None:
    """What tells this file from another one under its name; None when there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


@contextmanager
def translate_errors(path: Path, done: str) -> Iterator[None]:
    """Turn SQLite's errors into one line that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        match code:
            case sqlite3.SQLITE_FULL:
                advice = "make room on the disk, then start again"
            case sqlite3.SQLITE_IOERR:
                advice = "look for a full disk, a quota or a failing disk, then start again"
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                advice = "the file is damaged: move it away, and a new one begins a new epoch"
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
                advice = "look at the rights on the file and its directory"
            case sqlite3.SQLITE_BUSY:
                advice = "another process holds it: end that first"
            case _:
                advice = "a restart goes on where the last commit ended"
        is_disk = code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
        kind = SpoolDiskError if is_disk else SpoolError
        raise kind(f"the spool {path} can't be {done}: {error}; {advice}") from error
