"""A batch: what one transaction of a loader writes, as a value.

A loader prepares a batch without a lock, while the one before is committed. So the transaction
first checks that the source is where the batch begins, and that nobody changed what it was folded
against. Then all of it is written, or nothing.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import Connection, Engine

from accounting.capture.spool.records import SpoolState
from accounting.capture.spool.spool import Spool
from accounting.db.binary_copy import binary_cursor
from accounting.db.engine import lost_connections, psycopg_connection
from accounting.domain.rate_limit import RateLimit
from accounting.errors import ConnectionLost
from accounting.identities import user_queries
from accounting.identities.identity_resolver import NewNames, write_names
from accounting.ingest import message_counts, rejected_messages, report_queries
from accounting.ingest.message_counts import CounterKey
from accounting.ingest.rejected_messages import RejectedMessage
from accounting.ingest.row_encoder import LastMessage
from accounting.ingest.source_lease import check_lease, this_host
from accounting.sessions import settler
from accounting.sessions.settler import SettledBatch, lock_settling
from accounting.sources import source_queries
from accounting.sources.retire import reopen_if_retired
from accounting.sources.source_queries import SourceRow


class StaleBatch(Exception):
    """Raised where a batch may not be written any more. Nothing is written."""


class BatchEnd(NamedTuple):
    """Where a batch ends, and the next one begins: the (epoch, position) in the spool.

    ``received_at``: of the last message; none is received earlier after it. ``is_last``: the batch
    loads everything that was in the spool when it began.
    """

    place: tuple[int, int] = (0, 0)
    received_at: int = 0
    rate_limit: RateLimit = RateLimit()
    is_last: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What a transaction writes. Times in microseconds.

    ``state``: of the spool when the batch began. ``rows``: packed reports. ``unstorable``: the
    indexes of the rejected messages that name an erased user. ``settled``: its ``watermark`` is
    where the source must be, its ``reached`` where it is then.
    """

    state: SpoolState
    rows: Sequence[bytes]
    names: NewNames
    rejected: Sequence[RejectedMessage]
    unstorable: Collection[int]
    settled: SettledBatch
    captured_until: int | None
    replication_id: str | None
    stream_database: int | None
    message_count: int
    last: LastMessage | None
    end: BatchEnd


def lock_for_loading(connection: Connection, spool: Spool, state: SpoolState) -> SourceRow:
    """Lock settling and the source, while the collector of this spool has the lease.

    Settling first, in the order of all that take both locks.
    """
    mode = state.mode or "auto"
    source_id = source_queries.find_source_id(connection, state.source)
    if source_id is None:
        source_id = source_queries.add_source(connection, state.source, mode)
    lock_settling(connection, source_id)
    source = source_queries.lock_source(connection, state.source, mode)
    check_lease(connection, source, spool)
    return source


def commit_batch(
    engine: Engine, spool: Spool, batch: Batch, version: int | None, *, rejected_per_hour: int
) -> int:
    """Write a batch in a transaction of its own; returns the version of the source's row.

    ``version``: that of the batch before. Raises StaleBatch if another loader moved the source, or
    anything changed that the batch was folded against. The file of the spool is not read.
    """
    with lost_connections(), engine.begin() as connection:
        source = lock_for_loading(connection, spool, batch.state)
        if (
            source.version != version
            or not settler.is_current(connection, batch.settled)
            or user_queries.pruned_username_count(connection) != batch.names.pruned_count
        ):
            raise StaleBatch
        return write_batch(connection, source, batch, rejected_per_hour=rejected_per_hour)


def write_batch(
    connection: Connection, source: SourceRow, batch: Batch, *, rejected_per_hour: int
) -> int:
    """Write a batch under the locks of :func:`lock_for_loading`, and move the source past it.

    Returns the version of the source's row. ``rejected_per_hour``: how many rejected messages of
    each hour are stored.
    """
    counts = Counter(CounterKey("rejected", message.reason) for message in batch.rejected)
    if batch.rows:
        with binary_cursor(psycopg_connection(connection)) as cursor:
            counts[CounterKey("loaded")] = report_queries.copy_reports(cursor, batch.rows)
    write_names(connection, batch.names)
    rejected_messages.add(
        connection,
        source.source_id,
        batch.rejected,
        per_hour=rejected_per_hour,
        unstorable=batch.unstorable,
    )
    message_counts.add(connection, source.source_id, counts)
    last_received_at = None if batch.last is None else batch.last.received_at
    reached = batch.settled.reached
    version = source_queries.advance(
        connection,
        source,
        epoch=reached.epoch,
        position=reached.position,
        captured_until=batch.captured_until,
        loaded_until=reached.settled_until,
        last_received_at=last_received_at,
        mode=batch.state.mode,
        replication_id=batch.replication_id,
        stream_database=batch.stream_database,
        loaded_by_host=this_host(),
    )
    if version is None:
        raise ConnectionLost(
            f"source {source.source} moved while loading: another loader is at work"
        )
    reopen_if_retired(connection, source, last_received_at)
    settler.write(connection, batch.settled)
    return version
