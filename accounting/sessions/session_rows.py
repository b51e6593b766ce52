"""Sessions as rows: which columns they have, and how a session becomes a row and back.

The columns come from ``db.schema.sessions``, the only list of them. ``session_from_row`` and
``session_fields`` spell them out again, because ``attrgetter`` and keywords from a dict take three
times as long; ``tests/sessions/test_session_rows.py`` holds them to the table.
"""

from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any, Final

from accounting.db.row_packer import RowPacker, copy_columns
from accounting.db.schema import carried_sessions, sessions
from accounting.domain.counters import COUNTERS
from accounting.domain.session_fold import NO_TOTAL, AllocationKey, EndCause, Phase, SessionState

# The fields of a session are the columns that it is carried over with, in the order of the table;
# columns of the stored state (recheck_at, end_events, single_hour) are not among them.
_FIELDS: Final = tuple(
    column.name
    for column in carried_sessions.c
    if column.name != "hourly_usage" and column.name not in AllocationKey._fields
)
KEY_COLUMNS: Final = copy_columns(sessions, AllocationKey._fields)
SESSION_COLUMNS: Final = copy_columns(sessions, _FIELDS)
_PHASES: Final = {int(phase): phase for phase in Phase}


def slow_columns(session: SessionState) -> tuple[object, ...]:
    """What seldom changes of a session. Columns that change together with one of them are left out.

    The others are constant, or in REFRESH_PACKER, whose columns every report changes.
    """
    return (
        session.ended_at,  # and end_cause
        session.phase,
        session.lifetime_known,
        session.confirmed,
        session.server_address,  # and transport, client_address
        session.new_count,
        session.deleted_count,
        session.client_total_count,  # and client_total
        session.peer_total_count,  # and peer_total
        session.estimated,
        session.disputed,
    )


def session_from_row(row: Sequence[Any]) -> tuple[AllocationKey, SessionState]:
    """A session from a row of KEY_COLUMNS and SESSION_COLUMNS, read in binary.

    A total may be None where none was reported.
    """
    (
        source_id,
        database,
        username_key,
        allocation_id,
        session_id,
        user_key,
        realm_id,
        started_at,
        last_seen_at,
        expires_at,
        start_known,
        lifetime_known,
        ended_at,
        end_cause,
        phase,
        confirmed,
        transport,
        client_address,
        server_address,
        *usage,
        new_count,
        deleted_count,
        client_total_count,
        peer_total_count,
        client_total,
        peer_total,
        estimated,
        disputed,
    ) = row
    key = AllocationKey(source_id, database, username_key, allocation_id)
    return key, SessionState(
        session_id=session_id,
        user_key=user_key,
        realm_id=realm_id,
        started_at=started_at,
        last_seen_at=last_seen_at,
        expires_at=expires_at,
        start_known=start_known,
        lifetime_known=lifetime_known,
        ended_at=ended_at,
        end_cause=None if end_cause is None else EndCause(end_cause),
        phase=_PHASES[phase],
        confirmed=confirmed,
        transport=transport,
        client_address=client_address,
        server_address=server_address,
        usage=usage,
        new_count=new_count,
        deleted_count=deleted_count,
        client_total_count=client_total_count,
        peer_total_count=peer_total_count,
        client_total=client_total or NO_TOTAL,
        peer_total=peer_total or NO_TOTAL,
        estimated=estimated,
        disputed=disputed,
    )


def session_row(key: AllocationKey, session: SessionState, recheck_at: int) -> tuple[Any, ...]:
    """A session as a row of KEY_COLUMNS, recheck_at and SESSION_COLUMNS."""
    return (*key, recheck_at, *session_fields(session))


def session_fields(session: SessionState) -> tuple[Any, ...]:
    """The values of SESSION_COLUMNS."""
    return (
        session.session_id,
        session.user_key,
        session.realm_id,
        session.started_at,
        session.last_seen_at,
        session.expires_at,
        session.start_known,
        session.lifetime_known,
        session.ended_at,
        session.end_cause,
        session.phase,
        session.confirmed,
        session.transport,
        session.client_address,
        session.server_address,
        *session.usage,
        session.new_count,
        session.deleted_count,
        session.client_total_count,
        session.peer_total_count,
        session.client_total,
        session.peer_total,
        session.estimated,
        session.disputed,
    )


KEY_PACKER: Final = RowPacker(sessions, AllocationKey._fields)
REFRESH_PACKER: Final = RowPacker(
    sessions, ("session_id", "user_key", "last_seen_at", "expires_at", "recheck_at", *COUNTERS)
)
SESSION_PACKER: Final = RowPacker(
    sessions, (*AllocationKey._fields, "recheck_at", *_FIELDS, "end_events", "single_hour")
)
ID_PACKER: Final = RowPacker(sessions, ("session_id", "user_key"))


def _pick(names: Iterable[str]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """Picks those of the names that are SESSION_COLUMNS from a tuple of all."""
    return itemgetter(*(_FIELDS.index(name) for name in names if name in _FIELDS))


_fixed_columns: Final = _pick(SESSION_PACKER.fixed)
_varying_columns: Final = _pick(SESSION_PACKER.varying)


def pack_refresh(session: SessionState, recheck_at: int) -> bytes:
    """A session that got only new counters and times, as a row for COPY."""
    return REFRESH_PACKER.pack(
        (
            session.session_id,
            session.user_key,
            session.last_seen_at,
            session.expires_at,
            recheck_at,
            *session.usage,
        )
    )


def pack_session(
    key: AllocationKey,
    fields: Sequence[Any],
    recheck_at: int,
    end_events: int,
    single_hour: int | None,
) -> bytes:
    """A session, by its :func:`session_fields`, as a row for COPY."""
    return SESSION_PACKER.pack(
        (*key, recheck_at, *_fixed_columns(fields), end_events),
        (*_varying_columns(fields), single_hour),
    )


def pack_id(session: SessionState) -> bytes:
    """The id of a session as a row for COPY."""
    return ID_PACKER.pack((session.session_id, session.user_key))
