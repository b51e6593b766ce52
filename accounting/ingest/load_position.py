"""Find the position in a spool from which to load: the database's position in the spool's terms.

A spool names its epochs by tokens, the database numbers them. They disagree when the spool was
lost or restored from a copy, or when the database was restored from a backup. Every such case is
resolved here, so that nothing is loaded twice, and nothing is lost without a gap.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import structlog
from sqlalchemy import Connection

from accounting.capture.spool.records import Epoch
from accounting.capture.spool.spool import Spool
from accounting.errors import LeaseHeld, SpoolLacksMessages
from accounting.ingest.source_lease import books_position, is_behind, lacks_after
from accounting.sources import gap_queries, source_queries
from accounting.sources.source_queries import SourceRow

log = structlog.get_logger()

RESTORED_SPOOL: Final = "spool_older"
"""The cause of an epoch that continues in a spool restored from a copy."""


class LoadPosition(NamedTuple):
    """The database's numbers of the spool's epochs, and the last loaded (epoch, position) there."""

    epoch_numbers: dict[int, int]
    start: tuple[int, int]


def find_load_position(
    connection: Connection, spool: Spool, source: SourceRow, now: int, *, waits: bool = False
) -> LoadPosition:
    """The position after which to load; adds epochs and gaps that the database lacks.

    ``now``: by the database's clock, in microseconds. No epoch is added with a later time.

    Raises LeaseHeld when another collector's spool went further: this spool must take over its
    position before any of it is loaded. ``waits``: raises SpoolLacksMessages instead of recording
    a gap where this spool lacks messages that may be in the backlog of Redis.
    """
    known = source_queries.epochs_by_token(connection, source.source_id)
    if is_behind(spool, books_position(source, known)):
        raise LeaseHeld(f"source {source.source} went on without this spool: it must take over")
    epochs = _epochs_until(spool, now)
    current = next((epoch for epoch in epochs if known.get(epoch.token) == source.epoch), None)
    if current is not None and not _has_diverged(spool, current, source):
        start = current.number, source.position
    elif not source.epoch:
        start = epochs[0].number, 0
    elif restored := _relabel_restored_spool(spool, epochs, known, current, source):
        # Receipt times of a source never decrease: messages that are not later are loaded.
        start = restored, spool.position_at(restored, source.last_received_at or 0)
        epochs = _epochs_until(spool, now)
    else:
        _record_lost_spool(connection, spool, source, epochs[0])
        start = spool.epoch_and_position_at(source.loaded_until or 0)
    epoch_numbers: dict[int, int] = {}
    for epoch in epochs:
        epoch_numbers[epoch.number] = known.get(epoch.token) or source_queries.add_epoch(
            connection, source.source_id, epoch.token, epoch.started_at, epoch.cause
        )
    in_stream = source.replication_id is not None
    if waits and in_stream and current is not None and lacks_after(spool, current.token, start[1]):
        raise SpoolLacksMessages(
            f"the spool of source {source.source} lacks messages after the loaded position: "
            "its collector must get them again from the backlog of Redis"
        )
    _record_pruned(connection, spool, source, epochs, start)
    return LoadPosition(epoch_numbers, start)


def _epochs_until(spool: Spool, now: int) -> list[Epoch]:
    return [replace(epoch, started_at=min(epoch.started_at, now)) for epoch in spool.epochs()]


def _has_diverged(spool: Spool, epoch: Epoch, source: SourceRow) -> bool:
    """Whether the spool lacks messages of the epoch that are loaded, or has others in their place.

    This happens when a spool was restored from a copy, and then captured other messages at the same
    positions. In replication, positions are offsets of the stream and always mean the same message.
    """
    state = spool.state()
    if epoch.number != state.captured_epoch and source.replication_id is not None:
        # The source's position is beyond the last message: offsets advance without messages too.
        return False
    last = (
        state.captured_position
        if epoch.number == state.captured_epoch
        else spool.last_position(epoch.number)
    )
    if last is not None and last < source.position:
        return True
    if state.resume_point is not None:
        return False
    received_at = spool.received_at(epoch.number, source.position)
    return received_at is not None and received_at > (source.last_received_at or 0)


def _relabel_restored_spool(
    spool: Spool,
    epochs: Sequence[Epoch],
    known: Mapping[str, int],
    current: Epoch | None,
    source: SourceRow,
) -> int | None:
    """Give the last known epoch of a spool that was restored from a copy a new token.

    Under the old token its positions mean other messages in the database. Returns the epoch's
    number; None for a new spool.
    """
    for epoch in epochs:
        if epoch.cause == RESTORED_SPOOL and epoch.token not in known:
            return epoch.number  # relabelled by a loader that was killed before it committed
    last = current or next((epoch for epoch in reversed(epochs) if epoch.token in known), None)
    if last is None:
        return None
    log.error("the spool is older than the database", source=source.source)
    spool.replace_token(last.number, RESTORED_SPOOL, source.captured_until or last.started_at)
    return last.number


def _record_lost_spool(
    connection: Connection, spool: Spool, source: SourceRow, epoch: Epoch
) -> None:
    """Record a gap before a new spool of a source that was captured earlier.

    It starts where loading ended: messages captured after that were lost with the former spool.
    """
    from_at = source.loaded_until or source.last_received_at or epoch.started_at
    captured_from = spool.state().captured_from
    if captured_from is not None and captured_from <= from_at:
        return  # this spool captured at the same time as the former one
    log.error("a new spool for a known source, a gap is recorded", source=source.source)
    gap_queries.upsert_gap(
        connection,
        source.source_id,
        epoch_token=epoch.token,
        gap_number=gap_queries.LOST_SPOOL_GAP_NUMBER,
        after=(source.epoch, source.position),
        from_at=min(from_at, epoch.started_at),
        to_at=None,
        cause="spool_lost",
        detail="the collector began with an empty spool",
    )


def _record_pruned(
    connection: Connection,
    spool: Spool,
    source: SourceRow,
    epochs: Sequence[Epoch],
    start: tuple[int, int],
) -> None:
    """Record a gap for messages that the database lacks and the spool has pruned.

    The spool only prunes loaded messages. So the database was restored from a backup older than the
    spool's retention, or is a different one.
    """
    state = spool.state()
    if start >= (state.pruned_epoch, state.pruned_position):
        return
    log.error("the spool is pruned beyond the database's position", source=source.source)
    to_at = state.pruned_received_at + 1
    from_at = source.loaded_until or source.last_received_at or epochs[0].started_at
    gap_queries.upsert_gap(
        connection,
        source.source_id,
        epoch_token=next(epoch.token for epoch in epochs if epoch.number == state.pruned_epoch),
        gap_number=gap_queries.PRUNED_GAP_NUMBER,
        after=(source.epoch, source.position),
        from_at=min(from_at, to_at),
        to_at=to_at,
        cause="spool_pruned",
        detail="the database was set back further than the spool reaches",
    )
