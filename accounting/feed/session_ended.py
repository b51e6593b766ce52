"""``session.ended``: what the feed says of the end of a session, packed for COPY to the outbox."""

from collections.abc import Sequence
from hashlib import sha256
from struct import Struct
from typing import Any, Final

from psycopg import Cursor

from accounting.db.binary_copy import POSTGRES_EPOCH, copy_packed_rows
from accounting.db.row_packer import pack_text
from accounting.domain.counters import COUNTERS
from accounting.domain.session_fold import AllocationKey, SessionState

_TYPE: Final = b"session.ended"
_COLUMNS: Final = (
    "event_id", "type", "realm_id", "allocation_id", "started_at", "ended_at", *COUNTERS,
    "session_id", "user_key", "number", "database", "source_id", "start_known", "total_reported",
    "estimated", "disputed", "end_cause",
)  # fmt: skip
_FIXED: Final = Struct(
    f"!h i16s i{len(_TYPE)}s ii iq iqiq {'iq' * len(COUNTERS)} i16s i16s ii ii ih i? i? i? i?"
)

Event = tuple[int, bytes, bytes]
"""When the session ended, its id, and the row: events are in this order."""


def pack_event(key: AllocationKey, session: SessionState) -> Event:
    """The event of a session that has ended.

    Its number and id are functions of what it says, not of how often the session was written: after
    a restore the same reports may come in other batches. ``accounting.event_id`` is the same
    function for the other events.
    """
    ended_at, end_cause = session.ended_at, session.end_cause
    assert ended_at is not None
    assert end_cause is not None
    number = 1 + session.deleted_count + session.client_total_count + session.peer_total_count
    total_reported = session.client_total_count > 0
    a, b, c, d, e, f, g, h = session.usage
    says = (
        f"{_uuid(session.session_id)} {_uuid(session.user_key)}"
        f" {ended_at // 1_000_000}.{ended_at % 1_000_000:06d} {end_cause} {number}"
        f" {a} {b} {c} {d} {e} {f} {g} {h}"
        f" {_bool(total_reported)} {_bool(session.estimated)} {_bool(session.disputed)}"
    )
    row = _FIXED.pack(
        len(_COLUMNS),
        16, sha256(b"%b\n%b" % (_TYPE, says.encode())).digest()[:16],
        len(_TYPE), _TYPE, 4, session.realm_id, 8, key.allocation_id,
        8, session.started_at - POSTGRES_EPOCH, 8, ended_at - POSTGRES_EPOCH,
        8, a, 8, b, 8, c, 8, d, 8, e, 8, f, 8, g, 8, h,
        16, session.session_id, 16, session.user_key, 4, number,
        4, key.database, 2, key.source_id, 1, session.start_known, 1, total_reported,
        1, session.estimated, 1, session.disputed,
    )  # fmt: skip
    return ended_at, session.session_id, row + pack_text(end_cause)


def enqueue(cursor: Cursor[Any], events: Sequence[Event]) -> None:
    """Enqueue events, in the transaction that writes their sessions."""
    rows = (row for _, _, row in sorted(events))
    copy_packed_rows(cursor, "accounting.feed_outbox", _COLUMNS, rows)


def _uuid(id_: bytes) -> str:
    digits = id_.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _bool(value: bool) -> str:
    return "t" if value else "f"
