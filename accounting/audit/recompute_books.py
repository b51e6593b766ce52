"""Recomputes the books of realms from the reports, into scratch tables beside the stored ones."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple

from sqlalchemy import Connection

from accounting.audit import finalized_queries, recomputed_tables
from accounting.audit.checkpoints import Checkpoint, partition_checkpoints
from accounting.audit.evidence_queries import Cutoff, EvidenceScope
from accounting.audit.finalized_queries import FinalizedMismatch
from accounting.audit.recompute import RecomputedSession, recompute_sessions
from accounting.domain.realm_rules import RealmRules
from accounting.domain.session_hours import SessionHour
from accounting.sessions.careful_fold import SetAside

SESSIONS_PER_BATCH: Final = 10_000
RECOMPUTING: Final = "recomputing sessions"
"""The step in reports of progress."""


class RecomputedBooks(NamedTuple):
    """What recomputing found: sessions without reports that changed, and reports that raised."""

    mismatches: list[FinalizedMismatch]
    set_aside: list[SetAside]


def recompute_books(
    connection: Connection,
    rules: Mapping[int, RealmRules],
    cutoff: Cutoff,
    realm_ids: Collection[int],
    on_batch: Callable[[int], None],
    on_roll_up: Callable[[], None],
    checkpoints: Collection[Checkpoint] = (),
) -> RecomputedBooks:
    """Recompute all books of those realms, and the hours of closed periods at their checkpoints.

    ``on_batch`` receives the number of sessions of each batch, and ``on_roll_up`` is called when
    all are recomputed. Sessions that ended with dropped reports are copied from the stored books.
    """
    set_aside: dict[SetAside, None] = {}
    recomputed_tables.create_tables(connection)
    shared, separate = partition_checkpoints(connection, checkpoints)
    scope = EvidenceScope(cutoff=cutoff, realm_ids=realm_ids)
    recomputed = recompute_sessions(
        connection,
        rules,
        scope,
        shared,
        on_set_aside=lambda report: set_aside.update({report: None}),
    )
    for batch in _batches(recomputed):
        current = [item for item in batch if item.checkpoint is None]
        recomputed_tables.add_sessions(connection, ((item.key, item.session) for item in current))
        recomputed_tables.add_session_hours(
            connection, (hour for item in current for hour in item.hours)
        )
        past = ((item.hours, item.checkpoint) for item in batch if item.checkpoint)
        recomputed_tables.add_period_hours(connection, _period_hours(past))
        on_batch(len(current))
    for checkpoint in separate:
        scope = EvidenceScope(cutoff=checkpoint.cutoff, realm_ids=[checkpoint.realm_id])
        # What raises an error here did so above.
        for batch in _batches(
            recompute_sessions(connection, rules, scope, on_set_aside=lambda _: None)
        ):
            past = ((item.hours, checkpoint) for item in batch)
            recomputed_tables.add_period_hours(connection, _period_hours(past))
    on_roll_up()
    mismatches = finalized_queries.copy_finalized(connection, realm_ids)
    recomputed_tables.recompute_usage(connection, rules)
    return RecomputedBooks(mismatches, list(set_aside))


def _batches(
    recomputed: Iterator[RecomputedSession],
) -> Iterator[list[RecomputedSession]]:
    """Lists, since the connection can't copy rows while it reads evidence."""
    while batch := list(islice(recomputed, SESSIONS_PER_BATCH)):
        yield batch


def _period_hours(
    sessions: Iterable[tuple[Sequence[SessionHour], Checkpoint]],
) -> Iterator[SessionHour]:
    """The hours of sessions within the periods of their checkpoints."""
    for hours, checkpoint in sessions:
        for hour in hours:
            if checkpoint.starts_at <= hour.starts_at < checkpoint.ends_at:
                yield hour
