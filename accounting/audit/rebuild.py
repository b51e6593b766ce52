"""Rebuild: sessions and roll-ups replaced by what the reports say, a realm in one transaction.

Only rows that differ are written. Statements and closed periods stay as they are: what a rebuild
changes in their hours is posted as adjustments, like all late usage. Sessions whose reports were
dropped stay, and count in every roll-up.
"""

from collections.abc import Iterator

from sqlalchemy import Connection, Engine

from accounting.audit import comparison, evidence_queries, rebuild_queries
from accounting.audit.differences import Difference, Naming
from accounting.audit.recompute_books import snapshot_at_rest, stage_books
from accounting.audit.verify import Verdict, wrong_books
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
    verdict: Verdict | None = None,
    progress: Progress = no_progress,
) -> Iterator[Difference]:
    """Rebuild one realm or all; yields what differed, before it is replaced.

    Nobody settles a report meanwhile: capture and loading go on. A realm is rebuilt when all of
    its differences were taken. Raises UsageError, NotYet and ConnectionLost; and AccountingError
    for sessions that were changed after their reports were dropped: nothing could mend those.
    """
    if not reason.strip():
        raise UsageError("a rebuild needs a reason: it is kept for ever")
    found = verdict or Verdict()

    def count(sessions: int) -> None:
        found.sessions += sessions
        progress(found.sessions)

    with lost_connections(), engine.connect() as connection:
        names = realm_queries.names(connection)
        chosen = list(names) if realm is None else [find_realm(connection, realm)]
    for realm_id in sorted(chosen):
        with snapshot_at_rest(engine, hold=True) as connection, lost_connections():
            rules = realm_queries.all_rules(connection)
            cutoff = evidence_queries.settled_now(connection)
            if stage_books(connection, rules, cutoff, [realm_id], count):
                raise AccountingError(
                    f"sessions of realm '{names[realm_id]}' were changed after their reports were "
                    "dropped: see `turn-accounting verify`, and restore them from a backup first"
                )
            naming = Naming(names, rules)
            differences = 0
            for difference in wrong_books(connection, naming, realm_id):
                differences += 1
                yield difference
            found.differences += differences
            if differences and not dry_run:
                _replace(connection, naming, realm_id, reason)
    if found.differences and not dry_run:
        adjust(engine)


def _replace(connection: Connection, naming: Naming, realm_id: int, reason: str) -> None:
    calendar = naming.rules[realm_id].calendar
    fold_all(connection, naming.rules, realm_id)
    replaced = rebuild_queries.replace(connection, realm_id)
    rebuild_queries.remove_buckets(
        connection,
        realm_id,
        [
            (level, starts_at)
            for _, level, starts_at, ends_at, zone in comparison.booked_buckets(
                connection, [realm_id]
            )
            if calendar.bucket(BucketLength(level), starts_at)
            != Bucket(starts_at=starts_at, ends_at=ends_at, time_zone=zone)
        ],
    )
    bucket_queries.put_buckets(
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
    rebuild_queries.note(connection, realm_id, reason, replaced)
    connection.commit()
