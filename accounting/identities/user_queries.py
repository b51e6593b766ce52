"""SQL for looking up users by name and by key."""

from uuid import UUID

from sqlalchemy import Connection, func, select

from accounting.db.schema import installation, pruned_counts, realms, sessions, users
from accounting.domain.identity import user_key
from accounting.domain.text_escaping import unescape
from accounting.errors import UsageError, unknown_user


def find_user_key(connection: Connection, realm_id: int, user_id: str) -> UUID | None:
    """The key of a user by name, also of one that was erased; None when the realm has no such user.

    It is computed from the name: in the table an erased user has the name of the user without one.
    """
    found: UUID | None = connection.execute(
        select(users.c.user_key).where(
            users.c.user_key == compute_user_key(connection, realm_id, user_id)
        )
    ).scalar()
    return found


def compute_user_key(connection: Connection, realm_id: int, user_id: str) -> UUID:
    """The key that a name has in a realm, also one that nobody has."""
    identity_key = connection.execute(select(installation.c.identity_key)).scalar_one()
    realm = connection.execute(
        select(realms.c.realm_bytes).where(realms.c.realm_id == realm_id)
    ).scalar_one()
    return UUID(bytes=user_key(bytes(identity_key), bytes(realm), unescape(user_id)))


def unknown_user_error(connection: Connection, realm: str, user_id: str) -> UsageError:
    """The error for a user that a realm does not have: suggests similar names."""
    names = func.reporting.known_users(realm, user_id).table_valued("name")
    return unknown_user(realm, user_id, connection.execute(select(names)).scalars().all())


def pruned_username_count(connection: Connection) -> int:
    """The number of usernames that were pruned so far."""
    return int(
        connection.execute(
            select(func.coalesce(func.sum(pruned_counts.c.usernames), 0))
        ).scalar_one()
    )


def username_keys(connection: Connection, of_user: UUID) -> list[bytes]:
    """The keys of the usernames under which the user's sessions were reported."""
    rows = connection.execute(
        select(sessions.c.username_key).where(sessions.c.user_key == of_user).distinct()
    )
    return [key.bytes for key in rows.scalars()]


def count_sessions(connection: Connection, of_user: UUID) -> int:
    """How many sessions a user has."""
    query = select(func.count()).select_from(sessions).where(sessions.c.user_key == of_user)
    return connection.execute(query).scalar_one()
