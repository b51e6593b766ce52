"""Sessions as rows: which columns they have, and how a session becomes a row and back.

Columns are spelled out, because ``attrgetter`` and keywords from a dict take three times as long;
``tests/sessions/test_session_rows.py`` holds them to the table in ``db.schema.sessions``.
"""

from collections.abc import Sequence
from struct import Struct
from typing import Any, Final

from accounting.db.binary_copy import POSTGRES_EPOCH
from accounting.db.row_packer import RowPacker, copy_columns, pack_four, pack_text, pack_time
from accounting.db.schema import sessions
from accounting.domain.counters import COUNTERS
from accounting.domain.session_fold import NO_TOTAL, AllocationKey, EndCause, Phase, SessionState

# Columns of the stored state (recheck_at, end_events, single_hour) are not among them.
_FIELDS: Final = (
    "session_id", "user_key", "realm_id", "started_at", "last_seen_at", "expires_at",
    "start_known", "lifetime_known", "ended_at", "end_cause", "phase", "confirmed", "transport",
    "client_address", "server_address", *COUNTERS, "new_count", "deleted_count",
    "client_total_count", "peer_total_count", "client_total", "peer_total", "estimated",
    "disputed",
)  # fmt: skip
KEY_COLUMNS: Final = copy_columns(sessions, AllocationKey._fields)
SESSION_COLUMNS: Final = copy_columns(sessions, _FIELDS)
_PHASES: Final = {int(phase): phase for phase in Phase}


def slow_columns(session: SessionState) -> tuple[object, ...]:
    """What seldom changes of a session. Columns that change together with one of them are left out.

    The others are constant, or in REFRESH_COLUMNS, which every report changes.
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

    A total is None or empty where none was reported.
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
    """The values of SESSION_COLUMNS. A total of four zeros is stored as an empty array."""
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
        session.client_total if any(session.client_total) else [],
        session.peer_total if any(session.peer_total) else [],
        session.estimated,
        session.disputed,
    )


KEY_PACKER: Final = RowPacker(sessions, AllocationKey._fields)

REFRESH_COLUMNS: Final = (
    "session_id", "user_key", "last_seen_at", "expires_at", "recheck_at", *COUNTERS,
)  # fmt: skip
PACKED_COLUMNS: Final = (
    *AllocationKey._fields, "session_id", "user_key", "realm_id", "started_at", "last_seen_at",
    "expires_at", "recheck_at", "start_known", "lifetime_known", "phase", "confirmed", *COUNTERS,
    "new_count", "deleted_count", "client_total_count", "peer_total_count", "estimated",
    "disputed", "end_events",
    # These are null or of no fixed width.
    "client_total", "peer_total", "ended_at", "end_cause", "transport", "client_address",
    "server_address", "single_hour",
)  # fmt: skip
ID_COLUMNS: Final = ("session_id", "user_key")

_COUNTERS: Final = "iq" * len(COUNTERS)
_REFRESH: Final = Struct(f"!h i16s i16s iqiqiq {_COUNTERS}")
_SESSION: Final = Struct(
    f"!h ih ii i16s iq i16s i16s ii iqiqiqiq i? i? ih i? {_COUNTERS} ihihihih i? i? ii"
)
_ID: Final = Struct("!h i16s i16s")


def pack_refresh(session: SessionState, recheck_at: int) -> bytes:
    """A session that got only new counters and times, as a row of REFRESH_COLUMNS for COPY."""
    a, b, c, d, e, f, g, h = session.usage
    return _REFRESH.pack(
        len(REFRESH_COLUMNS),
        16, session.session_id, 16, session.user_key,
        8, session.last_seen_at - POSTGRES_EPOCH,
        8, session.expires_at - POSTGRES_EPOCH,
        8, recheck_at - POSTGRES_EPOCH,
        8, a, 8, b, 8, c, 8, d, 8, e, 8, f, 8, g, 8, h,
    )  # fmt: skip


def pack_session(
    key: AllocationKey,
    session: SessionState,
    recheck_at: int,
    end_events: int,
    single_hour: int | None,
) -> bytes:
    """A session as a row of PACKED_COLUMNS for COPY."""
    a, b, c, d, e, f, g, h = session.usage
    fixed = _SESSION.pack(
        len(PACKED_COLUMNS),
        2, key.source_id, 4, key.database, 16, key.username_key, 8, key.allocation_id,
        16, session.session_id, 16, session.user_key, 4, session.realm_id,
        8, session.started_at - POSTGRES_EPOCH,
        8, session.last_seen_at - POSTGRES_EPOCH,
        8, session.expires_at - POSTGRES_EPOCH,
        8, recheck_at - POSTGRES_EPOCH,
        1, session.start_known, 1, session.lifetime_known,
        2, session.phase, 1, session.confirmed,
        8, a, 8, b, 8, c, 8, d, 8, e, 8, f, 8, g, 8, h,
        2, session.new_count, 2, session.deleted_count,
        2, session.client_total_count, 2, session.peer_total_count,
        1, session.estimated, 1, session.disputed, 4, end_events,
    )  # fmt: skip
    return b"".join(
        (
            fixed,
            pack_four(session.client_total),
            pack_four(session.peer_total),
            pack_time(session.ended_at),
            pack_text(session.end_cause),
            pack_text(session.transport),
            pack_text(session.client_address),
            pack_text(session.server_address),
            pack_time(single_hour),
        )
    )


def pack_id(session: SessionState) -> bytes:
    """The id of a session as a row of ID_COLUMNS for COPY."""
    return _ID.pack(len(ID_COLUMNS), 16, session.session_id, 16, session.user_key)
