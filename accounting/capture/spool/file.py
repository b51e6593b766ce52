"""The file of a spool: one SQLite database per source, in WAL mode, synced at every commit.

Two processes have it open, and SQLite's locks keep them apart: the collector, which writes
messages, and the loader, which reads and prunes them.
"""

import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import structlog

from accounting.capture.clock import wall_clock
from accounting.capture.spool import upgrade
from accounting.capture.spool.chunks import CHUNKS_SCHEMA
from accounting.errors import SpoolDiskError, SpoolError

log = structlog.get_logger()

APPLICATION_ID: Final = 0x7475726E
"""``turn``: SQLite's application_id tells a spool from another program's database."""
FORMAT_VERSION: Final = 4

LOCK_TIMEOUT_SECONDS: Final = 30.0
"""How long one process waits for the other's transaction, which takes milliseconds."""

DAMAGED_ADVICE: Final = "the file is damaged: move it away, and a new one begins a new epoch"

Value = int | str | bytes | None

SCHEMA: Final = """
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
    next_gap INTEGER NOT NULL,
    boot TEXT,
    clock_offset INTEGER,
    unconfirmed_from INTEGER
);
CREATE TABLE epochs (
    epoch INTEGER PRIMARY KEY,
    token TEXT NOT NULL UNIQUE,
    began_at INTEGER NOT NULL,
    cause TEXT NOT NULL,
    server TEXT NOT NULL DEFAULT ''
);
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
    """The file of a source. Its name is percent-encoded, since it may contain any character."""
    return data_dir / "spool" / f"{quote(source, safe='')}.sqlite3"


class SpoolFile:
    """An open file. One thread at a time may use it.

    Every method raises SpoolError when the disk is full, or the file damaged or unreachable; the
    transaction is then rolled back.
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
        """Open the spool of ``source``; create it with its first epoch when there is no file."""
        # Without an adapter for bytes, sqlite3 raises and catches an error for each value: 0.1 us,
        # and a message has two.
        sqlite3.register_adapter(bytes, bytes)
        with translate_errors(path, "opened"):
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                # Usernames are personal data; SQLite gives its WAL files the mode of this file.
                # O_EXCL: closing a descriptor of a file that this process has open already would
                # drop SQLite's locks on it (POSIX).
                with suppress(FileExistsError):
                    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            except OSError as error:
                raise SpoolError(f"the spool {path} can't be opened: {error.strerror}") from error
            connection = sqlite3.connect(
                path, timeout=LOCK_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
            )
            spool = cls(path, source, connection, clock)
            try:
                spool._initialize()
            except BaseException:
                connection.close()
                raise
        return spool

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. The last process to do so checkpoints the write-ahead log."""
        with translate_errors(self.path, "closed"):
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A transaction, durable at its end. An inner one is part of the outer one."""
        if self._connection.in_transaction:
            yield
            return
        with translate_errors(self.path, "written"):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                # After a full disk SQLite has rolled back already, and this statement fails.
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise

    def execute(
        self, query: str, values: Sequence[Value] | Mapping[str, Value] = ()
    ) -> sqlite3.Cursor:
        """Run a writing statement, within a transaction."""
        return self._connection.execute(query, values)

    def execute_many(self, query: str, rows: Sequence[Sequence[Value]]) -> None:
        """Run a writing statement for each row, within a transaction."""
        self._connection.executemany(query, rows)

    def fetch_all(self, query: str, values: Sequence[Value] = ()) -> list[Any]:
        """The rows of a query."""
        with translate_errors(self.path, "read"):
            return self._connection.execute(query, values).fetchall()

    def fetch_one(self, query: str, values: Sequence[Value] = ()) -> tuple[Any, ...]:
        """The row of a query that must return one."""
        with translate_errors(self.path, "read"):
            row: tuple[Any, ...] | None = self._connection.execute(query, values).fetchone()
        if row is None:
            raise SpoolError(f"the spool {self.path} is damaged: it has lost its state")
        return row

    def check_format(self) -> None:
        """Raise SpoolError for a file of another format, or one that is being converted."""
        (version,) = self.fetch_one("PRAGMA user_version")
        if version != FORMAT_VERSION or not upgrade.is_complete(self._connection):
            raise SpoolError(
                f"the spool {self.path} is not of format {FORMAT_VERSION}: an older one is"
                " converted when the collector starts"
            )

    def check_not_moved(self) -> None:
        """Raise SpoolError when the file was moved or deleted.

        SQLite would continue to write a file that a loader started later can't find.
        """
        if _file_identity(self.path) != self._file:
            raise SpoolError(
                f"the spool {self.path} was moved or deleted while it was in use: start again, and"
                " a new spool begins with a new epoch"
            )

    def size_bytes(self) -> int:
        """The size on disk, with the write-ahead log."""
        wal = self.path.with_name(f"{self.path.name}-wal")
        return sum(path.stat().st_size for path in (self.path, wal) if path.exists())

    def _initialize(self) -> None:
        run = self._connection.execute
        # Effective only before the first write; a chunk has some 30 kB.
        run("PRAGMA page_size = 8192")
        if run("PRAGMA journal_mode").fetchone() != ("wal",):
            run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")
        # Each checkpoint of the log costs syncs: one every 32 MB.
        run("PRAGMA wal_autocheckpoint = 4096")
        run(f"PRAGMA journal_size_limit = {64 << 20}")
        run("PRAGMA cache_size = -16384")
        with self.transaction():
            (application_id,) = run("PRAGMA application_id").fetchone()
            (version,) = run("PRAGMA user_version").fetchone()
            is_empty = run("SELECT 1 FROM sqlite_schema").fetchone() is None
            if (application_id, version) == (0, 0) and is_empty:
                self._create()
            elif application_id != APPLICATION_ID:
                raise SpoolError(f"{self.path} is a database, but not a spool: move it away")
            elif version in upgrade.CONVERTIBLE:
                log.info("the spool gets a new format", path=str(self.path), format=FORMAT_VERSION)
                upgrade.begin(self._connection, version)
                run(f"PRAGMA user_version = {FORMAT_VERSION}")
            elif version != FORMAT_VERSION:
                raise SpoolError(
                    f"the spool {self.path} has format {version}, this version knows"
                    f" {FORMAT_VERSION}: use the version that wrote it"
                )
        (owner,) = self.fetch_one("SELECT source FROM spool")
        if owner != self.source:
            raise SpoolError(
                f"the spool {self.path} belongs to source {owner!r}, not {self.source!r}:"
                " correct ACCOUNTING_SOURCE or ACCOUNTING_DATA_DIR"
            )
        while not upgrade.is_complete(self._connection):
            with self.transaction():
                upgrade.convert_step(self._connection)

    def _create(self) -> None:
        run = self._connection.execute
        # executescript() would commit the transaction.
        for statement in (*SCHEMA.split(";")[:-1], *CHUNKS_SCHEMA):
            run(statement)
        run(f"PRAGMA application_id = {APPLICATION_ID}")
        run(f"PRAGMA user_version = {FORMAT_VERSION}")
        run(
            "INSERT INTO epochs (epoch, token, began_at, cause) VALUES (1, ?, ?, 'first')",
            (secrets.token_hex(16), self._clock()),
        )
        run(
            "INSERT INTO spool VALUES"
            " (1, ?, NULL, NULL, 1, 0, 0, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL, ?, 1, NULL, NULL,"
            " NULL)",
            (self.source, secrets.token_hex(16)),
        )


def _file_identity(path: Path) -> tuple[int, int] | None:
    """Device and inode, which differ when another file takes this name; None without a file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


@contextmanager
def translate_errors(path: Path, participle: str) -> Iterator[None]:
    """Turn SQLite's errors into a SpoolError of one line, with advice."""
    try:
        yield
    except UnicodeDecodeError:
        # SQLite's message names a part of the schema, which is damaged.
        raise SpoolError(f"the spool {path} can't be {participle}: {DAMAGED_ADVICE}") from None
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        match code:
            case sqlite3.SQLITE_FULL:
                advice = "make room on the disk, then start again"
            case sqlite3.SQLITE_IOERR:
                advice = "look for a full disk, a quota or a failing disk, then start again"
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                advice = DAMAGED_ADVICE
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
                advice = "check the permissions of the file and its directory"
            case sqlite3.SQLITE_BUSY:
                advice = "another process holds the lock: end that process first"
            case _:
                advice = "a restart continues after the last commit"
        is_disk = code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
        error_class = SpoolDiskError if is_disk else SpoolError
        raise error_class(f"the spool {path} can't be {participle}: {error}; {advice}") from error
