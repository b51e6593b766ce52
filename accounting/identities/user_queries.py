"""SQL for looking up users by name and by key."""

from uuid import UUID

from sqlalchemy import Connection, func, select

from accounting.db.schema import pruned_counts, sessions, users


def find_user_key(connection: Connection, realm_id: int, user_id: str) -> UUID | None:
    """The key of a user by name; None when the realm has no such user."""
    user_key: UUID | None = connection.execute(
        select(users.c.user_key).where(users.c.realm_id == realm_id, users.c.user_id == user_id)
    ).scalar()
    return user_key


def pruned_username_count(connection: Connection) -> int:
    """The number of usernames that were pruned so far."""
    return int(
        connection.execute(
            select(func.coalesce(func.sum(pruned_counts.c.usernames), 0))
        ).scalar_one()
    )


def username_keys(connection: Connection, user_key: UUID) -> list[bytes]:
    """The keys of the usernames under which the user's sessions were reported."""
    rows = connection.execute(
        select(sessions.c.username_key).where(sessions.c.user_key == user_key).distinct()
    )
    return [key.bytes for key in rows.scalars()]
