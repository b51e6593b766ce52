"""Pruning: a spool forgets what was loaded long enough ago.

Owns what may go, and how much at once. Must not decide how long it is kept: the loader is told.
"""

from accounting.capture.spool.spool import Spool

# Deleting takes the writer's lock away from the collector: keep each bite in the milliseconds.
BATCH_MESSAGES = 2_000


def prune(spool: Spool, before_received_at: int) -> int:
    """Delete loaded messages received before that time; returns how many.

    Oldest first, a few thousand a transaction. The file keeps its size: the room is used again.
    """
    pruned = 0
    while bite := _prune_batch(spool, before_received_at):
        pruned += bite
    return pruned


def _prune_batch(spool: Spool, before_received_at: int) -> int:
    # Receipt times rise with positions, so what may go is always a run at the beginning.
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
