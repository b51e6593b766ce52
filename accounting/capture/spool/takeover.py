"""Adoption: a spool goes on where another collector of its source was.

Owns what of a spool's own is discarded then, and what the rest counts as. Must not decide whose
turn it is: that is `jobs.standby`.
"""

import secrets

from accounting.capture.spool.spool import Spool

# Numbers of gaps fit into 31 bits. A file that takes over begins at a random one below this.
MAX_FIRST_GAP = (1 << 31) - (1 << 24)


def take_over_position(
    spool: Spool,
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
    with spool.transaction():
        (known,) = spool.fetch_one("SELECT max(epoch) FROM epochs WHERE token = ?", (token,))
        if known is None:
            _discard(spool, *spool.fetch_one("SELECT loaded_epoch, loaded_position FROM spool"))
        else:
            _discard(spool, known, position)
            spool.execute("DELETE FROM epochs WHERE epoch > ?", (known,))
        if token is None:
            epoch, position = spool.start_epoch(cause), 0
        else:
            epoch = known or spool.add_epoch(token, cause)
        # What this file lacks of the epoch is as good as pruned. Its gaps must not have the
        # numbers of the other file's, since both may stand under the same token.
        spool.execute(
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
                secrets.randbelow(MAX_FIRST_GAP),
            ),
        )


def _discard(spool: Spool, epoch: int, position: int) -> None:
    """Forget what lies after that place, and a gap that is open."""
    place = (epoch, position)
    spool.execute("DELETE FROM messages WHERE (epoch, position) > (?, ?)", place)
    spool.execute("DELETE FROM sightings WHERE (epoch, position) > (?, ?)", place)
    spool.execute("DELETE FROM gaps WHERE to_at IS NULL OR (epoch, position) > (?, ?)", place)
