"""Settles: folds each report once into sessions and their hours.

Reads the reports of a source after its watermark in order, folds them by key, and writes what
changed in the transaction that moves the watermark. So a run that was killed anywhere leaves the
books as they were, and running it again gives the same rows.
"""

import gc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from heapq import merge
from typing import Final

from sqlalchemy import Connection, Engine

from accounting.db.engine import lost_connections
from accounting.db.locks import require_lock
from accounting.domain import session_fold
from accounting.domain.calendar import BucketLength
from accounting.domain.realm_rules import RealmRules
from accounting.domain.session_fold import AllocationKey, Report, SessionState, StatusKeySighting
from accounting.domain.session_hours import UsageChanges
from accounting.domain.thread_silence import LocatedSession
from accounting.errors import LockHeld
from accounting.identities import bucket_queries
from accounting.identities.realm_queries import all_rules
from accounting.sessions import relay_threads, session_hour_queries, session_queries, usage_deltas
from accounting.sessions.key_fold import KeyFold
from accounting.sources import gap_queries, source_queries, watermark_queries
from accounting.sources.watermark_queries import Watermark

BATCH: Final = 50_000
"""The most reports in one transaction."""
DUE_BATCH: Final = 20_000
"""The most due sessions in one transaction."""


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
        settled = 0
        try:
            while (count := _settle_batch(engine, source_id, limit)) == limit:
                settled += count
            settled += count
            while _expire_batch(engine, source_id, DUE_BATCH) == DUE_BATCH:
                pass
        except LockHeld as error:
            if not settled:
                held = error
        total += settled
    if held is not None:
        raise held
    return total


def _settle_batch(engine: Engine, source_id: int, limit: int) -> int:
    with _gc_paused(), lost_connections(), engine.begin() as connection:
        require_lock(connection, f"settle.{source_id}")
        # The source is read before its reports, and only those up to its position are read: of a
        # load that is committed while the query is planned, Postgres may show the rows in some
        # partitions, and not those in a partition that the load created.
        loaded = source_queries.read_source(connection, source_id)
        watermark = watermark_queries.read_watermark(connection, source_id)
        reports = session_queries.read_reports(
            connection,
            source_id,
            since=watermark.received_at or 0,
            after=(watermark.epoch, watermark.position),
            upto=(loaded.epoch, loaded.position),
            limit=limit,
        )
        reached = watermark.epoch, watermark.position
        if reports:
            reached = reports[-1].epoch, reports[-1].position
        drained = len(reports) < limit
        sightings = session_queries.read_sightings(
            connection,
            source_id,
            after=watermark.last_sighting,
            upto=(loaded.epoch, loaded.position) if drained else reached,
        )
        if reports or sightings:
            _fold(connection, source_id, reports, sightings)
        moved = watermark_queries.advance_watermark(
            connection,
            watermark,
            Watermark(
                source_id=source_id,
                epoch=reached[0],
                position=reached[1],
                received_at=reports[-1].received_at if reports else watermark.received_at,
                settled_until=loaded.loaded_until if drained else reports[-1].received_at,
                last_sighting=sightings[-1][:3] if sightings else watermark.last_sighting,
            ),
        )
        assert moved, "another process moved the watermark in spite of the lock"
        return len(reports)


def _fold(
    connection: Connection,
    source_id: int,
    reports: list[Report],
    sightings: list[StatusKeySighting],
) -> None:
    rules = all_rules(connection)
    gap_positions = gap_queries.gap_positions(connection, source_id)
    folds: dict[tuple[int, int, bytes, int], KeyFold] = {}
    evidence = []
    for item in _in_order(reports, sightings):
        key = source_id, item.database, item.username_key, item.allocation_id
        fold = folds.get(key)
        if fold is None:
            fold = folds[key] = KeyFold(AllocationKey(*key), rules, gap_positions)
        evidence.append((item, fold))
    for key, session in session_queries.read_open_sessions(
        connection, [fold.key for fold in folds.values()]
    ):
        folds[key].resume(session)
    for item, fold in evidence:
        fold.apply(item)
    changed = [(fold, session) for fold in folds.values() for session in fold.state.changed]
    _write(
        connection,
        rules,
        [(fold.key, session) for fold, session in changed],
        [pair for fold in folds.values() for pair in fold.state.merged],
    )
    relay_threads.record_activity(
        connection, source_id, (_located(fold, session) for fold, session in changed)
    )


def _located(fold: KeyFold, session: SessionState) -> LocatedSession:
    """A session with its server; if unknown, the server of the key's active session."""
    address = session.server_address
    if address is None and fold.state.active is not None:
        address = fold.state.active.server_address
    return fold.key.database, fold.key.allocation_id, address, session


def _in_order(
    reports: list[Report], sightings: list[StatusKeySighting]
) -> Iterable[Report | StatusKeySighting]:
    """A sighting comes after the report at its position and before the next."""
    if not sightings:
        return reports
    both: tuple[Iterable[Report | StatusKeySighting], ...] = reports, sightings
    return merge(*both, key=lambda item: (item.epoch, item.position))


def _expire_batch(engine: Engine, source_id: int, limit: int) -> int:
    with _gc_paused(), lost_connections(), engine.begin() as connection:
        require_lock(connection, f"settle.{source_id}")
        until = watermark_queries.read_watermark(connection, source_id).settled_until
        if until is None:
            return 0
        rules = all_rules(connection)
        due = list(session_queries.read_due_sessions(connection, source_id, until, limit))
        expired: list[tuple[AllocationKey, SessionState]] = []
        rechecks: list[tuple[SessionState, int]] = []
        for key, session in due:
            grace = rules[session.realm_id].grace_at(session.started_at)
            if session_fold.expire(session, until, grace):
                expired.append((key, session))
            else:
                rechecks.append((session, session.expires_at + grace))
        _write(connection, rules, expired, [])
        relay_threads.record_expiry(
            connection,
            source_id,
            [
                (key.database, key.allocation_id, session.server_address, session)
                for key, session in expired
            ],
            until,
        )
        session_queries.reschedule(connection, rechecks)
        return len(due)


def _write(
    connection: Connection,
    rules: Mapping[int, RealmRules],
    changed: list[tuple[AllocationKey, SessionState]],
    merged: list[tuple[bytes, SessionState]],
) -> None:
    if not changed:
        return
    changes = UsageChanges(
        session_id
        for pending_id, session in merged
        for session_id in (pending_id, session.session_id)
    )
    for _, session in changed:
        changes.add_session(session, rules[session.realm_id].calendar)
    session_hour_queries.materialize_hours(connection, changes.sessions_needing_hour_rows)
    session_hour_queries.merge_pending(connection, merged)
    session_hour_queries.update_flags(
        connection,
        [
            session
            for _, session in changed
            if session.prior is not None
            and (session.prior.confirmed, session.prior.estimated)
            != (session.confirmed, session.estimated)
        ]
        + [session for _, session in merged],
    )
    session_queries.upsert_sessions(
        connection,
        (
            (
                key,
                session,
                session.expires_at + rules[session.realm_id].grace_at(session.started_at),
                changes.single_hours.get(session.session_id),
            )
            for key, session in changed
        ),
    )
    session_hour_queries.add_hours(connection, changes.hour_rows)
    usage_deltas.queue_usage_deltas(connection, changes.deltas())
    usage_deltas.queue_peak_deltas(connection, changes.peak_slices)
    bucket_queries.insert_buckets(
        connection,
        (
            (
                realm_id,
                BucketLength.HOUR,
                rules[realm_id].calendar.bucket(BucketLength.HOUR, starts_at),
            )
            for realm_id, starts_at in changes.realm_hours
        ),
    )


@contextmanager
def _gc_paused() -> Iterator[None]:
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
