"""Forward the feeds of the cells into that of the front: the job ``forward`` of a front.

Each batch of a cell is one transaction with its cursor, so that an event is enqueued once for each
time that it is read; it is read again only after a restore, and numbering drops it then by its id.
Consumers of the front have one feed with one order and one cursor, as in a database without cells.

The cells are read in turn. One that can't be read stops no other: why, and since when, is in
``accounting.cells``.
"""

import time
from typing import Final

import psycopg
import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from accounting.db.engine import lost_connections
from accounting.db.locks import require_lock
from accounting.db.queries import Queries
from accounting.errors import AccountingError, CellAway, ConnectionLost, LockHeld
from accounting.front.cells import reading_cells, require_front

log = structlog.get_logger()

_QUERIES: Final = Queries("accounting.front.feed")

BATCH_SIZE: Final = 5_000
"""Events of a cell that are forwarded in one transaction at the most."""
STATEMENT_SECONDS: Final = 20.0
"""A batch takes a fraction of a second."""
PAUSE_FACTOR: Final = 9
MAX_PAUSE_SECONDS: Final = 120.0
"""A cell that hangs is tried again after so many times what that took, so that the others go on."""


def forward_feed(engine: Engine, *, limit: int = BATCH_SIZE) -> int:
    """Forward all new events of the cells; returns how many were read.

    Of the cells that could not be read the last time, it tries one. Raises LockHeld if another
    scheduler forwards from the beginning, and at the end what was no lost connection.
    """
    total = 0
    failures: list[Exception] = []
    pending = _cells_to_forward(engine)
    while pending:
        for cell in tuple(pending):
            started = time.monotonic()
            try:
                read = _forward_batch(engine, cell, limit)
            except LockHeld:
                if not total:
                    raise
                return total
            except (AccountingError, DBAPIError) as error:
                _record_failure(engine, cell, error, time.monotonic() - started)
                if not isinstance(error, ConnectionLost):
                    failures.append(error)
                read = 0
            total += read
            if read < limit:
                pending.remove(cell)
    if failures:
        raise failures[0]
    return total


def _cells_to_forward(engine: Engine) -> list[str]:
    """The cells that were read the last time, and the next of the others."""
    with lost_connections(), engine.begin() as connection:
        require_front(connection)
        rows = connection.execute(_QUERIES.text("cells_to_forward")).all()
    return [row.cell for row in rows if not row.is_failing] + [
        row.cell for row in rows if row.is_failing
    ][:1]


def _forward_batch(engine: Engine, cell: str, limit: int) -> int:
    with reading_cells(engine, only=cell, statement_seconds=STATEMENT_SECONDS) as connection:
        # A statement of its own: the next one sees the cursor that the last holder committed.
        require_lock(connection, "forward")
        position = connection.execute(_QUERIES.text("common_position"), {"cell": cell}).one()
        if not position.is_newest:
            _go_back(connection, cell, position.number, position.seq)
        read = _forward_events(connection, cell, position.number, position.seq, limit)
        if connection.execute(_QUERIES.text("record_readable"), {"cell": cell}).first():
            log.info("the feed of a cell is read again", cell=cell)
    return read


def _go_back(connection: Connection, cell: str, number: int, seq: int) -> None:
    """Move the cursor of a restored cell back to a position that it has."""
    log.warning("the feed of a cell is read again, since the cell was restored", cell=cell, seq=seq)
    connection.execute(_QUERIES.text("forget_positions"), {"cell": cell, "number": number})
    connection.execute(_QUERIES.text("forget_closings"), {"cell": cell, "seq": seq})


def _forward_events(connection: Connection, cell: str, number: int, seq: int, limit: int) -> int:
    connection.execute(_QUERIES.text("create_events_of_cell"))
    batch = connection.execute(
        _QUERIES.text("read_events_of_cell"), {"cell": cell, "seq": seq, "limit": limit}
    ).one()
    if not batch.events:
        return 0
    _take_up_realms(connection, cell)
    if users := connection.execute(_QUERIES.text("missing_users")).scalars().all():
        connection.execute(
            _QUERIES.text("take_up_users_of_cell"), {"cell": cell, "user_keys": list(users)}
        )
    connection.execute(_QUERIES.text("forward_events"), {"cell": cell})
    connection.execute(_QUERIES.text("record_closings"), {"cell": cell})
    position = {"cell": cell, "number": number + 1, "seq": batch.last_seq}
    connection.execute(_QUERIES.text("write_position"), position)
    connection.execute(_QUERIES.text("thin_positions"), position)
    return int(batch.events)


def _take_up_realms(connection: Connection, cell: str) -> None:
    """Add the realms that the cell saw first, with its rules. Of this cell: others may be away."""
    realms = list(connection.execute(_QUERIES.text("missing_realms")).scalars())
    if not realms:
        return
    for name in ("take_up_realms_of_cell", "take_up_rules_of_cell"):
        connection.execute(_QUERIES.text(name), {"cell": cell, "realms": realms})
    if missing := list(connection.execute(_QUERIES.text("missing_realms")).scalars()):
        raise AccountingError(f"cell '{cell}' has events of realms that it has not: {missing}")


def _record_failure(engine: Engine, cell: str, error: Exception, seconds: float) -> None:
    """Record why a cell's feed can't be read. Raises ConnectionLost if the front's own is lost."""
    reason = _reason(error)
    with lost_connections(), engine.begin() as connection:
        before = connection.execute(
            _QUERIES.text("record_unreadable"),
            {
                "cell": cell,
                "error": reason,
                "pause_seconds": min(PAUSE_FACTOR * seconds, MAX_PAUSE_SECONDS),
            },
        ).scalar_one_or_none()
    write_log = log.debug if before == reason else log.warning
    write_log("the feed of a cell can't be read, trying again", cell=cell, reason=reason)


def _reason(error: BaseException) -> str:
    """What Postgres says of a cell, in one line."""
    if isinstance(error, CellAway):
        return error.reason
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, DBAPIError):
            cause = cause.orig
            continue
        if isinstance(cause, psycopg.Error):
            detail = cause.diag.message_detail or cause.diag.message_primary or str(cause)
            return detail.strip().splitlines()[0]
        cause = cause.__cause__
    return str(error)
