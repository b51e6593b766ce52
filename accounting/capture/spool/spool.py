"""The spool as the collector and the loader use it.

It stores messages without parsing them, and gaps and epochs without deciding when one begins.
"""

import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from typing import Any, Final

from accounting.capture.spool.messages import MessageStore
from accounting.capture.spool.records import (
    CaptureMode,
    Epoch,
    Gap,
    Message,
    RawKeySighting,
    ResumePoint,
    SpoolState,
)
from accounting.domain.server_identity import ServerIdentity
from accounting.errors import DamagedChunk

MAX_TIME: Final = 1 << 62
"""Microseconds after all times."""

SHIFT_OTHER_TIMES: Final = (
    """
    UPDATE spool SET
        captured_from = CASE WHEN captured_from > :after
            THEN min(max(captured_from + :by, :after), :latest) ELSE captured_from END,
        captured_until = CASE WHEN captured_until > :after
            THEN min(max(captured_until + :by, :after), :latest) ELSE captured_until END,
        last_received_at = CASE WHEN last_received_at > :after
            THEN min(max(last_received_at + :by, :after), :latest) ELSE last_received_at END
    """,
    """
    UPDATE epochs SET began_at = min(max(began_at + :by, :after), :latest) WHERE began_at > :after
    """,
    """
    UPDATE sightings SET
        began_at = CASE WHEN began_at > :after
            THEN min(max(began_at + :by, :after), :latest) ELSE began_at END,
        seen_at = min(max(seen_at + :by, :after), :latest)
    WHERE seen_at > :after
    """,
    # A gap does not end before its beginning.
    """
    UPDATE gaps SET
        from_at = CASE WHEN from_at > :after
            THEN min(max(from_at + :by, :after), :latest) ELSE from_at END,
        to_at = CASE WHEN to_at > :after THEN max(
            min(max(to_at + :by, :after), :latest),
            1 + CASE WHEN from_at > :after
                THEN min(max(from_at + :by, :after), :latest) ELSE from_at END
        ) ELSE to_at END
    WHERE from_at > :after OR to_at > :after
    """,
)
"""Everything but messages, for :meth:`Spool.shift_times`."""

GAP_FOLD_MICROSECONDS: Final = 60_000_000
"""Of the time between two gaps of one cause that are recorded as one."""


class Spool(MessageStore):
    """An open spool."""

    # -- for the collector

    def append(
        self,
        messages: Sequence[Message],
        captured_until: int | None = None,
        *,
        positions: Sequence[int] | None = None,
        resume_point: ResumePoint | None = None,
        estimated_count: int = 0,
        correction: int = 0,
    ) -> None:
        """Store messages in one transaction, with a checkpoint at ``captured_until`` if given.

        Positions are counted, unless ``positions`` gives them. ``resume_point`` is where the
        replication stream resumes after them. The times of the first ``estimated_count`` are
        estimates. ``correction`` is added to every time. Receipt times never fall: one before the
        last stored message or checkpoint is raised to that.
        """
        with self.transaction():
            epoch, last_position, last_received_at = self.fetch_one(
                "SELECT captured_epoch, captured_position,"
                " max(last_received_at, coalesce(captured_until, 0)) FROM spool"
            )
            if positions is None:
                positions = range(last_position + 1, last_position + 1 + len(messages))
            elif positions and positions[0] <= last_position:
                raise ValueError(f"position {positions[0]} does not follow {last_position}")
            last_received_at = self.add_messages(
                epoch,
                positions,
                messages,
                not_before=last_received_at,
                estimated_count=estimated_count,
                correction=correction,
            )
            if positions:
                last_position = positions[-1]
            self.execute(
                "UPDATE spool SET captured_position = ?, last_received_at = ?",
                (last_position, last_received_at),
            )
            if resume_point is not None:
                self.execute(
                    "UPDATE spool SET captured_position = ?, replication_id = ?,"
                    " stream_database = ?",
                    (resume_point.offset, resume_point.replication_id, resume_point.database),
                )
            if captured_until is not None:
                self.checkpoint(captured_until + correction)

    def add_sightings(self, sightings: Sequence[RawKeySighting]) -> None:
        """Store the sightings of a key scan, after the messages that are here now.

        A subscription does not show databases: its messages have 0, and so must the keys.
        """
        with self.transaction():
            epoch, position, mode = self.fetch_one(
                "SELECT captured_epoch, captured_position, mode FROM spool"
            )
            if mode == "subscribe":
                sightings = [sighting._replace(database=0) for sighting in sightings]
            self.execute_many(
                "INSERT INTO sightings (began_at, seen_at, database, key, idle_seconds,"
                " epoch, position) VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(*sighting[:5], epoch, position) for sighting in sightings],
            )

    def checkpoint(self, captured_until: int) -> None:
        """Record that every message received before ``captured_until`` is stored or within a gap.

        The first checkpoint of a spool is where capture began. Raises SpoolError when the file was
        moved or deleted.
        """
        self.check_not_moved()
        with self.transaction():
            self.execute(
                "UPDATE spool SET captured_from = coalesce(captured_from, ?1),"
                " captured_until = max(coalesce(captured_until, ?1), ?1)",
                (captured_until,),
            )

    def start_epoch(self, cause: str) -> int:
        """Start an epoch, whose positions count from the beginning; returns its number."""
        with self.transaction():
            epoch = self.add_epoch(secrets.token_hex(16), cause)
            self.execute("UPDATE spool SET captured_epoch = ?, captured_position = 0", (epoch,))
        return epoch

    def add_epoch(self, token: str, cause: str) -> int:
        """Add an epoch that is known as ``token``; returns its number."""
        with self.transaction():
            (last_received_at,) = self.fetch_one("SELECT last_received_at FROM spool")
            cursor = self.execute(
                "INSERT INTO epochs (token, began_at, cause) VALUES (?, ?, ?)",
                (token, max(self._clock(), last_received_at), cause),
            )
        return int(cursor.lastrowid or 0)

    def set_clock(self, boot: str, offset: int, unconfirmed_from: int | None) -> None:
        """Record the clock of the times: see :class:`SpoolState`."""
        with self.transaction():
            self.execute(
                "UPDATE spool SET boot = ?, clock_offset = ?, unconfirmed_from = ?",
                (boot, offset, unconfirmed_from),
            )

    def shift_times(self, by: int, *, after: int, latest: int = MAX_TIME) -> int:
        """Shift all times later than ``after`` that are not loaded; they stay within both bounds.

        The messages' times become estimates. Returns the number of these messages.
        """
        with self.transaction():
            loaded: Any = self.fetch_one("SELECT loaded_epoch, loaded_position FROM spool")
            with suppress(DamagedChunk):
                after = max(after, self.received_at(*loaded) or 0)
            # What is loaded may be later than ``latest``, after the database's clock was ahead.
            after = min(after, latest)
            shifted = self.shift_messages(by, loaded=loaded, after=after, latest=latest)
            values = {"by": by, "after": after, "latest": latest}
            for statement in SHIFT_OTHER_TIMES:
                self.execute(statement, values)
        return shifted

    def set_server(self, server: ServerIdentity) -> None:
        """Record the server that the current epoch is captured from."""
        with self.transaction():
            self.execute(
                "UPDATE epochs SET server = ? WHERE epoch = (SELECT captured_epoch FROM spool)",
                (server.to_text(),),
            )

    def set_source(self, source: str) -> None:
        """Record the new name of a source that was renamed."""
        with self.transaction():
            self.execute("UPDATE spool SET source = ?", (source,))

    def set_server_run_id(self, run_id: str) -> None:
        """Record the run id of the Redis that is captured from."""
        with self.transaction():
            self.execute("UPDATE spool SET server_run = ?", (run_id,))

    def set_mode(self, mode: CaptureMode) -> None:
        """Record how messages are captured from now on."""
        with self.transaction():
            self.execute("UPDATE spool SET mode = ?", (mode,))
            if mode == "subscribe":
                self.execute("UPDATE spool SET replication_id = NULL, stream_database = NULL")

    def open_gap(self, from_at: int, cause: str, detail: str = "") -> int:
        """Record that messages from ``from_at`` on may be lost. Returns the gap's number.

        A connection that breaks again and again, while nothing is published, is one gap: it opens
        again if it has the same cause, ended less than GAP_FOLD_MICROSECONDS before, and no message
        came since. Not if this one begins before it, where a takeover after a restore has set the
        spool back.
        """
        with self.transaction():
            former = self.execute(
                "UPDATE gaps SET to_at = NULL, detail = ?"
                " WHERE gap = (SELECT max(gap) FROM gaps) AND cause = ? AND to_at > ?"
                " AND from_at <= ?"
                " AND to_at >= (SELECT last_received_at FROM spool)"
                " AND NOT EXISTS (SELECT 1 FROM chunks"
                "  WHERE (chunks.epoch, chunks.last_position) > (gaps.epoch, gaps.position))"
                " RETURNING gap",
                (detail, cause, from_at - GAP_FOLD_MICROSECONDS, from_at),
            ).fetchall()
            if former:
                return int(former[0][0])
            cursor = self.execute(
                "INSERT INTO gaps (gap, epoch, position, from_at, cause, detail)"
                " SELECT next_gap, captured_epoch, captured_position, ?, ?, ? FROM spool",
                (from_at, cause, detail),
            )
            self.execute("UPDATE spool SET next_gap = next_gap + 1")
        return int(cursor.lastrowid or 0)

    def set_gap_cause(self, gap: int, cause: str, detail: str) -> None:
        """Replace the cause of a gap, by what became known after it was opened."""
        with self.transaction():
            self.execute(
                "UPDATE gaps SET cause = ?, detail = ? WHERE gap = ?", (cause, detail, gap)
            )

    def close_gap(self, gap: int, to_at: int) -> None:
        """Record that no message published from ``to_at`` on was lost in this gap.

        A clock that stepped back can't shorten a gap to nothing: it ends after its beginning, and
        not before the last receipt.
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
        """The open gap; there is never more than one."""
        return next(iter(self._gaps("SELECT * FROM gaps WHERE to_at IS NULL", ())), None)

    # -- for the loader

    def mark_loaded(self, epoch: int, position: int) -> None:
        """Record that everything up to that position is committed in Postgres."""
        with self.transaction():
            self.execute(
                "UPDATE spool SET loaded_epoch = ?, loaded_position = ?", (epoch, position)
            )

    def replace_token(self, epoch: int, cause: str, started_at: int) -> str:
        """Give an epoch a new token, and return it; the epoch now starts at ``started_at``.

        For a spool that is older than what Postgres has, restored from a backup for example: its
        positions mean other messages than the same positions under the old token.
        """
        token = secrets.token_hex(16)
        with self.transaction():
            self.execute(
                "UPDATE epochs SET token = ?, cause = ?, began_at = ? WHERE epoch = ?",
                (token, cause, started_at, epoch),
            )
        return token

    def discard_epoch(self, epoch: int) -> None:
        """Delete the messages and sightings of an epoch that must not be loaded."""
        with self.transaction():
            self.delete_epoch_messages(epoch)
            self.execute("DELETE FROM sightings WHERE epoch = ?", (epoch,))
            self.execute("UPDATE epochs SET server = '' WHERE epoch = ?", (epoch,))

    def epoch_and_position_at(self, received_at: int) -> tuple[int, int]:
        """The last (epoch, position) received at that time or before; else before all messages."""
        epochs = [epoch.number for epoch in self.epochs()]
        for epoch in reversed(epochs):
            if position := self.position_at(epoch, received_at):
                return epoch, position
        return epochs[0], 0

    # -- for both

    def state(self) -> SpoolState:
        """The state now. Read it before the messages: then they include what it covers."""
        names = [field.name for field in fields(SpoolState)]
        row = self.fetch_one(
            "SELECT source, captured_from, captured_until, captured_epoch, captured_position,"
            " last_received_at, loaded_epoch, loaded_position, pruned_epoch, pruned_position,"
            " pruned_received_at, replication_id, stream_database, server_run, mode, holder,"
            " boot, clock_offset, unconfirmed_from FROM spool"
        )
        return SpoolState(**dict(zip(names, row, strict=True)))

    def epochs(self) -> list[Epoch]:
        """All epochs of this file, in order."""
        rows = self.fetch_all(
            "SELECT epoch, token, began_at, cause, server FROM epochs ORDER BY epoch"
        )
        return [
            Epoch(
                number=number,
                token=token,
                started_at=started_at,
                cause=cause,
                server=ServerIdentity.from_text(server),
            )
            for number, token, started_at, cause, server in rows
        ]

    def gaps(self, after: int = 0) -> list[Gap]:
        """The gaps with numbers above ``after``, in order; one may be open."""
        return self._gaps("SELECT * FROM gaps WHERE gap > ? ORDER BY gap", (after,))

    def sightings(self, after: int = 0) -> list[RawKeySighting]:
        """The sightings with numbers above ``after``, in order."""
        rows = self.fetch_all(
            "SELECT began_at, seen_at, database, key, idle_seconds, sighting, epoch, position"
            " FROM sightings WHERE sighting > ? ORDER BY sighting",
            (after,),
        )
        return [RawKeySighting(*row) for row in rows]

    def next_sighting(self, after: int, place: tuple[int, int]) -> tuple[int, int] | None:
        """The (epoch, position) of the first sighting above a number and not before a place."""
        rows = self.fetch_all(
            "SELECT epoch, position FROM sightings WHERE sighting > ?"
            " AND (epoch, position) >= (?, ?) ORDER BY sighting LIMIT 1",
            (after, *place),
        )
        return rows[0] if rows else None

    def _gaps(self, query: str, values: tuple[int, ...]) -> list[Gap]:
        names = [field.name for field in fields(Gap)]
        rows = self.fetch_all(query, values)
        return [Gap(**dict(zip(names, row, strict=True))) for row in rows]
