"""SQL for looking up users by name and by key."""

from uuid import UUID

from sqlalchemy import Connection, select

from accounting.db.schema import sessions, users


def find_user_key(connection: Connection, realm_id: int, user_id: str) -> UUID | None:
    """The key of a user by name; None when the realm has no such user."""
    user_key: UUID | None = connection.execute(
        select(users.c.user_key).where(users.c.realm_id == realm_id, users.c.user_id == user_id)
    ).scalar()
    return user_key


def username_keys(connection: Connection, user_key: UUID) -> list[bytes]:
    """The keys of the usernames under which the user's sessions were reported."""
    rows = connection.execute(
        select(sessions.c.username_key).where(sessions.c.user_key == user_key).distinct()
    )
    return [key.bytes for key in rows.scalars()]
