"""Empty a user's names and addresses where they are stored, and record when in ``erasures``."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, bindparam, delete, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA
from sqlalchemy.dialects.postgresql import UUID as PG_UUID

from accounting.db.queries import Queries
from accounting.db.schema import (
    carried_sessions,
    erasures,
    installation,
    realms,
    rejected_messages,
    sessions,
    usernames,
    users,
    webhook_customers,
)
from accounting.domain.calendar import to_micros
from accounting.domain.identity import user_key

_QUERIES: Final = Queries("accounting.identities")


def lock_user(connection: Connection, realm: bytes, user: bytes) -> UUID | None:
    """The key of a user, locked until the transaction ends; None for an unknown user.

    The key is computed from the name, so that this also finds a user whose name is erased.
    """
    key = key_of_user(connection, realm, user)
    locked: UUID | None = connection.execute(
        select(users.c.user_key).where(users.c.user_key == key).with_for_update()
    ).scalar()
    return locked


def key_of_user(connection: Connection, realm: bytes, user: bytes) -> UUID:
    """The key that a user of this name has, or would have."""
    identity_key = connection.execute(select(installation.c.identity_key)).scalar_one()
    return UUID(bytes=user_key(bytes(identity_key), realm, user))


def has_user(connection: Connection, user_key: UUID) -> bool:
    """Whether this database has a user, also of one that was erased."""
    return (
        connection.execute(select(users.c.user_key).where(users.c.user_key == user_key)).scalar()
        is not None
    )


def erase_names(connection: Connection, user_key: UUID) -> tuple[int, int]:
    """Empty all names of a user; returns the numbers of user ids and usernames.

    Whom engines of usage bill for the user is deleted as well.
    """
    ids = connection.execute(
        update(users).where(users.c.user_key == user_key, users.c.user_id != "").values(user_id="")
    )
    names = connection.execute(
        update(usernames)
        .where(usernames.c.user_key == user_key, usernames.c.username != "")
        .values(username="")
    )
    connection.execute(delete(webhook_customers).where(webhook_customers.c.user_key == user_key))
    _erase_quoted_answers(connection, user_key)
    return ids.rowcount, names.rowcount


def record_erasures(connection: Connection, erased: Mapping[UUID, datetime | None]) -> datetime:
    """Record that users' names were erased now; returns when.

    ``erased``: in a cell, when its front recorded each erasure.
    """
    now: datetime = connection.execute(select(func.accounting.database_now())).scalar_one()
    rows = [
        {"user_key": user_key, "erased_at": now, "of_front": of_front}
        for user_key, of_front in erased.items()
    ]
    if rows:
        connection.execute(insert(erasures), rows)
    return now


def names_of(connection: Connection, user_keys: Collection[UUID]) -> dict[UUID, tuple[str, str]]:
    """The realms and the names of those of these users that have a name here."""
    rows = connection.execute(
        select(users.c.user_key, realms.c.realm, users.c.user_id)
        .join(realms, users.c.realm_id == realms.c.realm_id)
        .where(users.c.user_key == func.any(bindparam("keys", list(user_keys), ARRAY(PG_UUID))))
        .where(users.c.user_id != "")
    )
    return {row.user_key: (row.realm, row.user_id) for row in rows}


def _erase_quoted_answers(connection: Connection, user_key: UUID) -> None:
    """Delete what engines answered: it may name their customer, and that can be the user.

    Of a refusal the answers about this user; of requests, which have many users, all answers.
    """
    for name in ("erase_refusal_answers", "erase_failure_answers", "erase_last_answers"):
        connection.execute(_QUERIES.text(name), {"user_key": user_key})


def erase_addresses(connection: Connection, user_key: UUID) -> tuple[int, int]:
    """Empty the client addresses of a user; returns the numbers of sessions and reports.

    By username, because recomputing must find them in none of a session's reports: after a change
    of the realm's rules a session can have reports of two users. The server's address stays. It is
    the operator's, and tells apart two servers that share a key (docs/coturn.md#shared-key).
    """
    of_user = select(usernames.c.username_key).where(usernames.c.user_key == user_key)
    username_keys = connection.execute(of_user.distinct()).scalars().all()
    user_keys = select(usernames.c.user_key).where(usernames.c.username_key.in_(username_keys))
    query = text("SELECT accounting.erase_client_addresses(:username_keys)").bindparams(
        bindparam("username_keys", username_keys, ARRAY(PG_UUID))
    )
    report_count = int(connection.execute(query).scalar_one())
    session_count, _ = (
        connection.execute(
            update(table)
            .where(
                table.c.user_key.in_(user_keys),
                table.c.username_key.in_(username_keys),
                table.c.client_address.is_not(None),
            )
            .values(client_address=None)
        ).rowcount
        for table in (sessions, carried_sessions)
    )
    return session_count, report_count


def rejected_channels(connection: Connection, prefix: bytes, user: bytes) -> list[bytes]:
    """Channels of rejected messages that start with ``prefix`` and contain the name."""
    channel = rejected_messages.c.channel
    rows = connection.execute(
        select(channel)
        .distinct()
        .where(
            func.substr(channel, 1, len(prefix)) == prefix,
            func.strpos(func.encode(channel, "escape"), func.encode(user, "escape")) > 0,
        )
    )
    return [bytes(channel) for channel in rows.scalars()]


def erase_rejected(connection: Connection, prefixes: Sequence[bytes]) -> int:
    """Delete the rejected messages whose channel starts with one of these; returns how many."""
    query = text("SELECT accounting.erase_rejected(:prefixes)").bindparams(
        bindparam("prefixes", list(prefixes), ARRAY(BYTEA))
    )
    return int(connection.execute(query).scalar_one())


def erase_rejected_of_no_realm(connection: Connection) -> int:
    """Delete the rejected messages whose channel names no realm of the books; returns how many."""
    query = text("SELECT accounting.erase_rejected_of_no_realm()")
    return int(connection.execute(query).scalar_one())


def erasure_count(connection: Connection) -> int:
    """The number of erasures so far."""
    return connection.execute(select(func.count()).select_from(erasures)).scalar_one()


def erasure_times(connection: Connection) -> dict[bytes, int]:
    """When each user's names were erased last, in microseconds, by user key."""
    rows = connection.execute(
        select(erasures.c.user_key, func.max(erasures.c.erased_at)).group_by(erasures.c.user_key)
    )
    return {user_key.bytes: to_micros(erased_at) for user_key, erased_at in rows}
