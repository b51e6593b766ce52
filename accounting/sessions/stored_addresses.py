"""Reduce the client addresses that a realm's books have kept to what is kept from now on.

Reports first, a day in a transaction, so that loaders need not wait for long, and then sessions:
whatever computes a session from its reports afterwards gets the same address. Meanwhile the two
differ.
"""

from dataclasses import dataclass
from datetime import date
from typing import Final

from sqlalchemy import Connection, Engine, func, select, update

from accounting.db.engine import lost_connections
from accounting.db.locks import lock
from accounting.db.queries import Queries
from accounting.db.schema import carried_sessions, sessions, sources
from accounting.domain.client_addresses import ClientAddresses, stricter
from accounting.domain.text_escaping import unescape
from accounting.errors import UsageError
from accounting.identities import erasure_queries, realm_queries
from accounting.identities.writer_locks import lock_out_settling_and_loaders
from accounting.progress import Progress, no_progress
from accounting.sources.watermark_queries import open_sessions_changed

_QUERIES: Final = Queries("accounting.sessions")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReducedAddresses:
    """What is ``kept`` from now on, and how much was changed, or would be in a dry run."""

    kept: ClientAddresses
    sessions: int
    reports: int
    rejected_messages: int


def reduce_stored_addresses(
    engine: Engine,
    realm: str,
    setting: ClientAddresses,
    *,
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> ReducedAddresses:
    """Reduce the addresses of all clients of a realm to the stricter of its rule and ``setting``.

    Its rejected messages, which may contain addresses, are deleted, and those of no known realm,
    which no other call reaches. A second call changes nothing.
    Raises UsageError for an unknown realm, and for one that keeps addresses; ConnectionLost.
    """
    with lost_connections(), engine.begin() as connection:
        realm_id = realm_queries.find_realm(connection, realm)
        rule = realm_queries.read_rules(connection, realm_id).client_addresses
        days = list(connection.execute(_QUERIES.text("report_days")).scalars())
    kept = stricter(setting, rule)
    if kept is ClientAddresses.KEEP:
        raise UsageError(
            f"realm {realm!r} keeps the addresses of clients: set before what it keeps, with "
            "`turn-accounting realm set REALM --client-addresses network|drop`"
        )
    reports = 0
    for number, day in enumerate(days):
        progress(number, len(days), doing="days of reports")
        with lost_connections(), engine.connect() as connection, connection.begin() as transaction:
            reports += _reduce_reports(connection, realm_id, kept, day)
            if dry_run:
                transaction.rollback()
    progress(len(days), len(days), doing="waiting for loaders and jobs")
    with lost_connections(), engine.connect() as connection, connection.begin() as transaction:
        lock(connection, "retain")  # which copies sessions
        lock_out_settling_and_loaders(connection)
        changed = _reduce_sessions(connection, realm_id, kept)
        # Loaders have open sessions in memory, with their addresses.
        open_sessions_changed(connection, connection.execute(select(sources.c.source_id)).scalars())
        prefix = realm_queries.channel_prefix(unescape(realm))
        rejected = erasure_queries.erase_rejected(connection, [prefix])
        rejected += erasure_queries.erase_rejected_of_no_realm(connection)
        if dry_run:
            transaction.rollback()
    return ReducedAddresses(
        kept=kept, sessions=changed, reports=reports, rejected_messages=rejected
    )


def _reduce_reports(connection: Connection, realm_id: int, kept: ClientAddresses, day: date) -> int:
    return int(
        connection.execute(
            _QUERIES.text("reduce_client_addresses"),
            {"realm_id": realm_id, "kept": kept.value, "day": day},
        ).scalar_one()
    )


def _reduce_sessions(connection: Connection, realm_id: int, kept: ClientAddresses) -> int:
    counts = []
    for table in (sessions, carried_sessions):
        address = table.c.client_address
        reduced = func.accounting.reduced_address(address, kept.value)
        counts.append(
            connection.execute(
                update(table)
                .where(table.c.realm_id == realm_id, address.is_distinct_from(reduced))
                .values(client_address=reduced)
            ).rowcount
        )
    return counts[0]
