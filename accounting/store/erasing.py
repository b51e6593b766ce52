"""Erasing, stored: names emptied where they stand. The keys stay, and with them all figures."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Connection, bindparam, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA

from accounting.store.schema import usernames, users


def lock_user(connection: Connection, realm_id: int, user_id: str) -> UUID | None:
    """The key of a user by name, locked until the transaction ends; None when nobody has it."""
    found: UUID | None = connection.execute(
        select(users.c.user_key)
        .where(users.c.realm_id == realm_id, users.c.user_id == user_id)
        .with_for_update()
    ).scalar()
    return found


def usernames_of(connection: Connection, user_key: UUID) -> list[str]:
    """The names on the wire under which a user was reported."""
    return list(
        connection.execute(
            select(usernames.c.username).where(usernames.c.user_key == user_key)
        ).scalars()
    )


def erase_names(connection: Connection, user_key: UUID) -> None:
    """Empty all names of a user."""
    connection.execute(update(users).where(users.c.user_key == user_key).values(user_id=""))
    connection.execute(
        update(usernames).where(usernames.c.user_key == user_key).values(username="")
    )


def erase_rejected(connection: Connection, channel_starts: Sequence[bytes]) -> int:
    """Remove the rejected messages on channels that begin so; returns how many."""
    query = text("SELECT accounting.erase_rejected(:starts)").bindparams(
        bindparam("starts", list(channel_starts), ARRAY(BYTEA))
    )
    return int(connection.execute(query).scalar_one())
