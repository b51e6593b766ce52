"""Pruning: deletes messages that were loaded long enough ago."""

from typing import Final

from accounting.capture.spool.spool import Spool

BATCH_MESSAGES: Final = 2_000
"""Messages per transaction: it takes milliseconds, in which the collector waits for the lock."""


def prune(spool: Spool, before_received_at: int) -> int:
    """Delete loaded messages received before that time; returns how many.

    Oldest first. The file keeps its size: SQLite uses the free pages again.
    """
    pruned = 0
    while deleted := _prune_batch(spool, before_received_at):
        pruned += deleted
    return pruned


def _prune_batch(spool: Spool, before_received_at: int) -> int:
    # Receipt times rise with positions, so the rows to delete are always the first ones.
    with spool.transaction():
        last = spool.execute(
            "SELECT epoch, position, received_at FROM"
            " (SELECT epoch, position, received_at FROM messages, spool"
            "  WHERE (epoch, position) <= (loaded_epoch, loaded_position)"
            "  ORDER BY epoch, position LIMIT ?)"
            " WHERE received_at < ? ORDER BY epoch DESC, position DESC LIMIT 1",
            (BATCH_MESSAGES, before_received_at),
        ).fetchone()
        if last is None:
            return 0
        spool.execute(
            "UPDATE spool SET pruned_epoch = ?, pruned_position = ?, pruned_received_at = ?", last
        )
        spool.execute("DELETE FROM sightings WHERE (epoch, position) <= (?, ?)", last[:2])
        return spool.execute(
            "DELETE FROM messages WHERE (epoch, position) <= (?, ?)", last[:2]
        ).rowcount
