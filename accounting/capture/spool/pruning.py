"""Pruning: deletes messages that were loaded long enough ago."""

from itertools import takewhile
from typing import Final

from accounting.capture.spool.records import MessageOrigin
from accounting.capture.spool.spool import Spool
from accounting.errors import DamagedChunk

BATCH_CHUNKS: Final = 20
"""Chunks per transaction: it takes milliseconds, in which the collector waits for the lock."""

LOADED_CHUNKS: Final = """
SELECT epoch, last_position, chunks.last_received_at, messages FROM chunks, spool
WHERE (epoch, last_position) <= (loaded_epoch, loaded_position)
ORDER BY epoch, last_position LIMIT ?
"""


def prune(spool: Spool, before_received_at: int) -> int:
    """Delete loaded messages received before that time; returns how many.

    Oldest first. The file keeps its size: SQLite uses the free pages again.
    """
    pruned = 0
    while deleted := _prune_batch(spool, before_received_at):
        pruned += deleted
    return pruned


def _prune_batch(spool: Spool, before_received_at: int) -> int:
    # Receipt times rise with positions, so the messages to delete are always the first ones.
    with spool.transaction():
        chunks = spool.fetch_all(LOADED_CHUNKS, (BATCH_CHUNKS,))
        old = list(takewhile(lambda chunk: chunk[2] < before_received_at, chunks))
        if not old:
            return _prune_within_chunk(spool, before_received_at)
        epoch, position, received_at, _ = old[-1]
        spool.execute(
            "DELETE FROM chunks WHERE (epoch, last_position) <= (?, ?)", (epoch, position)
        )
        _record_pruned(spool, epoch, position, received_at)
        return sum(messages for *_, messages in old)


def _prune_within_chunk(spool: Spool, before_received_at: int) -> int:
    loaded = spool.fetch_one("SELECT loaded_epoch, loaded_position FROM spool")
    try:
        deleted = spool.delete_from_first_chunk((loaded[0], loaded[1]), before_received_at)
    except DamagedChunk:
        return 0
    if deleted:
        origin, position, received_at, _, _ = deleted[-1]
        _record_pruned(spool, MessageOrigin.unpack(origin).epoch, position, received_at)
    return len(deleted)


def _record_pruned(spool: Spool, epoch: int, position: int, received_at: int) -> None:
    spool.execute(
        "UPDATE spool SET pruned_epoch = ?, pruned_position = ?, pruned_received_at = ?",
        (epoch, position, received_at),
    )
    spool.execute("DELETE FROM sightings WHERE (epoch, position) <= (?, ?)", (epoch, position))
