"""Recomputes the books of realms from the reports, into scratch tables beside the stored ones."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Final

from sqlalchemy import Connection

from accounting.audit import finalized_queries, recomputed_tables
from accounting.audit.checkpoints import Checkpoint, partition_checkpoints
from accounting.audit.evidence_queries import Cutoff, EvidenceScope
from accounting.audit.finalized_queries import FinalizedMismatch
from accounting.audit.recompute import RecomputedSession, recompute_sessions
from accounting.domain.realm_rules import RealmRules
from accounting.domain.session_fold import SessionState
from accounting.domain.session_hours import SessionHour, hours_of

SESSIONS_PER_BATCH: Final = 10_000


def recompute_books(
    connection: Connection,
    rules: Mapping[int, RealmRules],
    cutoff: Cutoff,
    realm_ids: Collection[int],
    on_batch: Callable[[int], None],
    checkpoints: Collection[Checkpoint] = (),
) -> list[FinalizedMismatch]:
    """Recompute all books of those realms, and the hours of closed periods at their checkpoints.

    ``on_batch`` receives the number of sessions of each batch. Sessions that ended with dropped
    reports are copied from the stored books; returns where those were changed since.
    """
    recomputed_tables.create_tables(connection)
    shared, separate = partition_checkpoints(connection, checkpoints)
    scope = EvidenceScope(cutoff=cutoff, realm_ids=realm_ids)
    for batch in _batches(recompute_sessions(connection, rules, scope, shared)):
        current = [(key, session) for key, session, checkpoint in batch if checkpoint is None]
        recomputed_tables.add_sessions(connection, current)
        recomputed_tables.add_session_hours(
            connection, (hour for _, session in current for hour in _hours_of(session, rules))
        )
        past = ((session, checkpoint) for _, session, checkpoint in batch if checkpoint)
        recomputed_tables.add_period_hours(connection, _period_hours(past, rules))
        on_batch(len(current))
    for checkpoint in separate:
        scope = EvidenceScope(cutoff=checkpoint.cutoff, realm_ids=[checkpoint.realm_id])
        for batch in _batches(recompute_sessions(connection, rules, scope)):
            past = ((session, checkpoint) for _, session, _ in batch)
            recomputed_tables.add_period_hours(connection, _period_hours(past, rules))
    mismatches = finalized_queries.copy_finalized(connection, realm_ids)
    recomputed_tables.recompute_usage(connection, rules)
    return mismatches


def _batches(
    recomputed: Iterator[RecomputedSession],
) -> Iterator[list[RecomputedSession]]:
    """Lists, since the connection can't copy rows while it reads evidence."""
    while batch := list(islice(recomputed, SESSIONS_PER_BATCH)):
        yield batch


def _hours_of(session: SessionState, rules: Mapping[int, RealmRules]) -> Iterable[SessionHour]:
    return hours_of(session, rules[session.realm_id].calendar)


def _period_hours(
    sessions: Iterable[tuple[SessionState, Checkpoint]], rules: Mapping[int, RealmRules]
) -> Iterator[SessionHour]:
    """The hours of sessions within the periods of their checkpoints."""
    for session, checkpoint in sessions:
        for hour in _hours_of(session, rules):
            if checkpoint.starts_at <= hour.starts_at < checkpoint.ends_at:
                yield hour
