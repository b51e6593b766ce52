"""Takeover: prepares a spool to continue where another collector of its source stopped."""

import secrets
from typing import Final

from accounting.capture.spool.spool import Spool

MAX_FIRST_GAP: Final = (1 << 31) - (1 << 24)
"""A gap's number fits into 31 bits. A spool that takes over continues from a random number below
this one: two files share an epoch's token then, but must not share a gap's number."""


def take_over_position(
    spool: Spool,
    *,
    token: str | None,
    position: int,
    captured_until: int | None,
    last_received_at: int | None,
    replication_id: str | None,
    stream_database: int | None,
    cause: str,
) -> None:
    """Continue after the last message that another collector of this source has loaded.

    With ``token`` the spool continues in that epoch after ``position``. Without one, after a
    subscription, which can't resume, it starts an epoch for ``cause``. Messages beyond that
    position, or not loaded, are deleted: the other collector has them, or a gap covers them.
    The last message that it loaded was received at ``last_received_at``; a checkpoint that proved
    that all before is loaded, ``captured_until``, may be older.
    """
    received_until = max(captured_until or 0, last_received_at or 0) or None
    with spool.transaction():
        (known_epoch,) = spool.fetch_one("SELECT max(epoch) FROM epochs WHERE token = ?", (token,))
        if known_epoch is None:
            _delete_after(
                spool, *spool.fetch_one("SELECT loaded_epoch, loaded_position FROM spool")
            )
        else:
            _delete_after(spool, known_epoch, position)
            spool.execute("DELETE FROM epochs WHERE epoch > ?", (known_epoch,))
        if token is None:
            epoch, position = spool.start_epoch(cause), 0
        else:
            epoch = known_epoch or spool.add_epoch(token, cause)
        # What this file lacks of the epoch counts as pruned.
        spool.execute(
            "UPDATE spool SET captured_epoch = ?1, captured_position = ?2, loaded_epoch = ?1,"
            " loaded_position = ?2, pruned_epoch = ?1, pruned_position = ?2,"
            " pruned_received_at = coalesce(?8, pruned_received_at),"
            " last_received_at = coalesce(?8, last_received_at),"
            " captured_from = coalesce(captured_from, ?3), captured_until = ?3,"
            " replication_id = ?4, stream_database = ?5, server_run = NULL, mode = ?6,"
            " next_gap = max(next_gap, ?7),"
            " unconfirmed_from = CASE WHEN unconfirmed_from IS NOT NULL"
            " THEN coalesce(?8, unconfirmed_from) END",
            (
                epoch,
                position,
                captured_until,
                replication_id,
                stream_database,
                "subscribe" if token is None else "replication",
                secrets.randbelow(MAX_FIRST_GAP),
                received_until,
            ),
        )


def _delete_after(spool: Spool, epoch: int, position: int) -> None:
    """Delete everything after that position, and an open gap."""
    place = (epoch, position)
    spool.delete_messages_after(epoch, position)
    spool.execute("DELETE FROM sightings WHERE (epoch, position) > (?, ?)", place)
    spool.execute("DELETE FROM gaps WHERE to_at IS NULL OR (epoch, position) > (?, ?)", place)
