"""Epochs of a spool that were captured from the Redis of another source.

A collector captures before it can ask the database, and a failover can lead it to another source's
Redis. The other source has those messages: they are not loaded, and the collector's own Redis was
not captured meanwhile, which is a gap.
"""

from collections.abc import Collection
from typing import NamedTuple

from sqlalchemy import Connection

from accounting.capture.spool.records import Epoch, SpoolState
from accounting.capture.spool.spool import Spool
from accounting.domain.server_identity import ServerIdentity
from accounting.errors import SourceConflict
from accounting.sources import gap_queries, identity
from accounting.sources.source_queries import SourceRow


class RefusedEpoch(NamedTuple):
    """The first epoch to be loaded that must not be, and why."""

    epoch: Epoch
    conflict: SourceConflict


def refused_epoch(
    connection: Connection,
    spool: Spool,
    source: SourceRow,
    state: SpoolState,
    claimed: Collection[ServerIdentity],
) -> RefusedEpoch | None:
    """Claim the histories of the epochs that are left to load; the first that is another source's.

    Raises SourceConflict when all of the spool is. The caller holds the lock of the source, which
    has ``claimed`` some of them already.
    """
    spool_epochs = spool.epochs()
    if not source.epoch:
        identity.check_spool_is_new(connection, source, [epoch.token for epoch in spool_epochs])
    for epoch in spool_epochs:
        if epoch.number < state.loaded_epoch or epoch.server in claimed:
            continue
        try:
            identity.claim(connection, source, epoch.server)
        except SourceConflict as conflict:
            return RefusedEpoch(epoch, conflict)
    return None


def record_refused_epoch(
    connection: Connection, spool: Spool, source: SourceRow, refused: RefusedEpoch, latest: int
) -> None:
    """Record the gap in place of an epoch that another one follows; no time is after ``latest``."""
    started_at = min(refused.epoch.started_at, latest)
    following = next(epoch for epoch in spool.epochs() if epoch.number > refused.epoch.number)
    gap_queries.upsert_gap(
        connection,
        source.source_id,
        epoch_token=refused.epoch.token,
        gap_number=identity.CONFLICT_GAP_NUMBER,
        after=(source.epoch, source.position),
        from_at=started_at,
        to_at=max(started_at, min(following.started_at, latest)),
        cause="another_redis",
        detail=str(refused.conflict),
    )
