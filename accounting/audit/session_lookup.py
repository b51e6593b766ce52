"""Finds the stored session that a trace begins with."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, func, select

from accounting.db.schema import realms, sessions, users
from accounting.domain.counters import COUNTERS
from accounting.domain.session_fold import AllocationKey


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSession:
    """A confirmed session as it is stored. ``user_id`` is empty when absent or erased."""

    session_id: UUID
    key: AllocationKey
    realm_id: int
    realm: str
    user_key: UUID
    user_id: str
    started_at: datetime
    last_seen_at: datetime
    counters: tuple[int, ...]


def find_session(connection: Connection, session_id: UUID) -> StoredSession | None:
    """A confirmed session by its id."""
    row = connection.execute(
        select(
            sessions,
            realms.c.realm,
            func.coalesce(users.c.user_id, "").label("user_id"),
        )
        .join(realms, realms.c.realm_id == sessions.c.realm_id)
        .outerjoin(users, users.c.user_key == sessions.c.user_key)
        .where(sessions.c.session_id == session_id, sessions.c.confirmed)
    ).one_or_none()
    if row is None:
        return None
    return StoredSession(
        session_id=session_id,
        key=AllocationKey(row.source_id, row.database, row.username_key.bytes, row.allocation_id),
        realm_id=row.realm_id,
        realm=row.realm,
        user_key=row.user_key,
        user_id=row.user_id,
        started_at=row.started_at,
        last_seen_at=row.last_seen_at,
        counters=tuple(int(getattr(row, name)) for name in COUNTERS),
    )
