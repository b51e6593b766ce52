"""Rebuild: sessions and roll-ups replaced by what the reports say, a realm in one transaction.

Only rows that differ are written. Statements and closed periods stay as they are: what a rebuild
changes in their hours is posted as adjustments, like all late usage. Sessions whose reports were
dropped stay, and count in every roll-up.
"""

from collections.abc import Iterator

from sqlalchemy import Connection, Engine

from accounting.audit import comparison, evidence_queries, rebuild_queries
from accounting.audit.differences import Difference, DifferenceFactory
from accounting.audit.recompute_books import quiesced_snapshot, recompute_books
from accounting.audit.verify import VerifyResult, compare_tables
from accounting.billing.adjust import adjust
from accounting.db.engine import lost_connections
from accounting.domain.calendar import Bucket, BucketLength
from accounting.errors import AccountingError, UsageError
from accounting.identities import bucket_queries, realm_queries
from accounting.identities.realm_queries import find_realm
from accounting.progress import Progress, no_progress
from accounting.usage.fold_hours import fold_all


def rebuild(
    engine: Engine,
    reason: str,
    realm: str | None = None,
    *,
    dry_run: bool = False,
    result: VerifyResult | None = None,
    progress: Progress = no_progress,
) -> Iterator[Difference]:
    """Rebuild one realm or all; yields what differed, before it is replaced.

    Nobody settles a report meanwhile: capture and loading go on. A realm is rebuilt when all of
    its differences were taken. Raises UsageError, NotYet and ConnectionLost; and AccountingError
    for sessions that were changed after their reports were dropped: nothing could mend those.
    """
    if not reason.strip():
        raise UsageError("a rebuild needs a reason: it is kept for ever")
    found = result or VerifyResult()

    def count(sessions: int) -> None:
        found.sessions += sessions
        progress(found.sessions)

    with lost_connections(), engine.connect() as connection:
        names = realm_queries.names_by_id(connection)
        chosen = list(names) if realm is None else [find_realm(connection, realm)]
    for realm_id in sorted(chosen):
        with quiesced_snapshot(engine, hold=True) as connection, lost_connections():
            rules = realm_queries.all_rules(connection)
            cutoff = evidence_queries.settled_cutoff(connection)
            if recompute_books(connection, rules, cutoff, [realm_id], count):
                raise AccountingError(
                    f"sessions of realm '{names[realm_id]}' were changed after their reports were "
                    "dropped: see `turn-accounting verify`, and restore them from a backup first"
                )
            naming = DifferenceFactory(names, rules)
            differences = 0
            for difference in compare_tables(connection, naming, realm_id):
                differences += 1
                yield difference
            found.differences += differences
            if differences and not dry_run:
                _replace(connection, naming, realm_id, reason)
    if found.differences and not dry_run:
        adjust(engine)


def _replace(connection: Connection, naming: DifferenceFactory, realm_id: int, reason: str) -> None:
    calendar = naming.rules[realm_id].calendar
    fold_all(connection, naming.rules, realm_id)
    replaced = rebuild_queries.replace_realm(connection, realm_id)
    rebuild_queries.delete_buckets(
        connection,
        realm_id,
        [
            (level, starts_at)
            for _, level, starts_at, ends_at, zone in comparison.stored_buckets(
                connection, [realm_id]
            )
            if calendar.bucket(BucketLength(level), starts_at)
            != Bucket(starts_at=starts_at, ends_at=ends_at, time_zone=zone)
        ],
    )
    bucket_queries.insert_buckets(
        connection,
        [
            (
                realm_id,
                BucketLength(level),
                Bucket(starts_at=starts_at, ends_at=ends_at, time_zone=zone),
            )
            for _, level, starts_at, ends_at, zone in comparison.missing_buckets(connection)
        ],
    )
    rebuild_queries.record_rebuild(connection, realm_id, reason, replaced)
    connection.commit()
