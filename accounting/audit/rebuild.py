"""Replaces sessions and roll-ups by the recomputed ones, a realm in one transaction.

Statements and closed periods stay: what a rebuild changes in their hours is posted as adjustments,
like all late usage. Of other hours the feed gets what it lacks, as corrections. Sessions whose
reports were dropped stay, and count in every roll-up.
"""

from collections.abc import Iterator
from contextlib import suppress
from itertools import chain

from sqlalchemy import Connection, Engine

from accounting.audit import (
    comparison,
    counted_check,
    ended_check,
    evidence_queries,
    rebuild_queries,
)
from accounting.audit.differences import Difference, DifferenceFactory
from accounting.audit.limit_check import check_limits
from accounting.audit.name_check import RealmNames
from accounting.audit.recompute_books import RECOMPUTING, recompute_books
from accounting.audit.snapshot import quiesced_snapshot
from accounting.audit.verify import VerifyResult, compare_tables
from accounting.billing.adjust import adjust
from accounting.db.engine import lost_connections
from accounting.domain.realm_rules import RealmRules
from accounting.errors import AccountingError, LockHeld, UsageError
from accounting.identities import bucket_queries, realm_queries
from accounting.identities.realm_queries import find_realm
from accounting.progress import Progress, no_progress
from accounting.sessions import set_aside_reports
from accounting.usage import counted_usage
from accounting.usage.fold_hours import fold_until
from accounting.usage.limits.evaluation import evaluate_realm
from accounting.usage.rollup_queries import last_hour_end


def rebuild(
    engine: Engine,
    reason: str,
    realm: str | None = None,
    *,
    dry_run: bool = False,
    result: VerifyResult | None = None,
    progress: Progress = no_progress,
) -> Iterator[Difference]:
    """Rebuild one realm or all; yields each difference before it is replaced.

    Settling waits meanwhile; capture and loading go on. A realm is replaced once the caller has
    taken all of its differences. Takes in the reports that were set aside, unless folding them
    still raises an error. Raises UsageError, NotYet and ConnectionLost; and AccountingError for
    finalized sessions that were changed, whose reports are gone.
    """
    if not reason.strip():
        raise UsageError("a rebuild needs a reason: it is kept for ever")
    summary = result or VerifyResult()

    total: int | None = None

    def on_batch(sessions: int) -> None:
        summary.sessions += sessions
        progress(summary.sessions, total, doing=RECOMPUTING)

    with lost_connections(), engine.connect() as connection:
        names = realm_queries.names_by_id(connection)
        realm_ids = list(names) if realm is None else [find_realm(connection, realm)]
        if progress is not no_progress:  # counting takes a while
            total = comparison.session_count(connection, realm_ids)
    for realm_id in sorted(realm_ids):
        progress(summary.sessions, doing="waiting for the jobs to rest")
        with quiesced_snapshot(engine, hold_locks=True) as connection, lost_connections():
            rules = realm_queries.all_rules(connection)
            progress(summary.sessions, total, doing=RECOMPUTING)
            cutoff = evidence_queries.settled_cutoff(connection)
            recomputed = recompute_books(
                connection,
                rules,
                cutoff,
                [realm_id],
                on_batch,
                lambda: progress(0, doing="rolling up the recomputed sessions"),
            )
            if recomputed.mismatches:
                raise AccountingError(
                    f"sessions of realm '{names[realm_id]}' were changed after their reports were "
                    "dropped: see `turn-accounting verify`, and restore them from a backup first"
                )
            differences = 0
            factory = DifferenceFactory(names, rules)
            for difference in chain(
                compare_tables(connection, factory, realm_id, progress=progress),
                ended_check.check_ends(connection, factory, [realm_id]),
                check_limits(connection, factory, realm_id),
            ):
                differences += 1
                yield difference
            summary.differences += differences
            if not dry_run:
                if differences:
                    progress(0, doing=f"replacing the books of realm '{names[realm_id]}'")
                    _replace(connection, rules, realm_id, reason)
                evaluate_realm(connection, rules[realm_id], realm_id)
                set_aside_reports.replace(connection, realm_id, recomputed.set_aside)
                connection.commit()
    if summary.differences and not dry_run:
        with suppress(LockHeld):  # the job of a scheduler posts them
            adjust(engine)


def _replace(
    connection: Connection, rules: dict[int, RealmRules], realm_id: int, reason: str
) -> None:
    calendar = rules[realm_id].calendar
    # The recomputed days and months contain all hours, also those that had no usage before.
    until = max(
        last_hour_end(connection, realm_id), rebuild_queries.last_hour_end(connection, realm_id)
    )
    folds = fold_until(connection, rules, {realm_id: until})
    replaced = rebuild_queries.replace_realm(connection, realm_id)
    _insert_missing_buckets(connection, realm_id)
    # While there are the hours of before and of now, which may begin elsewhere.
    rebuild_queries.note_changed_hours(connection, realm_id)
    counted_usage.write_hours(connection, folds.spans())
    rebuild_queries.stage_feed_differences(
        connection, realm_id, counted_check.open_spans(connection, realm_id)
    )
    counted_usage.write_corrections(connection, {realm_id: until})
    rebuild_queries.delete_buckets(
        connection,
        realm_id,
        [
            (length, bucket)
            for length, bucket in comparison.stored_buckets(connection, realm_id)
            if bucket != calendar.bucket(length, bucket.starts_at)
        ],
    )
    _insert_missing_buckets(connection, realm_id)
    ended_check.announce_ends(connection, realm_id)
    RealmNames(connection, realm_id).restore(rules[realm_id])
    rebuild_queries.record_rebuild(connection, realm_id, reason, replaced)


def _insert_missing_buckets(connection: Connection, realm_id: int) -> None:
    bucket_queries.insert_buckets(
        connection,
        [
            (realm_id, length, bucket)
            for length, bucket in comparison.missing_buckets(connection, realm_id)
        ],
    )
