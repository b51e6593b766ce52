"""The books as the reports give them, staged beside those that are kept.

Owns the moment of comparison: a snapshot in which neither settling nor the roll-up is half done.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Final

from sqlalchemy import Connection, Engine

from accounting.audit import comparison, retention_queries
from accounting.audit.evidence_queries import Cutoff
from accounting.audit.recompute import Stop, in_one_pass, replay, replay_by
from accounting.audit.retention_queries import FinalizedMismatch
from accounting.billing.adjust import adjust
from accounting.db.engine import lost_connections
from accounting.db.locks import lock, try_lock
from accounting.domain.calendar import Bucket, BucketLength
from accounting.domain.realm_rules import RealmRules
from accounting.domain.session_fold import SessionState
from accounting.domain.session_hours import hours_of
from accounting.errors import NotYet
from accounting.sessions.settle import settle
from accounting.sources import source_queries
from accounting.usage.rollup import rollup
from accounting.usage.rollup_queries import RealmHour

SESSIONS_PER_BATCH: Final = 10_000
MAX_ATTEMPTS: Final = 20


@contextmanager
def quiesced_snapshot(engine: Engine, *, hold: bool = False) -> Iterator[Connection]:
    """A transaction that sees the books with nothing in flight, however busy the service is.

    Settles, rolls up and adjusts what is loaded before, and keeps others from it while the
    snapshot is taken; with ``hold`` until the end. What is written is lost unless the caller
    commits. Raises NotYet when the jobs never come to rest, and ConnectionLost.
    """
    for _ in range(MAX_ATTEMPTS):
        settle(engine)
        with lost_connections(), ExitStack() as stack:
            with engine.begin() as waiting:
                # In the order in which closing takes them; all that runs now comes to its end.
                lock(waiting, "rollup")
                for source in source_queries.all_sources(waiting):
                    lock(waiting, f"settle.{source.source_id}")
            holding = stack.enter_context(engine.begin())
            known = [f"settle.{one.source_id}" for one in source_queries.all_sources(holding)]
            # Only tried: whoever waits while it holds one of these could wait for us.
            if not all(try_lock(holding, name) for name in known):
                continue
            rollup(engine)
            adjust(engine)
            if hold and not try_lock(holding, "rollup"):
                continue
            connection = stack.enter_context(
                engine.connect().execution_options(isolation_level="REPEATABLE READ")
            )
            # Before the snapshot: what is dropped after it was taken would seem to be lost.
            comparison.lock_reports(connection)
            if comparison.count_in_flight(connection):
                continue
            if not hold:
                holding.rollback()
            yield connection
            return
    raise NotYet("settling and the roll-up do not come to rest: try again in a moment")


def recompute_books(
    connection: Connection,
    rules: Mapping[int, RealmRules],
    cutoff: Cutoff,
    realm_ids: Collection[int],
    on_staged: Callable[[int], None],
    stops: Collection[Stop] = (),
) -> list[FinalizedMismatch]:
    """Recompute everything of those realms from the reports into the scratch tables.

    ``on_staged`` receives the number of sessions in each batch.
    ``stops``: also the hours of these closed periods as they were at their cutoffs, in one pass
    over the reports, however many they are. What ended with dropped reports is taken as it is
    booked; returns where that was changed since.
    """
    comparison.create_recomputed_tables(connection)
    on_the_way, others = in_one_pass(connection, stops)
    told = replay_by(connection, rules, cutoff, realm_ids, on_the_way)
    while batch := list(islice(told, SESSIONS_PER_BATCH)):
        now = [(key, session) for key, session, stop in batch if stop is None]
        comparison.add_sessions(connection, now)
        comparison.add_session_hours(
            connection,
            (
                row
                for _, session in now
                for row in hours_of(session, rules[session.realm_id].calendar)
            ),
        )
        _stage_hours(connection, rules, ((session, stop) for _, session, stop in batch if stop))
        on_staged(len(now))
    for stop in others:
        alone = replay(connection, rules, stop.cutoff, [stop.realm_id])
        while some := list(islice(alone, SESSIONS_PER_BATCH)):
            _stage_hours(connection, rules, ((session, stop) for _, session in some))
    unsealed = retention_queries.copy_finalized(connection, realm_ids)
    hours: list[RealmHour] = []
    buckets: set[tuple[int, BucketLength, Bucket]] = set()
    for realm_id, starts_at, is_billed in comparison.recomputed_hours(connection):
        calendar = rules[realm_id].calendar
        hour = RealmHour(realm_id, *(calendar.bucket(level, starts_at) for level in BucketLength))
        buckets.add((realm_id, BucketLength.HOUR, hour.hour))
        if is_billed:
            hours.append(hour)
            buckets.add((realm_id, BucketLength.DAY, hour.day))
            buckets.add((realm_id, BucketLength.MONTH, hour.month))
    comparison.add_rollups(connection, hours)
    comparison.add_buckets(connection, buckets)
    return unsealed


def _stage_hours(
    connection: Connection,
    rules: Mapping[int, RealmRules],
    sessions: Iterable[tuple[SessionState, Stop]],
) -> None:
    """Stage what lives have in the closed periods of their stops."""
    comparison.add_period_hours(
        connection,
        (
            row
            for session, stop in sessions
            for row in hours_of(session, rules[session.realm_id].calendar)
            if stop.starts_at <= row.starts_at < stop.ends_at
        ),
    )
