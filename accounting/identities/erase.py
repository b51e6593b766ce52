"""Erase: a person's name goes, the books stay exact.

Everything is keyed by keys that tell nothing of a name; it stands in two tables, and in messages
that were rejected. What the spools still hold goes when they are pruned, and brings no name back
when it is loaded; only what is received afterwards does, so that who comes back can be billed.
"""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, Engine

from accounting.db.engine import lost_connections
from accounting.domain.identity import billed_user
from accounting.domain.text_escaping import unescape
from accounting.errors import UsageError
from accounting.identities import erasure_queries, realm_queries
from accounting.identities.realm_queries import find_realm


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureResult:
    """What was erased, or would be: how many names, and messages that were rejected."""

    user_key: UUID
    user_ids: int
    usernames: int
    rejected_messages: int


def erase(engine: Engine, realm: str, user: str, *, dry_run: bool = False) -> ErasureResult:
    """Forget a user's name: ``billed_user`` and ``username`` are empty afterwards, everywhere.

    Run again, it erases what came since. Raises UsageError for a realm or user that nobody knows,
    and ConnectionLost.
    """
    if not user:
        raise UsageError("this user has no name: there is nothing to erase")
    with lost_connections(), engine.connect() as connection, connection.begin() as transaction:
        realm_id = find_realm(connection, realm)
        erasure_queries.lock_out_loaders(connection)
        user_key = erasure_queries.lock_user(connection, unescape(realm), unescape(user))
        if user_key is None:
            raise UsageError(f"no user '{user}' is known in realm '{realm}'")
        rejected = erasure_queries.erase_rejected(
            connection, _rejected(connection, realm_id, unescape(realm), unescape(user))
        )
        user_ids, usernames = erasure_queries.erase_names(connection, user_key)
        if dry_run:
            transaction.rollback()
        return ErasureResult(
            user_key=user_key,
            user_ids=user_ids,
            usernames=usernames,
            rejected_messages=rejected,
        )


def _rejected(connection: Connection, realm_id: int, realm: bytes, user: bytes) -> list[bytes]:
    """The channels of rejected messages that name the user, by any rule that the realm ever had."""
    prefix = b"turn/realm/" + realm + b"/user/" if realm else b"turn/user/"
    rules = realm_queries.read_rules(connection, realm_id).rules
    found: list[bytes] = []
    for channel in erasure_queries.rejected_channels(connection, prefix, user):
        rest = channel.removeprefix(prefix)
        username = rest.rpartition(b"/allocation/")[0] or rest.partition(b"/")[0]
        if user in {
            billed_user(username, one.username_rule, one.separator.encode()) for one in rules
        }:
            found.append(channel)
    return found
