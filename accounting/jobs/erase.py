"""Erase: a person's name goes, the books stay exact.

Everything is keyed by keys that tell nothing of a name; it stands in two tables, and in messages
that were rejected. What the spool still holds goes when it is pruned.
"""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Engine

from accounting.errors import UsageError
from accounting.jobs.close import find_realm
from accounting.model.text import from_text
from accounting.store import erasing
from accounting.store.database import lost_connections


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """What was erased, or would be: how many names, and messages that were rejected."""

    user_key: UUID
    usernames: int
    rejected_messages: int


def erase(engine: Engine, realm: str, user: str, *, dry_run: bool = False) -> Erased:
    """Forget a user's name: ``user_id`` and ``username`` are empty afterwards, everywhere.

    Raises UsageError for a realm or user that nobody knows, and ConnectionLost.
    """
    if not user:
        raise UsageError("this user has no name: there is nothing to erase")
    with lost_connections(), engine.connect() as connection, connection.begin() as transaction:
        realm_id = find_realm(connection, realm)
        user_key = erasing.lock_user(connection, realm_id, user)
        if user_key is None:
            raise UsageError(f"no user '{user}' is known in realm '{realm}'")
        names = erasing.usernames_of(connection, user_key)
        prefix = b"turn/realm/" + from_text(realm) + b"/user/" if realm else b"turn/user/"
        starts = [prefix + from_text(name) + b"/" for name in {user, *names}]
        rejected = erasing.erase_rejected(connection, starts)
        erasing.erase_names(connection, user_key)
        if dry_run:
            transaction.rollback()
        return Erased(user_key=user_key, usernames=len(names), rejected_messages=rejected)
