"""The spool: raw messages, durable on the local disk before anything else happens to them.

Owns what was captured, how far that is proven, which gaps there are, and how far the loader has
come. One process writes messages (the collector), one reads them (the loader); `spool_file` keeps
both. Going on for another collector is `adoption`, deleting what was loaded is `pruning`.

Must not parse a message, know Redis or Postgres, or decide when something was lost.
All times are whole microseconds since the Unix epoch, UTC.
"""

import secrets
from collections.abc import Sequence
from dataclasses import fields

from accounting.capture.spool.file import BulkInsert, SpoolFile, Value
from accounting.capture.spool.records import (
    CaptureMode,
    Epoch,
    Gap,
    Message,
    RawKeySighting,
    ResumePoint,
    Sighting,
    SpoolCounts,
    SpooledRow,
    SpoolState,
)

MAX_PLACE = (1 << 62, 0)

INSERT_MESSAGES = BulkInsert(
    "INSERT INTO messages (epoch, position, received_at, estimated, database, channel, payload)"
    " VALUES ",
    columns=7,
)


class Spool(SpoolFile):
    """An open spool; what holds for its file holds for it."""

    # -- the collector's half

    def append(
        self,
        messages: Sequence[Message],
        captured_until: int | None = None,
        *,
        positions: Sequence[int] | None = None,
        resume_point: ResumePoint | None = None,
        estimated_count: int = 0,
    ) -> None:
        """Store messages (received_at, database, channel, payload) in one transaction.

        The spool counts their positions, unless `positions` gives them. `resume` is the place in
        the replication stream that is reached with them. The first `estimated` of them have times
        that nobody measured. A receipt time never falls, whatever the clock did: one before the
        last message stored or the last tick becomes that. With `captured_until`, the tick is in the
        same transaction.
        """
        with self.transaction():
            epoch, position, last = self.fetch_one(
                "SELECT captured_epoch, captured_position,"
                " max(last_received_at, coalesce(captured_until, 0)) FROM spool"
            )
            if positions is None:
                positions = range(position + 1, position + 1 + len(messages))
            values: list[Value] = []
            add = values.extend
            unmeasured = min(estimated_count, len(messages))
            flags = [1] * unmeasured + [0] * (len(messages) - unmeasured)
            for at, flag, (received_at, database, channel, payload) in zip(
                positions, flags, messages, strict=True
            ):
                if received_at > last:
                    last = received_at
                add((epoch, at, last, flag, database, channel, payload))
            self.insert(INSERT_MESSAGES, values)
            if positions:
                position = positions[-1]
            self.execute(
                "UPDATE spool SET captured_position = ?, last_received_at = ?", (position, last)
            )
            if resume_point is not None:
                self._resume_at(resume_point)
            if captured_until is not None:
                self.checkpoint(captured_until)

    def _resume_at(self, resume: ResumePoint) -> None:
        self.execute(
            "UPDATE spool SET captured_position = ?, replication_id = ?, stream_database = ?",
            (resume.offset, resume.replication_id, resume.database),
        )

    def add_sightings(self, keys: Sequence[RawKeySighting]) -> None:
        """Store what a scan found, after the messages that are here now."""
        with self.transaction():
            epoch, position = self.fetch_one("SELECT captured_epoch, captured_position FROM spool")
            self.execute_many(
                "INSERT INTO sightings (epoch, position, began_at, seen_at, database, key,"
                " idle_seconds) VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        epoch,
                        position,
                        k.scan_started_at,
                        k.seen_at,
                        k.database,
                        k.key,
                        k.idle_seconds,
                    )
                    for k in keys
                ],
            )

    def checkpoint(self, captured_until: int) -> None:
        """Everything received before `captured_until` is in the spool, or within a gap.

        The first tick of a spool is where capture began. Raises SpoolError when the file is not
        where it was.
        """
        self.check_not_moved()
        with self.transaction():
            self.execute(
                "UPDATE spool SET captured_from = coalesce(captured_from, ?1),"
                " captured_until = max(coalesce(captured_until, ?1), ?1)",
                (captured_until,),
            )

    def start_epoch(self, cause: str) -> int:
        """Begin another run of positions, at 0, and return its number."""
        with self.transaction():
            epoch = self.add_epoch(secrets.token_hex(16), cause)
            self.execute("UPDATE spool SET captured_epoch = ?, captured_position = 0", (epoch,))
        return epoch

    def add_epoch(self, token: str, cause: str) -> int:
        """Add a run of positions that is known as `token`, and return its number."""
        with self.transaction():
            (last,) = self.fetch_one("SELECT last_received_at FROM spool")
            cursor = self.execute(
                "INSERT INTO epochs (token, began_at, cause) VALUES (?, ?, ?)",
                (token, max(self._clock(), last), cause),
            )
        return int(cursor.lastrowid or 0)

    def set_server_run_id(self, server_run: str) -> None:
        """Remember the run id of the Redis that is captured from."""
        with self.transaction():
            self.execute("UPDATE spool SET server_run = ?", (server_run,))

    def set_mode(self, mode: CaptureMode) -> None:
        """Remember how messages are captured from now on."""
        with self.transaction():
            self.execute("UPDATE spool SET mode = ?", (mode,))
            if mode == "subscribe":
                self.execute("UPDATE spool SET replication_id = NULL, stream_database = NULL")

    def open_gap(self, from_at: int, cause: str, detail: str = "") -> int:
        """Messages received from `from_at` on may have been lost. Returns the gap's number."""
        with self.transaction():
            cursor = self.execute(
                "INSERT INTO gaps (gap, epoch, position, from_at, cause, detail)"
                " SELECT next_gap, captured_epoch, captured_position, ?, ?, ? FROM spool",
                (from_at, cause, detail),
            )
            self.execute("UPDATE spool SET next_gap = next_gap + 1")
        return int(cursor.lastrowid or 0)

    def set_gap_cause(self, gap: int, cause: str, detail: str) -> None:
        """Name another cause: what was found out after the gap was opened."""
        with self.transaction():
            self.execute(
                "UPDATE gaps SET cause = ?, detail = ? WHERE gap = ?", (cause, detail, gap)
            )

    def close_gap(self, gap: int, to_at: int) -> None:
        """Record that nothing published from `to_at` on was lost in this gap.

        The end is put after the beginning and not before the last receipt, so that a clock that
        stepped back can't shorten a gap to nothing.
        """
        with self.transaction():
            cursor = self.execute(
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

    def read_messages(
        self, epoch: int, position: int, limit: int, end: tuple[int, int] = MAX_PLACE
    ) -> list[SpooledRow]:
        """Up to `limit` messages after that position, in order; (0, 0) is before all of them.

        The last one is at `end`, or before.
        """
        return self.fetch_all(
            "SELECT (epoch << 35) | (database << 1) | estimated, position, received_at, channel,"
            " payload FROM messages"
            " WHERE (epoch, position) > (?, ?) AND (epoch, position) <= (?, ?)"
            " ORDER BY epoch, position LIMIT ?",
            (epoch, position, *end, limit),
        )

    def mark_loaded(self, epoch: int, position: int) -> None:
        """Everything up to that position is committed in Postgres."""
        with self.transaction():
            self.execute(
                "UPDATE spool SET loaded_epoch = ?, loaded_position = ?", (epoch, position)
            )

    def replace_token(self, epoch: int, cause: str, began_at: int) -> str:
        """Give an epoch another token, and return it; what came before `began_at` has the old one.

        For a spool that turned out older than what Postgres has (restored from a backup, say): its
        positions mean other messages than the same positions under the old token.
        """
        token = secrets.token_hex(16)
        with self.transaction():
            self.execute(
                "UPDATE epochs SET token = ?, cause = ?, began_at = ? WHERE epoch = ?",
                (token, cause, began_at, epoch),
            )
        return token

    def position_at(self, epoch: int, received_at: int) -> int:
        """The last position of an epoch that was received at that time or before; 0 for none."""
        (position,) = self.fetch_one(
            "SELECT coalesce(max(position), 0) FROM messages WHERE epoch = ? AND received_at <= ?",
            (epoch, received_at),
        )
        return int(position)

    def epoch_and_position_at(self, received_at: int) -> tuple[int, int]:
        """The last (epoch, position) received at that time or before; else before everything."""
        epochs = [epoch.number for epoch in self.epochs()]
        for epoch in reversed(epochs):
            if position := self.position_at(epoch, received_at):
                return epoch, position
        return epochs[0], 0

    def last_position(self, epoch: int) -> int | None:
        """The last position of an epoch that lies here; None when none does."""
        (last,) = self.fetch_one("SELECT max(position) FROM messages WHERE epoch = ?", (epoch,))
        return None if last is None else int(last)

    def received_at(self, epoch: int, position: int) -> int | None:
        """When the message at that place was received; None where there is none."""
        (received_at,) = self.fetch_one(
            "SELECT max(received_at) FROM messages WHERE epoch = ? AND position = ?",
            (epoch, position),
        )
        return None if received_at is None else int(received_at)

    # -- what both may ask

    def state(self) -> SpoolState:
        """The state now. Read it before the messages: then they hold at least what it says."""
        names = [field.name for field in fields(SpoolState)]
        row = self.fetch_one(
            "SELECT source, captured_from, captured_until, captured_epoch, captured_position,"
            " last_received_at, loaded_epoch, loaded_position, pruned_epoch, pruned_position,"
            " pruned_received_at, replication_id, stream_database, server_run, mode, holder"
            " FROM spool"
        )
        return SpoolState(**dict(zip(names, row, strict=True)))

    def epochs(self) -> list[Epoch]:
        """All epochs of this file, in order."""
        rows = self.fetch_all("SELECT epoch, token, began_at, cause FROM epochs ORDER BY epoch")
        return [
            Epoch(number=epoch, token=token, started_at=began_at, cause=cause)
            for epoch, token, began_at, cause in rows
        ]

    def gaps(self, after: int = 0) -> list[Gap]:
        """The gaps with numbers above `after`, in order. An open one gets its end later."""
        return self._gaps("SELECT * FROM gaps WHERE gap > ? ORDER BY gap", (after,))

    def counts(self) -> SpoolCounts:
        """How much lies here now."""
        messages, unloaded, gaps, open_gaps = self.fetch_one(
            "SELECT (SELECT count(*) FROM messages),"
            " (SELECT count(*) FROM messages"
            "  WHERE (epoch, position) > (loaded_epoch, loaded_position)),"
            " (SELECT count(*) FROM gaps), (SELECT count(*) FROM gaps WHERE to_at IS NULL)"
            " FROM spool"
        )
        return SpoolCounts(
            messages=messages, unloaded_messages=unloaded, gaps=gaps, open_gaps=open_gaps
        )

    def sightings(self, after: int = 0) -> list[Sighting]:
        """The seen keys with numbers above `after`, in order."""
        rows = self.fetch_all(
            "SELECT sighting, epoch, position, began_at, seen_at, database, key, idle_seconds"
            " FROM sightings WHERE sighting > ? ORDER BY sighting",
            (after,),
        )
        return [Sighting(*row) for row in rows]

    def _gaps(self, query: str, values: tuple[int, ...]) -> list[Gap]:
        names = [field.name for field in fields(Gap)]
        rows = self.fetch_all(query, values)
        return [Gap(**dict(zip(names, row, strict=True))) for row in rows]
