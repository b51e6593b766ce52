"""Settles: folds each report once into sessions and their hours.

Reads the reports of a source after its watermark in order, folds them by key, and writes what
changed in the transaction that moves the watermark. So a run that was killed anywhere leaves the
books as they were, and running it again gives the same rows.
"""

import gc
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from heapq import merge
from typing import Final

from sqlalchemy import Engine

from accounting.db.engine import lost_connections
from accounting.domain.session_fold import AllocationKey, Report, StatusKeySighting
from accounting.errors import LockHeld
from accounting.sessions import session_queries, settler
from accounting.sessions.fold_failure import FoldFailed
from accounting.sessions.settler import DUE_BATCH, Evidence, Settler, lock_settling, take_care
from accounting.sources import source_queries, watermark_queries

BATCH: Final = 50_000
"""The most reports in one transaction."""


def settle(engine: Engine, *, limit: int = BATCH) -> int:
    """Settle all loaded reports of every source, then expire sessions; returns the report count.

    Raises LockHeld if another session has the lock of a source, after settling all others, and
    ConnectionLost.
    """
    with lost_connections(), engine.connect() as connection:
        source_ids = [source.source_id for source in source_queries.all_sources(connection)]
    total = 0
    held: LockHeld | None = None
    for source_id in source_ids:
        try:
            total += settle_source(engine, source_id, limit=limit)
        except LockHeld as error:
            held = error
    if held is not None:
        raise held
    return total


def settle_source(engine: Engine, source_id: int, *, limit: int = BATCH, wait: bool = False) -> int:
    """Settle all loaded reports of one source, then expire sessions; returns the report count.

    Raises LockHeld if another session has its lock, unless some were settled; ``wait``: only after
    a while. Raises ConnectionLost.
    """
    settled = 0
    more = True
    failed_keys: set[AllocationKey] = set()
    while more:
        try:
            count, more = _settle_batch(engine, failed_keys, source_id, limit, wait=wait)
        except FoldFailed as failure:
            take_care(failed_keys, failure)
            continue
        except LockHeld:
            if not settled:
                raise
            break
        settled += count
    return settled


def _settle_batch(
    engine: Engine,
    failed_keys: Collection[AllocationKey],
    source_id: int,
    limit: int,
    *,
    wait: bool,
) -> tuple[int, bool]:
    """Settle the next reports; returns how many, and whether there may be more to do."""
    settling = Settler(source_id, memory_limit=0, failed_keys=failed_keys)
    with gc_paused(), lost_connections(), engine.begin() as connection:
        lock_settling(connection, source_id, wait=wait)
        watermark = settling.begin(connection)
        # The source is read before its reports, and only those up to its position are read: of a
        # load that is committed while the query is planned, Postgres may show the rows in some
        # partitions, and not those in a partition that the load created.
        loaded = source_queries.read_source(connection, source_id)
        reports = (
            session_queries.read_reports(
                connection,
                source_id,
                since=watermark.received_at or 0,
                after=watermark.place,
                upto=(loaded.epoch, loaded.position),
                limit=limit,
            )
            if (loaded.epoch, loaded.position) > watermark.place
            else []
        )
        position = watermark.epoch, watermark.position
        if reports:
            position = reports[-1].epoch, reports[-1].position
        drained = len(reports) < limit
        if drained:
            position = max(position, (loaded.epoch, loaded.position))
        sightings = session_queries.read_sightings(
            connection,
            source_id,
            after=watermark.last_sighting,
            upto=position,
        )
        until = loaded.loaded_until
        is_current = (*position, until) == (
            watermark.epoch,
            watermark.position,
            watermark.settled_until,
        )
        if is_current and not (
            sightings
            or (until and session_queries.read_due_keys(connection, source_id, until, limit=1))
        ):
            return 0, False
        reached = replace(
            watermark,
            epoch=position[0],
            position=position[1],
            received_at=reports[-1].received_at if reports else watermark.received_at,
            settled_until=loaded.loaded_until if drained else reports[-1].received_at,
            last_sighting=sightings[-1][:3] if sightings else watermark.last_sighting,
        )
        settling.apply(connection, in_order(reports, sightings))
        batch = settling.finish(connection, reached)
        settler.write(connection, batch)
        if reports or sightings or batch.due_count:
            watermark_queries.open_sessions_changed(connection, [source_id])
        return len(reports), not drained or batch.due_count == DUE_BATCH


def in_order(
    reports: Sequence[Report], sightings: Sequence[StatusKeySighting]
) -> Sequence[Evidence]:
    """A sighting comes after the report at its position and before the next."""
    if not sightings:
        return reports
    both: tuple[Sequence[Evidence], ...] = reports, sightings
    return list(merge(*both, key=lambda item: (item.epoch, item.position)))


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pause the garbage collector during a batch, which makes no cycles.

    It would traverse hundreds of thousands of objects again and again, half of the time that
    settling takes.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
