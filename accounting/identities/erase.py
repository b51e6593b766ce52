"""Erase a user's names and addresses, without changing a figure.

All tables refer to users by keys that don't reveal names. Names are in ``users``, ``usernames`` and
rejected messages, client addresses in reports and sessions. A spool keeps its messages until they
are pruned, but loading them does not restore an erased name or address. Only messages received
after the erasure do, so that a returning user can be billed.
"""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, Engine

from accounting.db.engine import lost_connections
from accounting.db.locks import lock
from accounting.domain.identity import billed_user
from accounting.domain.text_escaping import unescape
from accounting.errors import UsageError
from accounting.identities import erasure_queries, realm_queries
from accounting.identities.realm_queries import find_realm
from accounting.identities.user_queries import unknown_user_error
from accounting.identities.writer_locks import lock_out_settling_and_loaders
from accounting.progress import Progress, no_progress

NOT_REACHED: Final = """\
- The spools of the collectors: messages as received, until ACCOUNTING_SPOOL_RETENTION_SECONDS
  after they were loaded. Loading them restores neither names nor addresses.
- coturn's logs, and its status keys in Redis while an allocation is open, with Redis' snapshots,
  append-only files and replicas.
- Exported files, what consumers of the feed, receivers of webhooks and readers of the database
  copied, printed output. The engines of usage have the person's customer ids.
- Backups of the database, archives of its write-ahead log, delayed replicas. Erase again after you
  have restored one.
- Traces in Postgres itself: old versions of rows until VACUUM, column statistics until ANALYZE, and
  its log, or that of a pooler, where it logs statements.
- The log of this service where its level is debug.
- Texts that people wrote: reasons and authors of adjustments, reasons of rebuilds, labels of
  tokens. A token of the person reads the figures as before: revoke it.
- The same person under another user_id or in another realm: erase each.
- The address of your server that the person used. Figures and times, under the user_key: with
  the identity key of the installation it can be compared with a guessed name.
"""
"""What an erasure leaves, as docs/personal-data.md has it too."""


STEPS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureResult:
    """How much was erased, or would be in a dry run.

    ``sessions`` and ``reports`` count those with a client address.
    """

    user_key: UUID
    user_ids: int
    usernames: int
    sessions: int
    reports: int
    rejected_messages: int


def erase(
    engine: Engine,
    realm: str,
    user: str,
    *,
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> ErasureResult:
    """Erase a user: its user id, usernames and client addresses are empty afterwards in every view.

    A second call erases what was received since. Raises UsageError for an unknown realm or
    user, and ConnectionLost.
    """
    if not user:
        raise UsageError("this user has no name: there is nothing to erase")
    progress(0, STEPS, doing="waiting for loaders and jobs")
    with lost_connections(), engine.connect() as connection, connection.begin() as transaction:
        realm_id = find_realm(connection, realm)
        realm_bytes, user_bytes = unescape(realm), unescape(user)
        lock(connection, "retain")  # which copies sessions
        lock_out_settling_and_loaders(connection)
        user_key = erasure_queries.lock_user(connection, realm_bytes, user_bytes)
        if user_key is None:
            raise unknown_user_error(connection, realm, user)
        progress(1, STEPS, doing="erasing rejected messages")
        channels = _rejected_channels(connection, realm_id, realm_bytes, user_bytes)
        rejected = erasure_queries.erase_rejected(connection, channels)
        progress(2, STEPS, doing="erasing client addresses")
        sessions, reports = erasure_queries.erase_addresses(connection, user_key)
        progress(3, STEPS, doing="erasing names")
        user_ids, usernames = erasure_queries.erase_names(connection, user_key)
        if dry_run:
            transaction.rollback()
        return ErasureResult(
            user_key=user_key,
            user_ids=user_ids,
            usernames=usernames,
            sessions=sessions,
            reports=reports,
            rejected_messages=rejected,
        )


def _rejected_channels(
    connection: Connection, realm_id: int, realm: bytes, user: bytes
) -> list[bytes]:
    """Channels of rejected messages that name the user, by any rule that the realm ever had."""
    prefix = realm_queries.channel_prefix(realm)
    rules = realm_queries.read_rules(connection, realm_id).rules
    channels: list[bytes] = []
    for channel in erasure_queries.rejected_channels(connection, prefix, user):
        rest = channel.removeprefix(prefix)
        username = rest.rpartition(b"/allocation/")[0] or rest.partition(b"/")[0]
        if any(
            billed_user(username, rule.username_rule, rule.separator.encode()) == user
            for rule in rules
        ):
            channels.append(channel)
    return channels
