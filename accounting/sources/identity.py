"""The identity of a source: one history of one Redis.

A source claims the histories of the servers that it is captured from: run ids, replication ids,
and the nodes of a cluster (``source_histories``). A claimed history belongs to its source for good,
also when the source is stopped or retired: its collector may come back and resume from the backlog.
So two names on one Redis would count its messages twice, at once or later, and the second is
refused (:class:`~accounting.errors.SourceConflict`). ``source rename`` renames the source.

A standby must see the server of the lease's holder (:func:`suspected_conflict`), otherwise its
messages would be in no source. A refused collector is recorded (:func:`record_conflict`), with a
gap for its uncaptured messages, until it captures under another name.
"""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, Engine, delete, func, select
from sqlalchemy.dialects.postgresql import insert

from accounting.db.engine import lost_connections
from accounting.db.schema import (
    epochs,
    source_conflicts,
    source_histories,
    sources,
)
from accounting.domain.calendar import to_micros
from accounting.domain.server_identity import ServerIdentity
from accounting.errors import SourceConflict
from accounting.sources import gap_queries, lease_queries, source_queries
from accounting.sources.lease_queries import Lease
from accounting.sources.source_queries import SourceRow
from accounting.sources.trouble import CONFLICT, enqueue_trouble

KEPT_HISTORIES: Final = 64
"""Claims that a source keeps. Each restart of a Redis adds two; older ones can't be resumed."""
CONFLICT_GAP_NUMBER: Final = -2
"""The gap of an epoch that was captured from another source's Redis."""
KEPT_CONFLICTS: Final = timedelta(days=7)


def find_conflict(
    connection: Connection, name: str, server: ServerIdentity
) -> SourceConflict | None:
    """The reason why a collector must not capture ``server`` as source ``name``; changes nothing.

    ``name`` may be new.
    """
    checked = server.histories | server.claims | {server.previous_history}
    owners = {
        row.history: row
        for row in connection.execute(
            select(source_histories.c.history, sources.c.source_id, sources.c.source)
            .join(sources, sources.c.source_id == source_histories.c.source_id)
            .where(source_histories.c.history.in_(checked))
            .order_by(source_histories.c.history)
        )
    }
    previous_owner = owners.pop(server.previous_history, None)
    for owner in owners.values():
        if owner.source != name:
            return _two_names(connection, name, owner.source_id, owner.source, server)
    is_known = f"history {server.replication_id}" in owners
    if (
        previous_owner is not None
        and previous_owner.source != name
        and not is_known
        and not _is_captured_elsewhere(connection, previous_owner.source_id, server)
    ):
        return _two_names(connection, name, previous_owner.source_id, previous_owner.source, server)
    return None


def _is_captured_elsewhere(connection: Connection, source_id: int, server: ServerIdentity) -> bool:
    """Whether the history that ``server`` continues goes on at another server.

    A replica that was promoted on purpose, while its master works on, began a history of its own.
    """
    lease = lease_queries.valid_lease(connection, source_id)
    if lease is None:
        return False
    holder = lease.server
    return (
        holder.run_id != server.run_id and holder.replication_id == server.previous_replication_id
    )


def _two_names(
    connection: Connection, name: str, owner_id: int, owner: str, server: ServerIdentity
) -> SourceConflict:
    lease = lease_queries.valid_lease(connection, owner_id)
    if lease is not None:
        advice = f"which {lease.host} collects: one Redis has one name, stop this collector"
    else:
        advice = (
            f"which is not collected now: set ACCOUNTING_SOURCE={owner}, or give it the new name "
            f"with `turn-accounting source rename {owner} {name}`"
        )
    return SourceConflict(
        f"the Redis ({server}) of source '{name}' has the history of source '{owner}', {advice}",
        source_id=owner_id,
        server=server.to_text(),
    )


def claim(connection: Connection, source: SourceRow, server: ServerIdentity) -> None:
    """Claim the histories of a server for a source. Raises SourceConflict.

    The caller holds the lock of the source.
    """
    if not server.histories:
        return
    _raise_if(find_conflict(connection, source.source, server))
    claimed = connection.execute(
        insert(source_histories)
        .values(
            [
                {"history": history, "source_id": source.source_id}
                for history in sorted(server.claims)
            ]
        )
        .on_conflict_do_nothing()
        .returning(source_histories.c.history)
    ).all()
    if not claimed:
        return
    # Another source may have claimed one of them since the check above.
    _raise_if(find_conflict(connection, source.source, server))
    newest = (
        select(source_histories.c.history)
        .where(source_histories.c.source_id == source.source_id)
        .order_by(source_histories.c.claimed_at.desc())
        .limit(KEPT_HISTORIES + len(server.node_ids))
    )
    connection.execute(
        delete(source_histories).where(
            source_histories.c.source_id == source.source_id,
            source_histories.c.history.not_in(newest),
        )
    )


def _raise_if(conflict: SourceConflict | None) -> None:
    if conflict is not None:
        raise conflict


def check_spool_is_new(
    connection: Connection, source: SourceRow, epoch_tokens: Collection[str]
) -> None:
    """Raise SourceConflict when a new source's spool was loaded as another source.

    That source was renamed, and the database was restored from a backup of before.
    """
    former = connection.execute(
        select(sources.c.source_id, sources.c.source)
        .join(epochs, epochs.c.source_id == sources.c.source_id)
        .where(epochs.c.token.in_(epoch_tokens), sources.c.source_id != source.source_id)
        .limit(1)
    ).first()
    if former is not None:
        raise SourceConflict(
            f"the spool of source '{source.source}' was loaded as source '{former.source}': "
            f"run `turn-accounting source rename {former.source} {source.source}` first",
            source_id=former.source_id,
        )


def suspected_conflict(
    source: SourceRow, holder: Lease, server: ServerIdentity | None, first_seen_at: datetime
) -> SourceConflict | None:
    """The conflict of a standby that sees another server than the lease's holder.

    Only a suspicion: after a failover or a restart of Redis one of them sees it first. None while
    one of them does not know its server, and until the holder has looked after ``first_seen_at``,
    when the standby first saw its own.
    """
    if (
        server is None
        or not holder.server.histories
        or holder.server_seen_at is None
        or holder.server_seen_at <= first_seen_at
        or holder.server.shares_history(server)
    ):
        return None
    return SourceConflict(
        f"source '{source.source}' is collected by {holder.host} from another Redis "
        f"({holder.server}) than this collector's ({server}): each Redis needs its own "
        "ACCOUNTING_SOURCE",
        source_id=source.source_id,
        server=server.to_text(),
        loses_messages=True,
    )


def record_conflict(
    engine: Engine, conflict: SourceConflict, *, holder: str, since_seconds: float
) -> None:
    """Record that a collector was refused, and a gap if its messages are not captured.

    The first time is a ``source.trouble``: of the gap where there is one.
    ``holder`` identifies the collector, as in a lease. It saw its server ``since_seconds`` ago for
    the first time. Each attempt extends the gap.
    """
    with lost_connections(), engine.begin() as connection:
        # Under the lock of the source, so that nothing beyond the gap's position is settled.
        source = source_queries.lock_source_by_id(connection, conflict.source_id)
        now = connection.execute(select(func.clock_timestamp())).scalar_one()
        connection.execute(
            delete(source_conflicts).where(source_conflicts.c.last_seen_at < now - KEPT_CONFLICTS)
        )
        is_known = connection.execute(
            select(source_conflicts.c.conflict_id).where(
                source_conflicts.c.source_id == conflict.source_id,
                source_conflicts.c.holder == holder,
            )
        ).first()
        values = {"server": conflict.server, "message": str(conflict), "last_seen_at": now}
        row = connection.execute(
            insert(source_conflicts)
            .values(
                source_id=conflict.source_id,
                holder=holder,
                from_at=now - timedelta(seconds=since_seconds),
                **values,
            )
            .on_conflict_do_update(constraint="conflict_is_recorded_once", set_=values)
            .returning(source_conflicts.c.conflict_id, source_conflicts.c.from_at)
        ).one()
        if conflict.loses_messages:
            gap_queries.upsert_gap(
                connection,
                source.source_id,
                epoch_token=_gap_token(row.conflict_id),
                gap_number=CONFLICT_GAP_NUMBER,
                after=(source.epoch, source.position),
                from_at=to_micros(row.from_at),
                to_at=to_micros(now),
                cause="another_redis",
                detail=str(conflict),
            )
        elif is_known is None:
            enqueue_trouble(
                connection, source.source_id, CONFLICT, str(conflict), since=row.from_at
            )


def resolve_conflicts(
    connection: Connection, source_id: int, server: ServerIdentity, holder: str
) -> None:
    """Forget the conflicts of a collector that captures now, and end their gaps here.

    It is recognized by its spool; under another name also by its directory or its server.
    """
    rows = connection.execute(select(source_conflicts)).all()
    for row in rows:
        refused = ServerIdentity.from_text(row.server)
        has_other_name = row.source_id != source_id and (
            bool(refused.histories & server.histories)
            or row.holder.rpartition("/")[0] == holder.rpartition("/")[0]
        )
        if row.holder != holder and not has_other_name:
            continue
        connection.execute(
            delete(source_conflicts).where(source_conflicts.c.conflict_id == row.conflict_id)
        )
        gap_queries.extend_gap(
            connection, row.source_id, _gap_token(row.conflict_id), CONFLICT_GAP_NUMBER
        )


def _gap_token(conflict_id: int) -> str:
    return f"conflict {conflict_id}"
