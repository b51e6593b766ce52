"""The messages of a spool: stored in chunks, found by position and by time of receipt."""

import sqlite3
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import accumulate, chain
from operator import itemgetter
from typing import Final

import structlog

from accounting.capture.spool.chunks import (
    CHUNK_MESSAGES,
    INSERT_CHUNK,
    UPDATE_CHUNK,
    Chunk,
    DamagedContent,
    decode,
    encode,
    encode_rows,
)
from accounting.capture.spool.file import DAMAGED_ADVICE, SpoolFile, translate_errors
from accounting.capture.spool.records import Message, SpooledRow
from accounting.errors import DamagedChunk, SpoolError
from accounting.plurals import counted

log = structlog.get_logger()

Place = tuple[int, int]
"""(epoch, position)"""

MIN_PLACE: Final = (0, 0)
MAX_PLACE: Final = (1 << 62, 0)
"""Before and after all others."""

MAX_NUMBER: Final = 1 << 62
"""After those of all chunks."""

DAMAGED_SPOOL: Final = "spool_damaged"
"""The cause of a gap in place of messages that can't be read."""

CHUNKS_AFTER: Final = """
SELECT * FROM chunks WHERE (epoch, last_position) > (?, ?) ORDER BY epoch, last_position
"""
LAST_CHUNK_BEFORE: Final = """
SELECT * FROM chunks WHERE (epoch, last_position) < (?, ?)
ORDER BY epoch DESC, last_position DESC LIMIT 1
"""
LAST_CHUNK_STARTED_BY: Final = """
SELECT * FROM chunks WHERE epoch = ? AND first_received_at <= ?
ORDER BY first_received_at DESC, last_position DESC LIMIT 1
"""
SIZES_AFTER: Final = """
SELECT number, messages, size, first_received_at, (epoch, first_position) <= (?1, ?2) FROM chunks
WHERE (epoch, last_position) > (?1, ?2) ORDER BY epoch, last_position
"""
PLACE_BEFORE: Final = """
SELECT epoch, last_position FROM chunks WHERE number < ? ORDER BY number DESC LIMIT 1
"""
NUMBERS_AFTER: Final = """
SELECT number FROM chunks WHERE (epoch, last_position) > (?, ?) AND last_received_at > ?
"""
POSITION: Final = itemgetter(1)
RECEIVED_AT: Final = itemgetter(2)


class MessageStore(SpoolFile):
    """The messages of an open spool.

    Whatever decodes a chunk raises :class:`DamagedChunk` when its bytes are not those that were
    written; :meth:`replace_by_gap` removes it.
    """

    # -- writing; each within a transaction

    def add_messages(
        self,
        epoch: int,
        positions: Sequence[int],
        messages: Sequence[Message],
        *,
        not_before: int,
        estimated_count: int = 0,
        correction: int = 0,
    ) -> int:
        """Store messages; returns the last time of receipt, ``not_before`` for no message.

        ``correction`` is added to every time. One before ``not_before``, or before that of an
        earlier message, is raised to that. The first ``estimated_count`` times are estimates.
        """
        if len(positions) != len(messages):
            raise ValueError(f"{len(positions)} positions for {len(messages)} messages")
        last_received_at = not_before
        for begin in range(0, len(messages), CHUNK_MESSAGES):
            part = slice(begin, begin + CHUNK_MESSAGES)
            times: Sequence[int]
            times, databases, channels, payloads = zip(*messages[part], strict=True)
            if correction:
                times = [time + correction for time in times]
            received_at = sorted(times)
            if received_at[0] < last_received_at or received_at != list(times):
                received_at = list(accumulate(chain((last_received_at,), times), max))[1:]
            last_received_at = received_at[-1]
            origins = [database << 1 for database in databases]
            if begin < estimated_count:
                estimated = slice(0, estimated_count - begin)
                origins[estimated] = [origin | 1 for origin in origins[estimated]]
            self._insert(encode(epoch, origins, positions[part], received_at, channels, payloads))
        return last_received_at

    def shift_messages(self, by: int, *, loaded: Place, after: int, latest: int) -> int:
        """Shift the times later than ``after`` of the messages after ``loaded``.

        They stay within both bounds, and become estimates. Returns the number of these messages.
        A damaged chunk stays as it is.
        """
        shifted = 0
        for (number,) in self.fetch_all(NUMBERS_AFTER, (*loaded, after)):
            chunk = self._chunk(number)
            try:
                rows = self._decode(chunk)
            except DamagedChunk:
                continue
            first = max(
                bisect_right(rows, after, key=RECEIVED_AT),
                len(rows) - len(_cut(rows, chunk.epoch, after=loaded)),
            )
            rows[first:] = [
                (origin | 1, position, min(max(received_at + by, after), latest), channel, payload)
                for origin, position, received_at, channel, payload in rows[first:]
            ]
            self._replace(chunk, rows)
            shifted += len(rows) - first
        return shifted

    def delete_messages_after(self, epoch: int, position: int) -> None:
        """Delete all messages after that position."""
        place = epoch, position
        chunk = self._first(CHUNKS_AFTER, place)
        try:
            if chunk and (chunk.epoch, chunk.first_position) <= place:
                self._replace(chunk, _cut(self._decode(chunk), epoch, end=place))
        except DamagedChunk as damage:
            log.error("messages can't be read and are deleted", reason=str(damage))
        self.execute("DELETE FROM chunks WHERE (epoch, last_position) > (?, ?)", place)

    def delete_epoch_messages(self, epoch: int) -> None:
        """Delete all messages of an epoch."""
        self.execute("DELETE FROM chunks WHERE epoch = ?", (epoch,))

    def delete_from_first_chunk(self, end: Place, before_received_at: int) -> list[SpooledRow]:
        """Delete what the first chunk has up to ``end`` and before that time; returns it."""
        chunk = self._first("SELECT * FROM chunks ORDER BY epoch, last_position LIMIT 1")
        if chunk is None:
            return []
        rows = self._decode(chunk)
        count = min(
            len(_cut(rows, chunk.epoch, end=end)),
            bisect_left(rows, before_received_at, key=RECEIVED_AT),
        )
        if count:
            self._replace(chunk, rows[count:])
        return rows[:count]

    def replace_by_gap(self, damage: DamagedChunk) -> None:
        """Record a gap in place of a chunk that can't be read.

        It lasts from the message before it to the one after it: the chunk's times may be damaged.
        """
        with self.transaction():
            chunk = self._first("SELECT * FROM chunks WHERE number = ?", (damage.number,))
            if chunk is None or chunk.is_intact():
                return
            self.execute("DELETE FROM chunks WHERE number = ?", (damage.number,))
            from_at, to_at, *place = self.fetch_one(
                "SELECT coalesce(nullif(pruned_received_at, 0), captured_from, min(began_at)),"
                " last_received_at, max(pruned_epoch, min(epoch)), pruned_position"
                " FROM spool, epochs"
            )
            before = self._first(LAST_CHUNK_BEFORE, (chunk.epoch, chunk.last_position))
            if before and before.is_intact():
                from_at, place = before.last_received_at, [before.epoch, before.last_position]
            following = self._first(CHUNKS_AFTER, (chunk.epoch, chunk.last_position))
            if following and following.is_intact():
                to_at = following.first_received_at
            self.execute(
                "INSERT INTO gaps (gap, epoch, position, from_at, to_at, cause, detail)"
                " SELECT next_gap, ?, ?, ?, ?, ?, ? FROM spool",
                (
                    *place,
                    from_at,
                    max(from_at, to_at) + 1,
                    DAMAGED_SPOOL,
                    str(damage),
                ),
            )
            self.execute("UPDATE spool SET next_gap = next_gap + 1")
        log.error("messages are lost, a gap is recorded", reason=str(damage))

    # -- reading

    def read_messages(
        self, epoch: int, position: int, limit: int, end: Place = MAX_PLACE
    ) -> list[SpooledRow]:
        """The next messages after that position and up to ``end``, in order; empty if none is left.

        At most ``limit``; fewer where otherwise a chunk would be decoded twice.
        """
        after, rows = (epoch, position), list[SpooledRow]()
        reached = after
        for chunk in self._chunks(CHUNKS_AFTER, after):
            if rows and chunk.is_intact() and len(rows) + chunk.messages > limit:
                self._check_index(reached, before=chunk.number)
                break
            decoded = self._decode(chunk)
            self._check_index(reached, before=chunk.number)
            rows += _cut(decoded, chunk.epoch, after=after, end=end)
            reached = chunk.epoch, chunk.last_position
            if len(rows) >= limit or reached >= end:
                break
        else:
            self._check_index(reached)
        return rows[:limit]

    def position_at(self, epoch: int, received_at: int) -> int:
        """The last position of an epoch that was received at that time or before; 0 for none."""
        chunk = self._first(LAST_CHUNK_STARTED_BY, (epoch, received_at))
        if chunk is None:
            return 0
        rows = self._decode(chunk)
        return rows[bisect_right(rows, received_at, key=RECEIVED_AT) - 1][1]

    def last_position(self, epoch: int) -> int | None:
        """The last stored position of an epoch; None when it has no message here."""
        (position,) = self.fetch_one(
            "SELECT max(last_position) FROM chunks WHERE epoch = ?", (epoch,)
        )
        return None if position is None else int(position)

    def received_at(self, epoch: int, position: int) -> int | None:
        """When the message at that position was received; None when it isn't here."""
        chunk = self._chunk_at(epoch, position)
        rows = [] if chunk is None else self._decode(chunk)
        return next((row[2] for row in rows if row[1] == position), None)

    def count_after(self, epoch: int, position: int, limit: int) -> tuple[int, int, int | None]:
        """The messages after that position: number, bytes, receipt of the first.

        Counting ends at ``limit`` messages.
        """
        messages, size, oldest_at = 0, 0, None
        with self._rows(SIZES_AFTER, (epoch, position)) as chunks:
            for number, chunk_messages, chunk_size, first_received_at, is_partial in chunks:
                if is_partial:
                    rows = _cut(self._decode(self._chunk(number)), epoch, after=(epoch, position))
                    messages, oldest_at = len(rows), rows[0][2]
                    size = sum(len(channel) + len(payload) for *_, channel, payload in rows)
                    continue
                messages += chunk_messages
                size += chunk_size
                oldest_at = first_received_at if oldest_at is None else oldest_at
                if messages >= limit:
                    break
        return min(messages, limit), size, oldest_at

    # -- chunks

    @contextmanager
    def _rows(self, query: str, values: Sequence[int]) -> Iterator[sqlite3.Cursor]:
        """The rows of a query, fetched as they are needed."""
        with (
            translate_errors(self.path, "read"),
            closing(self._connection.execute(query, values)) as cursor,
        ):
            yield cursor

    def _chunks(self, query: str, values: Sequence[int] = ()) -> Iterator[Chunk]:
        with self._rows(query, values) as rows:
            yield from map(Chunk._make, rows)

    def _first(self, query: str, values: Sequence[int] = ()) -> Chunk | None:
        return next(self._chunks(query, values), None)

    def _chunk(self, number: int) -> Chunk:
        (chunk,) = self._chunks("SELECT * FROM chunks WHERE number = ?", (number,))
        return chunk

    def _chunk_at(self, epoch: int, position: int) -> Chunk | None:
        """The chunk with that position within its range; None if there is none."""
        chunk = self._first(CHUNKS_AFTER, (epoch, position - 1))
        covers = chunk is not None and (chunk.epoch, chunk.first_position) <= (epoch, position)
        return chunk if covers else None

    def _check_index(self, place: Place, *, before: int = MAX_NUMBER) -> None:
        """Raise SpoolError if a chunk after ``place`` has a number below ``before``.

        The index of places does not have it then: one of its pages is damaged.
        """
        last = self.fetch_all(PLACE_BEFORE, (before,))
        if last and last[0] > place:
            # Another process may have stored it since the index was read.
            if before == MAX_NUMBER and self._first(CHUNKS_AFTER, place):
                return
            raise SpoolError(f"the spool {self.path} can't be read: {DAMAGED_ADVICE}")

    def _decode(self, chunk: Chunk) -> list[SpooledRow]:
        try:
            return decode(chunk)
        except DamagedContent:
            raise DamagedChunk(
                f"the spool {self.path} is damaged: {counted(chunk.messages, 'message')} of epoch"
                f" {chunk.epoch} up to position {chunk.last_position} can't be read",
                number=chunk.number,
            ) from None

    def _insert(self, chunks: Iterable[Chunk]) -> None:
        self.execute_many(INSERT_CHUNK, [chunk[1:] for chunk in chunks])

    def _replace(self, chunk: Chunk, rows: Sequence[SpooledRow]) -> None:
        """Give a chunk other messages. Numbers must rise with places, so it keeps its own."""
        if rows:
            (changed,) = encode_rows(rows)
            self.execute(UPDATE_CHUNK, (*changed[1:], chunk.number))
        else:
            self.execute("DELETE FROM chunks WHERE number = ?", (chunk.number,))


def _cut(
    rows: list[SpooledRow], epoch: int, *, after: Place = MIN_PLACE, end: Place = MAX_PLACE
) -> list[SpooledRow]:
    """Those rows of one epoch that are after one place and up to another."""
    first, last = 0, len(rows)
    if epoch <= after[0]:
        first = bisect_right(rows, after[1], key=POSITION) if epoch == after[0] else last
    if epoch >= end[0]:
        last = bisect_right(rows, end[1], key=POSITION) if epoch == end[0] else 0
    return rows[first:last]
