"""Erase a user's names, without changing a figure.

All tables refer to users by keys that don't reveal names. Names are in ``users``, ``usernames`` and
rejected messages. A spool keeps its messages until they are pruned, but loading them does not
restore an erased name. Only messages received after the erasure do, so that a returning user can
be billed.
"""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, Engine

from accounting.db.clock import database_now
from accounting.db.engine import lost_connections
from accounting.domain.identity import billed_user
from accounting.domain.text_escaping import unescape
from accounting.errors import UsageError
from accounting.identities import erasure_queries, realm_queries
from accounting.identities.realm_queries import find_realm


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureResult:
    """How many names and rejected messages were erased, or would be in a dry run.

    ``erased_at``: by the database's clock; only messages received afterwards restore the name.
    """

    user_key: UUID
    erased_at: datetime
    user_ids: int
    usernames: int
    rejected_messages: int


def erase(engine: Engine, realm: str, user: str, *, dry_run: bool = False) -> ErasureResult:
    """Erase a user's names: its user id and usernames are empty afterwards in every view.

    A second call erases names that were received since. Raises UsageError for an unknown realm or
    user, and ConnectionLost.
    """
    if not user:
        raise UsageError("this user has no name: there is nothing to erase")
    with lost_connections(), engine.connect() as connection, connection.begin() as transaction:
        realm_id = find_realm(connection, realm)
        realm_bytes, user_bytes = unescape(realm), unescape(user)
        realm_queries.lock_out_loaders(connection)
        user_key = erasure_queries.lock_user(connection, realm_bytes, user_bytes)
        if user_key is None:
            raise UsageError(f"no user '{user}' is known in realm '{realm}'")
        channels = _rejected_channels(connection, realm_id, realm_bytes, user_bytes)
        rejected = erasure_queries.erase_rejected(connection, channels)
        erased_at = database_now(connection)
        user_ids, usernames = erasure_queries.erase_names(connection, user_key, erased_at)
        if dry_run:
            transaction.rollback()
        return ErasureResult(
            user_key=user_key,
            erased_at=erased_at,
            user_ids=user_ids,
            usernames=usernames,
            rejected_messages=rejected,
        )


def _rejected_channels(
    connection: Connection, realm_id: int, realm: bytes, user: bytes
) -> list[bytes]:
    """Channels of rejected messages that name the user, by any rule that the realm ever had."""
    prefix = b"turn/realm/" + realm + b"/user/" if realm else b"turn/user/"
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
