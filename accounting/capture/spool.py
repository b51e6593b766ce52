"""The spool: raw messages, durable on the local disk before anything else happens to them.

Owns one SQLite file a source, in WAL mode, synced at every commit: what was captured, how far that
is proven, which gaps there are, and how far the loader has come. One process writes messages (the
collector), one reads and prunes them (the loader); SQLite's locks keep the two apart.

Must not parse a message, know Redis or Postgres, or decide when something was lost.
All times are whole microseconds since the Unix epoch, UTC.
"""

import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from accounting.capture.records import (
    Epoch,
    Gap,
    Message,
    Mode,
    Resume,
    SeenKey,
    Sighting,
    SpoolCounts,
    SpooledRow,
    SpoolState,
)
from accounting.errors import SpoolDiskError, SpoolError

__all__ = [
    "Epoch",
    "Gap",
    "Message",
    "Spool",
    "SpoolCounts",
    "SpoolState",
    "SpooledRow",
    "spool_path",
    "wall_clock",
]

application_id = 0x7475726E  # "turn": SQLite's application_id, so that no stranger's file is used
schema_version = 2

# How long one process waits for the other's transaction. Those take milliseconds; half a minute
# without the lock means that something holds it which should not.
lock_timeout_seconds = 30.0

# Deleting takes the writer's lock away from the collector: keep each bite in the milliseconds.
messages_per_prune = 2_000

# Numbers of gaps fit into 31 bits. A file that takes over begins at a random one below this.
largest_first_gap = (1 << 31) - (1 << 24)

no_end = (1 << 62, 0)

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
"""

SIGHTINGS = """
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

# What turns a file of format 1, which knew no replication, into one of format 2.
FROM_FORMAT_1 = """
ALTER TABLE spool ADD COLUMN mode TEXT;
ALTER TABLE spool ADD COLUMN holder TEXT NOT NULL DEFAULT '';
ALTER TABLE spool ADD COLUMN next_gap INTEGER NOT NULL DEFAULT 1;
UPDATE spool SET mode = CASE WHEN captured_until IS NOT NULL THEN 'subscribe' END;
UPDATE spool SET next_gap = (SELECT coalesce(max(gap), 0) + 1 FROM gaps);
"""


def wall_clock() -> int:
    """The time now, in microseconds since the epoch."""
    return time.time_ns() // 1_000


def spool_path(data_dir: Path, source: str) -> Path:
    """The file of a source, whose name may hold anything: percent-encoded."""
    return data_dir / "spool" / f"{quote(source, safe='')}.sqlite3"


class Spool:
    """An open spool. One thread at a time may use it; another process may have it open too.

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
        self._file = _identity(path)

    @classmethod
    def open(cls, path: Path, source: str, *, clock: Callable[[], int] = wall_clock) -> Self:
        """Open the spool of `source`, and create it with its first epoch where there is none."""
        with reported(path, "opened"):
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
                path, timeout=lock_timeout_seconds, isolation_level=None, check_same_thread=False
            )
            spool = cls(path, source, connection, clock)
            try:
                spool._prepare(source)
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
        with reported(self.path, "closed"):
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything written inside is on disk together, or not at all. May be nested."""
        if self._connection.in_transaction:
            yield
            return
        with reported(self.path, "written"):
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

    # -- the collector's half

    def append(
        self,
        messages: Sequence[Message],
        captured_until: int | None = None,
        *,
        positions: Sequence[int] | None = None,
        resume: Resume | None = None,
        estimated: int = 0,
    ) -> None:
        """Store messages (received_at, database, channel, payload) in one transaction.

        The spool counts their positions, unless `positions` gives them. `resume` is the place in
        the replication stream that is reached with them. The first `estimated` of them have times
        that nobody measured. A receipt time never falls, whatever the clock did: one before the
        last message stored or the last tick becomes that. With `captured_until`, the tick is in the
        same transaction.
        """
        with self.transaction():
            epoch, position, last = self._row(
                "SELECT captured_epoch, captured_position,"
                " max(last_received_at, coalesce(captured_until, 0)) FROM spool"
            )
            if positions is None:
                positions = range(position + 1, position + 1 + len(messages))
            rows: list[tuple[int, int, int, bool, int, bytes, bytes]] = []
            for at, (received_at, database, channel, payload) in zip(
                positions, messages, strict=True
            ):
                if received_at > last:
                    last = received_at
                rows.append((epoch, at, last, len(rows) < estimated, database, channel, payload))
            self._connection.executemany(
                "INSERT INTO messages (epoch, position, received_at, estimated, database, channel,"
                " payload) VALUES (?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
            if positions:
                position = positions[-1]
            self._connection.execute(
                "UPDATE spool SET captured_position = ?, last_received_at = ?", (position, last)
            )
            if resume is not None:
                self._resume_at(resume)
            if captured_until is not None:
                self.tick(captured_until)

    def _resume_at(self, resume: Resume) -> None:
        self._connection.execute(
            "UPDATE spool SET captured_position = ?, replication_id = ?, stream_database = ?",
            (resume.offset, resume.replication_id, resume.database),
        )

    def add_sightings(self, keys: Sequence[SeenKey]) -> None:
        """Store what a scan found, after the messages that are here now."""
        with self.transaction():
            epoch, position = self._row("SELECT captured_epoch, captured_position FROM spool")
            self._connection.executemany(
                "INSERT INTO sightings (epoch, position, began_at, seen_at, database, key,"
                " idle_seconds) VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (epoch, position, k.began_at, k.seen_at, k.database, k.key, k.idle_seconds)
                    for k in keys
                ],
            )

    def tick(self, captured_until: int) -> None:
        """Everything received before `captured_until` is in the spool, or within a gap.

        The first tick of a spool is where capture began. Raises SpoolError when the file is not
        where it was: SQLite would go on writing what no loader that starts from now on can find.
        """
        if _identity(self.path) != self._file:
            raise SpoolError(
                f"the spool {self.path} was moved or deleted while it was in use: start again, and"
                " a new one begins a new epoch"
            )
        with self.transaction():
            self._connection.execute(
                "UPDATE spool SET captured_from = coalesce(captured_from, ?1),"
                " captured_until = max(coalesce(captured_until, ?1), ?1)",
                (captured_until,),
            )

    def begin_epoch(self, cause: str) -> int:
        """Begin another run of positions, at 0, and return its number."""
        with self.transaction():
            epoch = self._add_epoch(secrets.token_hex(16), cause)
            self._connection.execute(
                "UPDATE spool SET captured_epoch = ?, captured_position = 0", (epoch,)
            )
        return epoch

    def _add_epoch(self, token: str, cause: str) -> int:
        (last,) = self._row("SELECT last_received_at FROM spool")
        cursor = self._connection.execute(
            "INSERT INTO epochs (token, began_at, cause) VALUES (?, ?, ?)",
            (token, max(self._clock(), last), cause),
        )
        return int(cursor.lastrowid or 0)

    def note_server(self, server_run: str) -> None:
        """Remember the run id of the Redis that is captured from."""
        with self.transaction():
            self._connection.execute("UPDATE spool SET server_run = ?", (server_run,))

    def note_mode(self, mode: Mode) -> None:
        """Remember how messages are captured from now on."""
        with self.transaction():
            self._connection.execute("UPDATE spool SET mode = ?", (mode,))
            if mode == "subscribe":
                self._connection.execute(
                    "UPDATE spool SET replication_id = NULL, stream_database = NULL"
                )

    def adopt(
        self,
        *,
        token: str | None,
        position: int,
        captured_until: int | None,
        replication_id: str | None,
        stream_database: int | None,
        cause: str,
    ) -> None:
        """Go on where another collector of this source was, as far as its messages are loaded.

        With a token the spool goes on in that epoch after `position`; without one (a subscription
        can't go on) it begins another epoch for that cause. What lies here beyond that place, or
        isn't loaded, is discarded: the other collector has it, or a gap tells of it.
        """
        with self.transaction():
            (known,) = self._row("SELECT max(epoch) FROM epochs WHERE token = ?", (token,))
            if known is None:
                self._discard(*self._row("SELECT loaded_epoch, loaded_position FROM spool"))
            else:
                self._discard(known, position)
                self._connection.execute("DELETE FROM epochs WHERE epoch > ?", (known,))
            if token is None:
                epoch, position = self.begin_epoch(cause), 0
            else:
                epoch = known or self._add_epoch(token, cause)
            # What this file lacks of the epoch is as good as pruned. Its gaps must not have the
            # numbers of the other file's, since both may stand under the same token.
            self._connection.execute(
                "UPDATE spool SET captured_epoch = ?1, captured_position = ?2, loaded_epoch = ?1,"
                " loaded_position = ?2, pruned_epoch = ?1, pruned_position = ?2,"
                " pruned_received_at = coalesce(?3, pruned_received_at),"
                " last_received_at = coalesce(?3, last_received_at),"
                " captured_from = coalesce(captured_from, ?3), captured_until = ?3,"
                " replication_id = ?4, stream_database = ?5, server_run = NULL, mode = ?6,"
                " next_gap = max(next_gap, ?7)",
                (
                    epoch,
                    position,
                    captured_until,
                    replication_id,
                    stream_database,
                    "subscribe" if token is None else "replication",
                    secrets.randbelow(largest_first_gap),
                ),
            )

    def _discard(self, epoch: int, position: int) -> None:
        """Forget what lies after that place, and a gap that is open."""
        run, place = self._connection.execute, (epoch, position)
        run("DELETE FROM messages WHERE (epoch, position) > (?, ?)", place)
        run("DELETE FROM sightings WHERE (epoch, position) > (?, ?)", place)
        run("DELETE FROM gaps WHERE to_at IS NULL OR (epoch, position) > (?, ?)", place)

    def open_gap(self, from_at: int, cause: str, detail: str = "") -> int:
        """Messages received from `from_at` on may have been lost. Returns the gap's number."""
        with self.transaction():
            cursor = self._connection.execute(
                "INSERT INTO gaps (gap, epoch, position, from_at, cause, detail)"
                " SELECT next_gap, captured_epoch, captured_position, ?, ?, ? FROM spool",
                (from_at, cause, detail),
            )
            self._connection.execute("UPDATE spool SET next_gap = next_gap + 1")
        return int(cursor.lastrowid or 0)

    def amend_gap(self, gap: int, cause: str, detail: str) -> None:
        """Name another cause: what was found out after the gap was opened."""
        with self.transaction():
            self._connection.execute(
                "UPDATE gaps SET cause = ?, detail = ? WHERE gap = ?", (cause, detail, gap)
            )

    def close_gap(self, gap: int, to_at: int) -> None:
        """Record that nothing published from `to_at` on was lost in this gap.

        The end is put after the beginning and not before the last receipt, so that a clock that
        stepped back can't shorten a gap to nothing.
        """
        with self.transaction():
            cursor = self._connection.execute(
                "UPDATE gaps SET to_at = max(?, from_at + 1, (SELECT last_received_at FROM spool))"
                " WHERE gap = ? AND to_at IS NULL",
                (to_at, gap),
            )
            if cursor.rowcount != 1:
                raise ValueError(f"gap {gap} is not open")

    def current_gap(self) -> Gap | None:
        """The gap that is open now; there is never more than one."""
        return next(iter(self._gaps("SELECT * FROM gaps WHERE to_at IS NULL", ())), None)

    # -- the loader's half

    def read(
        self, epoch: int, position: int, limit: int, end: tuple[int, int] = no_end
    ) -> list[SpooledRow]:
        """Up to `limit` messages after that position, in order; (0, 0) is before all of them.

        The last one is at `end`, or before.
        """
        with reported(self.path, "read"):
            return self._connection.execute(
                "SELECT epoch, position, received_at, estimated, database, channel, payload"
                " FROM messages WHERE (epoch, position) > (?, ?) AND (epoch, position) <= (?, ?)"
                " ORDER BY epoch, position LIMIT ?",
                (epoch, position, *end, limit),
            ).fetchall()

    def mark_loaded(self, epoch: int, position: int) -> None:
        """Everything up to that position is committed in Postgres."""
        with self.transaction():
            self._connection.execute(
                "UPDATE spool SET loaded_epoch = ?, loaded_position = ?", (epoch, position)
            )

    def relabel(self, epoch: int, cause: str, began_at: int) -> str:
        """Give an epoch another token, and return it; what came before `began_at` has the old one.

        For a spool that turned out older than what Postgres has (restored from a backup, say): its
        positions mean other messages than the same positions under the old token.
        """
        token = secrets.token_hex(16)
        with self.transaction():
            self._connection.execute(
                "UPDATE epochs SET token = ?, cause = ?, began_at = ? WHERE epoch = ?",
                (token, cause, began_at, epoch),
            )
        return token

    def position_at(self, epoch: int, received_at: int) -> int:
        """The last position of an epoch that was received at that time or before; 0 for none."""
        (position,) = self._row(
            "SELECT coalesce(max(position), 0) FROM messages WHERE epoch = ? AND received_at <= ?",
            (epoch, received_at),
        )
        return int(position)

    def place_at(self, received_at: int) -> tuple[int, int]:
        """The last (epoch, position) received at that time or before; else before everything."""
        epochs = [epoch.epoch for epoch in self.epochs()]
        for epoch in reversed(epochs):
            if position := self.position_at(epoch, received_at):
                return epoch, position
        return epochs[0], 0

    def last_position(self, epoch: int) -> int | None:
        """The last position of an epoch that lies here; None when none does."""
        (last,) = self._row("SELECT max(position) FROM messages WHERE epoch = ?", (epoch,))
        return None if last is None else int(last)

    def received_at(self, epoch: int, position: int) -> int | None:
        """When the message at that place was received; None where there is none."""
        (received_at,) = self._row(
            "SELECT max(received_at) FROM messages WHERE epoch = ? AND position = ?",
            (epoch, position),
        )
        return None if received_at is None else int(received_at)

    def prune(self, before_received_at: int) -> int:
        """Delete loaded messages received before that time; returns how many.

        Oldest first, a few thousand a transaction. The file keeps its size: the room is used again.
        """
        pruned = 0
        while bite := self._prune_some(before_received_at):
            pruned += bite
        return pruned

    def _prune_some(self, before_received_at: int) -> int:
        # Receipt times rise with positions, so what may go is always a run at the beginning.
        with self.transaction():
            last = self._connection.execute(
                "SELECT epoch, position, received_at FROM"
                " (SELECT epoch, position, received_at FROM messages, spool"
                "  WHERE (epoch, position) <= (loaded_epoch, loaded_position)"
                "  ORDER BY epoch, position LIMIT ?)"
                " WHERE received_at < ? ORDER BY epoch DESC, position DESC LIMIT 1",
                (messages_per_prune, before_received_at),
            ).fetchone()
            if last is None:
                return 0
            self._connection.execute(
                "UPDATE spool SET pruned_epoch = ?, pruned_position = ?, pruned_received_at = ?",
                last,
            )
            self._connection.execute(
                "DELETE FROM sightings WHERE (epoch, position) <= (?, ?)", last[:2]
            )
            return self._connection.execute(
                "DELETE FROM messages WHERE (epoch, position) <= (?, ?)", last[:2]
            ).rowcount

    # -- what both may ask

    def state(self) -> SpoolState:
        """The state now. Read it before the messages: then they hold at least what it says."""
        names = [field.name for field in fields(SpoolState)]
        row = self._row(
            "SELECT source, captured_from, captured_until, captured_epoch, captured_position,"
            " last_received_at, loaded_epoch, loaded_position, pruned_epoch, pruned_position,"
            " pruned_received_at, replication_id, stream_database, server_run, mode, holder"
            " FROM spool"
        )
        return SpoolState(**dict(zip(names, row, strict=True)))

    def epochs(self) -> list[Epoch]:
        """All epochs of this file, in order."""
        with reported(self.path, "read"):
            rows = self._connection.execute(
                "SELECT epoch, token, began_at, cause FROM epochs ORDER BY epoch"
            )
            return [
                Epoch(epoch=epoch, token=token, began_at=began_at, cause=cause)
                for epoch, token, began_at, cause in rows
            ]

    def gaps(self, after: int = 0) -> list[Gap]:
        """The gaps with numbers above `after`, in order. An open one gets its end later."""
        return self._gaps("SELECT * FROM gaps WHERE gap > ? ORDER BY gap", (after,))

    def counts(self) -> SpoolCounts:
        """How much lies here now."""
        messages, unloaded, gaps, open_gaps = self._row(
            "SELECT (SELECT count(*) FROM messages),"
            " (SELECT count(*) FROM messages"
            "  WHERE (epoch, position) > (loaded_epoch, loaded_position)),"
            " (SELECT count(*) FROM gaps), (SELECT count(*) FROM gaps WHERE to_at IS NULL)"
            " FROM spool"
        )
        return SpoolCounts(
            messages=messages, unloaded_messages=unloaded, gaps=gaps, open_gaps=open_gaps
        )

    def size_bytes(self) -> int:
        """What the spool takes on disk, its write-ahead log included."""
        wal = self.path.with_name(f"{self.path.name}-wal")
        return sum(path.stat().st_size for path in (self.path, wal) if path.exists())

    def sightings(self, after: int = 0) -> list[Sighting]:
        """The seen keys with numbers above `after`, in order."""
        with reported(self.path, "read"):
            rows = self._connection.execute(
                "SELECT sighting, epoch, position, began_at, seen_at, database, key, idle_seconds"
                " FROM sightings WHERE sighting > ? ORDER BY sighting",
                (after,),
            )
            return [Sighting(*row) for row in rows]

    def _gaps(self, query: str, values: tuple[int, ...]) -> list[Gap]:
        names = [field.name for field in fields(Gap)]
        with reported(self.path, "read"):
            rows = self._connection.execute(query, values).fetchall()
        return [Gap(**dict(zip(names, row, strict=True))) for row in rows]

    def _row(self, query: str, values: Sequence[int | str | None] = ()) -> tuple[Any, ...]:
        with reported(self.path, "read"):
            row: tuple[Any, ...] | None = self._connection.execute(query, values).fetchone()
        if row is None:
            raise SpoolError(f"the spool {self.path} is damaged: it has lost its state")
        return row

    def _prepare(self, source: str) -> None:
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
            elif found[0] != (application_id,):
                raise SpoolError(f"{self.path} is a database, but not a spool: move it away")
            elif found[1] == (1,):
                self._migrate()
            elif found[1] != (schema_version,):
                raise SpoolError(
                    f"the spool {self.path} has format {found[1][0]}, this version knows"
                    f" {schema_version}: use the version that wrote it"
                )
        (owner,) = self._row("SELECT source FROM spool")
        if owner != source:
            raise SpoolError(
                f"the spool {self.path} belongs to source {owner!r}, not {source!r}:"
                " set ACCOUNTING_SOURCE or ACCOUNTING_DATA_DIR right"
            )

    def _create(self, source: str) -> None:
        self._run_all(SCHEMA + SIGHTINGS)
        run = self._connection.execute
        run(f"PRAGMA application_id = {application_id}")
        run(f"PRAGMA user_version = {schema_version}")
        run(
            "INSERT INTO spool VALUES"
            " (1, ?, NULL, NULL, 0, 0, 0, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL, ?, 1)",
            (source, secrets.token_hex(16)),
        )
        self.begin_epoch("first")

    def _migrate(self) -> None:
        self._run_all(FROM_FORMAT_1 + SIGHTINGS)
        run = self._connection.execute
        run("UPDATE spool SET holder = ?", (secrets.token_hex(16),))
        run(f"PRAGMA user_version = {schema_version}")

    def _run_all(self, statements: str) -> None:
        """Run statements in the transaction under way, which `executescript` would commit."""
        for statement in statements.split(";")[:-1]:
            self._connection.execute(statement)


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells this file from another one under its name; None when there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


@contextmanager
def reported(path: Path, done: str) -> Iterator[None]:
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
