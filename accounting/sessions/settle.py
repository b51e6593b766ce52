"""Settle: reports into sessions and their hours, each report once.

Reads the reports of a source after its watermark in order, lets ``domain.session_fold`` cut and
sum them,
and writes what changed together with the watermark. Killed anywhere and run again, the books are
the same.
"""

import gc
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from heapq import merge
from typing import Final

from sqlalchemy import Connection, Engine

from accounting.db.engine import lost_connections
from accounting.db.locks import try_lock
from accounting.domain import session_fold
from accounting.domain.calendar import BucketLength
from accounting.domain.realm_rules import RealmRules
from accounting.domain.session_fold import KeyState, Phase, Report, SessionState, StatusKeySighting
from accounting.domain.session_hours import UsageChanges
from accounting.identities import bucket_queries
from accounting.identities.realm_queries import all_rules
from accounting.sessions import relay_threads, session_hour_queries, session_queries, usage_deltas
from accounting.sessions.session_queries import AllocationKey
from accounting.sources import source_queries
from accounting.sources.source_queries import Watermark

BATCH: Final = 50_000
"""Reports in one transaction at the most."""
DUE_BATCH: Final = 20_000


def settle(engine: Engine, *, limit: int = BATCH) -> int:
    """Settle everything that is loaded, of every source; returns how many reports.

    Then ends the lives whose time has passed. Does nothing for a source that another scheduler
    is settling. Raises ConnectionLost.
    """
    with lost_connections(), engine.connect() as connection:
        found = [source.source_id for source in source_queries.all_sources(connection)]
    total = 0
    for source_id in found:
        while (count := _settle_some(engine, source_id, limit)) == limit:
            total += count
        total += count
        while _expire_some(engine, source_id, DUE_BATCH) == DUE_BATCH:
            pass
    return total


def _settle_some(engine: Engine, source_id: int, limit: int) -> int:
    with _uncollected(), lost_connections(), engine.begin() as connection:
        if not try_lock(connection, f"settle.{source_id}"):
            return 0
        # The source before its reports: then all up to its position are among those read.
        loaded = source_queries.source(connection, source_id)
        mark = source_queries.watermark(connection, source_id)
        reports = session_queries.read_reports(
            connection,
            source_id,
            since=mark.received_at or 0,
            after=(mark.epoch, mark.position),
            limit=limit,
        )
        reached = mark.epoch, mark.position
        if reports:
            reached = reports[-1].epoch, reports[-1].position
        drained = len(reports) < limit
        sightings = session_queries.read_sightings(
            connection,
            source_id,
            after=mark.last_sighting,
            upto=(loaded.epoch, loaded.position) if drained else reached,
        )
        if reports or sightings:
            _take(connection, source_id, reports, sightings)
        moved = source_queries.settled(
            connection,
            mark,
            Watermark(
                source_id=source_id,
                epoch=reached[0],
                position=reached[1],
                received_at=reports[-1].received_at if reports else mark.received_at,
                until=loaded.loaded_until if drained else reports[-1].received_at,
                last_sighting=sightings[-1][:3] if sightings else mark.last_sighting,
            ),
        )
        assert moved, "the lock of settling does not hold"
        return len(reports)


def _take(
    connection: Connection,
    source_id: int,
    reports: list[Report],
    sightings: list[StatusKeySighting],
) -> None:
    rules = all_rules(connection)
    key_states: defaultdict[AllocationKey, KeyState] = defaultdict(KeyState)
    heard = [
        (
            one,
            key_states[AllocationKey(source_id, one.database, one.username_key, one.allocation_id)],
        )
        for one in _in_order(reports, sightings)
    ]
    for key, session in session_queries.fetch_open_sessions(connection, key_states):
        if session.phase is Phase.PENDING:
            key_states[key].pending = session
        else:
            key_states[key].active = session
    gap_positions = source_queries.gap_positions(connection, source_id)
    graces = {realm_id: _Graces(rule) for realm_id, rule in rules.items()}
    for one, key_state in heard:
        grace = graces[one.realm_id]
        if isinstance(one, StatusKeySighting):
            began = one.seen_at if key_state.active is None else key_state.active.started_at
            session_fold.apply_sighting(key_state, one, grace=grace.at(began))
        else:
            began = one.received_at if key_state.active is None else key_state.active.started_at
            session_fold.apply_report(
                key_state,
                one,
                source_id=source_id,
                grace=grace.at(began),
                gap_positions=gap_positions,
            )
    _write(
        connection,
        rules,
        [(key, session) for key, key_state in key_states.items() for session in key_state.changed],
        [pair for key_state in key_states.values() for pair in key_state.merged],
    )
    relay_threads.record_activity(
        connection,
        source_id,
        (
            (key.database, key.allocation_id, _address(key_state, session), session)
            for key, key_state in key_states.items()
            for session in key_state.changed
        ),
    )


def _address(key_state: KeyState, session: SessionState) -> str | None:
    """The server of a life: where it has none, that of the life that its key last had."""
    if session.server_address is None and key_state.active is not None:
        return key_state.active.server_address
    return session.server_address


def _in_order(
    reports: list[Report], sightings: list[StatusKeySighting]
) -> Iterable[Report | StatusKeySighting]:
    """A sighting comes after the report at its position and before the next."""
    if not sightings:
        return reports
    both: tuple[Iterable[Report | StatusKeySighting], ...] = reports, sightings
    return merge(*both, key=lambda one: (one.epoch, one.position))


def _expire_some(engine: Engine, source_id: int, limit: int) -> int:
    with _uncollected(), lost_connections(), engine.begin() as connection:
        if not try_lock(connection, f"settle.{source_id}"):
            return 0
        until = source_queries.watermark(connection, source_id).until
        if until is None:
            return 0
        rules = all_rules(connection)
        due = list(session_queries.fetch_due_sessions(connection, source_id, until, limit))
        ended: list[tuple[AllocationKey, SessionState]] = []
        waiting: list[tuple[SessionState, int]] = []
        for key, session in due:
            grace = _grace(rules, session)
            if session_fold.expire(session, until, grace):
                ended.append((key, session))
            else:
                waiting.append((session, session.expires_at + grace))
        _write(connection, rules, ended, [])
        relay_threads.record_expiry(
            connection,
            source_id,
            [
                (key.database, key.allocation_id, session.server_address, session)
                for key, session in ended
            ],
            until,
        )
        session_queries.reschedule(connection, waiting)
        return len(due)


def _write(
    connection: Connection,
    rules: Mapping[int, RealmRules],
    touched: list[tuple[AllocationKey, SessionState]],
    absorbed: list[tuple[bytes, SessionState]],
) -> None:
    if not touched:
        return
    changes = UsageChanges(
        one for pending, session in absorbed for one in (pending, session.session_id)
    )
    for _, session in touched:
        changes.add_session(session, rules[session.realm_id].calendar)
    session_hour_queries.materialize_hours(connection, changes.sessions_needing_hour_rows)
    session_hour_queries.merge_pending(connection, absorbed)
    session_hour_queries.update_flags(
        connection,
        [
            session
            for _, session in touched
            if session.prior is not None
            and (session.prior.confirmed, session.prior.estimated)
            != (session.confirmed, session.estimated)
        ]
        + [session for _, session in absorbed],
    )
    session_queries.upsert_sessions(
        connection,
        (
            (
                key,
                session,
                session.expires_at + _grace(rules, session),
                changes.single_hours.get(session.session_id),
            )
            for key, session in touched
        ),
    )
    session_hour_queries.add_hours(connection, changes.hour_rows)
    usage_deltas.queue_usage_deltas(connection, changes.deltas())
    usage_deltas.queue_peak_deltas(connection, changes.peak_slices)
    bucket_queries.put_buckets(
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
def _uncollected() -> Iterator[None]:
    """Keep the garbage collector from a batch: it has no cycles to find there.

    But it would walk hundreds of thousands of live objects again and again, for half of the time
    that settling takes.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class _Graces:
    """The grace of one realm's sessions by when they began, microseconds."""

    def __init__(self, rules: RealmRules) -> None:
        self._rules = rules
        self._only = _microseconds(rules.rules[0].grace_seconds) if len(rules.rules) == 1 else None

    def at(self, began: int) -> int:
        if self._only is not None:
            return self._only
        return _microseconds(self._rules.rule_at(began).grace_seconds)


def _grace(rules: Mapping[int, RealmRules], session: SessionState) -> int:
    return _microseconds(rules[session.realm_id].rule_at(session.started_at).grace_seconds)


def _microseconds(seconds: int) -> int:
    return seconds * session_fold.SECOND
