"""Erase a user's names and addresses, without changing a figure.

All tables refer to users by keys that don't reveal names. Names are in ``users``, ``usernames`` and
rejected messages, client addresses in reports and sessions. A spool keeps its messages until they
are pruned, but loading them does not restore an erased name or address. Only messages received
after the erasure do, so that a returning user can be billed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
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
    user_ids: int = 0
    usernames: int = 0
    sessions: int = 0
    reports: int = 0
    rejected_messages: int = 0


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
        find_realm(connection, realm)
        result = _erase(connection, realm, user, None, progress)
        if result is None:
            raise unknown_user_error(connection, realm, user)
        if dry_run:
            transaction.rollback()
        return result


def erase_named_for_front(
    engine: Engine,
    realm: str,
    user: str,
    of_front: datetime,
    progress: Progress = no_progress,
) -> ErasureResult:
    """As :func:`erase`, in a cell of which the front recorded the erasure ``of_front``.

    A user that is unknown here is recorded too: the spool may have reports of the user.
    """
    with lost_connections(), engine.begin() as connection:
        result = _erase(connection, realm, user, of_front, progress)
        if result is None:
            user_key = erasure_queries.key_of_user(connection, unescape(realm), unescape(user))
            erasure_queries.record_erasures(connection, {user_key: of_front})
            result = ErasureResult(user_key=user_key)
        return result


def erase_for_front(engine: Engine, erasures: Mapping[UUID, datetime]) -> int:
    """Carry out erasures of a front that this cell has not, by user key; returns how many.

    ``erasures``: when the front recorded each. The cell may have been restored from a backup, and
    then it has the names of the users.
    """
    if not erasures:
        return 0
    with lost_connections(), engine.begin() as connection:
        lock_out_settling_and_loaders(connection)
        names = erasure_queries.names_of(connection, erasures)
        unnamed = {key: erased_at for key, erased_at in erasures.items() if key not in names}
        erasure_queries.record_erasures(connection, unnamed)
    for user_key, (realm, user) in names.items():
        erase_named_for_front(engine, realm, user, erasures[user_key])
    return len(erasures)


def _erase(
    connection: Connection,
    realm: str,
    user: str,
    of_front: datetime | None,
    progress: Progress,
) -> ErasureResult | None:
    """Erase a user; None for an unknown one."""
    realm_bytes, user_bytes = unescape(realm), unescape(user)
    lock(connection, "retain")  # which copies sessions
    lock_out_settling_and_loaders(connection)
    user_key = erasure_queries.lock_user(connection, realm_bytes, user_bytes)
    if user_key is None:
        return None
    progress(1, STEPS, doing="erasing rejected messages")
    realm_id = find_realm(connection, realm)
    channels = _rejected_channels(connection, realm_id, realm_bytes, user_bytes)
    rejected = erasure_queries.erase_rejected(connection, channels)
    progress(2, STEPS, doing="erasing client addresses")
    sessions, reports = erasure_queries.erase_addresses(connection, user_key)
    progress(3, STEPS, doing="erasing names")
    user_ids, usernames = erasure_queries.erase_names(connection, user_key)
    erasure_queries.record_erasures(connection, {user_key: of_front})
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
