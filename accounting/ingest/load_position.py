"""Where to load on: the database's position in terms of one spool.

A spool names its epochs by tokens, the database numbers them. The two agree nearly always; what is
to be done where they don't, because a spool was lost or set back, or the database was, is decided
here and nowhere else: nothing may be loaded twice, and nothing lost without a gap.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import structlog
from sqlalchemy import Connection

from accounting.capture.spool.records import Epoch
from accounting.capture.spool.spool import Spool
from accounting.errors import LeaseHeld
from accounting.ingest.source_lease import is_overtaken, place_of
from accounting.sources import source_queries
from accounting.sources.source_queries import SourceRow

log = structlog.get_logger()

OLDER_SPOOL: Final = "spool_older"
LOST_GAP: Final = 0
"""The gap that a lost spool left, under the new one's first epoch; the spool's own begin at 1."""
PRUNED_GAP: Final = -1


def resume(
    connection: Connection, spool: Spool, source: SourceRow
) -> tuple[dict[int, int], tuple[int, int]]:
    """Where to read on.

    Returns the database's number of each of the spool's epochs, and the spool's (epoch, position)
    up to which everything is loaded. Raises LeaseHeld when another collector's spool went further:
    this one must take over before any of it is loaded.
    """
    known = source_queries.epoch_tokens(connection, source.source_id)
    if is_overtaken(spool, place_of(source, known)):
        raise LeaseHeld(f"source {source.source} went on without this spool: it must take over")
    epochs = spool.epochs()
    here = next((epoch for epoch in epochs if known.get(epoch.token) == source.epoch), None)
    if here is not None and not _is_another(spool, here, source):
        start = here.number, source.position
    elif not source.epoch:
        start = epochs[0].number, 0
    elif older := _older(spool, epochs, known, here, source):
        # One source's receipt times never fall: what is not younger is in the books.
        start = older, spool.position_at(older, source.last_received_at or 0)
        epochs = spool.epochs()
    else:
        _lost_spool(connection, spool, source, epochs[0])
        start = spool.epoch_and_position_at(source.loaded_until or 0)
    numbers: dict[int, int] = {}
    for epoch in epochs:
        numbers[epoch.number] = known.get(epoch.token) or source_queries.add_epoch(
            connection, source.source_id, epoch.token, epoch.started_at, epoch.cause
        )
    _note_pruned(connection, spool, source, epochs, start)
    return numbers, start


def _is_another(spool: Spool, epoch: Epoch, source: SourceRow) -> bool:
    """Whether the spool's epoch lacks what the database has of it, or has other messages there.

    It was set back from a copy then, and went on with other messages at the same positions. The
    positions of a replication stream are the stream's own: there they are never others.
    """
    state = spool.state()
    if epoch.number != state.captured_epoch and source.replication_id is not None:
        # A stream goes on in silence: the books went with the ticks beyond its last message.
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


def _older(
    spool: Spool,
    epochs: Sequence[Epoch],
    known: Mapping[str, int],
    here: Epoch | None,
    source: SourceRow,
) -> int | None:
    """The epoch of a spool that was set back from a copy; None for a new spool.

    What its positions stood for in the database was other messages, so that epoch goes on under
    another token.
    """
    relabelled = [
        epoch.number for epoch in epochs if epoch.cause == OLDER_SPOOL and epoch.token not in known
    ]
    if relabelled:  # by a loader that was killed before it came to the database
        return relabelled[0]
    last = here or next((one for one in reversed(epochs) if one.token in known), None)
    if last is None:
        return None
    log.error("the spool is older than the database", source=source.source)
    spool.replace_token(last.number, OLDER_SPOOL, source.captured_until or last.started_at)
    return last.number


def _lost_spool(connection: Connection, spool: Spool, source: SourceRow, epoch: Epoch) -> None:
    """A new spool for a source that was captured before: what lies between is a gap."""
    # What was captured after that and not loaded is lost with the spool.
    from_at = source.loaded_until or source.last_received_at or epoch.started_at
    captured_from = spool.state().captured_from
    if captured_from is not None and captured_from <= from_at:
        return  # it captured beside the other
    log.error("a new spool for a known source, a gap is recorded", source=source.source)
    source_queries.put_gap(
        connection,
        source.source_id,
        token=epoch.token,
        gap=LOST_GAP,
        after=(source.epoch, source.position),
        from_at=min(from_at, epoch.started_at),
        to_at=None,
        cause="spool_lost",
        detail="the collector began with an empty spool",
    )


def _note_pruned(
    connection: Connection,
    spool: Spool,
    source: SourceRow,
    epochs: Sequence[Epoch],
    start: tuple[int, int],
) -> None:
    """Record as a gap what the database lacks and the spool has deleted.

    Only what is loaded is deleted: so the database was set back, to a backup that is older than
    the spool's retention, or is another one.
    """
    state = spool.state()
    if start >= (state.pruned_epoch, state.pruned_position):
        return
    log.error("the spool is pruned beyond the database's position", source=source.source)
    to_at = state.pruned_received_at + 1
    from_at = source.loaded_until or source.last_received_at or epochs[0].started_at
    source_queries.put_gap(
        connection,
        source.source_id,
        token=next(one.token for one in epochs if one.number == state.pruned_epoch),
        gap=PRUNED_GAP,
        after=(source.epoch, source.position),
        from_at=min(from_at, to_at),
        to_at=to_at,
        cause="spool_pruned",
        detail="the database was set back further than the spool reaches",
    )
