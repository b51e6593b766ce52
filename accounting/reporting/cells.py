"""Which cells of a front answer, asked of the front's database in bounded time.

Postgres itself waits for a cell that hangs for as long as a statement may take. So a cell is asked
over a session of its own, which has to connect to it within seconds.
"""

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg.errors import (
    InsufficientPrivilege,
    InvalidSchemaName,
    QueryCanceled,
    UndefinedFunction,
)
from psycopg.rows import dict_row

from accounting.db.connection import lost_connections
from accounting.errors import AccountingError, CellAway, ConnectionLost

ANSWER_SECONDS: Final = 2.0
"""A cell that takes longer does not answer. All are asked at once, and if need be each again."""
MOST_ASKED: Final = 16
"""So many cells are asked at once where each is asked by itself."""
FRESH_SECONDS: Final = 5.0
"""An answer is used for so long; then the cells are asked again, beside what goes on."""
OLD_SECONDS: Final = 60.0
"""An older answer is not used at all."""

_JOINED: Final = "SELECT cell, revision FROM cell.joined()"
_WAITS: Final = """
SELECT state = 'active' AND (wait_event_type = 'Extension' OR wait_event = 'AppendReady')
FROM pg_stat_activity WHERE pid = %s
"""
_STATUSES: Final = """
SELECT j.cell, j.revision AS joined_revision, j.database_id AS joined_database, s.*,
    clock_timestamp() AS front_clock, reporting.feed_source() AS front_installation,
    cell.database_collation() AS front_collation
FROM cell.joined() j CROSS JOIN LATERAL cell.status_of(j.cell) s
WHERE j.cell = ANY (%s)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellState:
    """How a cell is. ``away``: why it can't be read; '' if it can, and then the rest is known.

    Lags are in seconds, None if a source in service never got there, or there is none.
    ``clock_ahead_seconds``: of the front's clock. ``collations``: how the cell and the front sort
    texts, if they do so differently.
    """

    cell: str
    away: str = ""
    joined_revision: str = ""
    revision: str = ""
    clock_ahead_seconds: float = 0.0
    collations: tuple[str, str] | None = None
    captured_lag_seconds: float | None = None
    settled_lag_seconds: float | None = None
    sources: int = 0
    open_gaps: int = 0
    failing_jobs: int = 0


def describe_change(status: CellState) -> str:
    """How a cell is no more as it was when it joined; '' if it is."""
    if status.revision not in {"", status.joined_revision}:
        return f"now at revision {status.revision}: join it again"
    if status.collations is not None:
        return (
            "sorts texts by {}, and the front by {}, which merges sorted lists, so that names may "
            "be listed twice or left out: bring both to the same version of the same system"
        ).format(*status.collations)
    return ""


def joined_cells(connection: psycopg.Connection) -> Sequence[str]:
    """The cells of this front; none where it is none. Ends the transaction."""
    try:
        return [row[0] for row in connection.execute(_JOINED)]
    except (InsufficientPrivilege, InvalidSchemaName, UndefinedFunction):
        return []  # an older database, or a login without rights: what it reads says so
    finally:
        connection.rollback()


def ask_cells(
    connect: Callable[[], psycopg.Connection],
    seconds: float | None = None,
    *,
    only: str | None = None,
) -> list[CellState]:
    """The status of each cell of a front; none where it is no front. ``connect``: to the front.

    A cell that takes longer than so many ``seconds`` does not answer. ``only``: one cell.

    Raises ConnectionLost where the front itself does not answer.
    """
    with lost_connections(), closing(connect()) as connection:
        names = [name for name in joined_cells(connection) if only in {None, name}]
    if not names:
        return []
    seconds = seconds or ANSWER_SECONDS
    if len(names) > 1:
        [together] = _answers([_ask(connect, names, seconds)], seconds)
        if not isinstance(together, str):
            return together
    statuses: list[CellState] = []
    for at in range(0, len(names), MOST_ASKED):
        asked = names[at : at + MOST_ASKED]
        answers = _answers([_ask(connect, [name], seconds) for name in asked], seconds)
        for name, answer in zip(asked, answers, strict=True):
            statuses += [CellState(cell=name, away=answer)] if isinstance(answer, str) else answer
    return statuses


def _ask(
    connect: Callable[[], psycopg.Connection], names: Sequence[str], seconds: float
) -> Future[list[CellState]]:
    """Ask cells in a thread: cancelling a statement that waits for one may take long, too."""
    with lost_connections():
        connection = connect()
    answer = Future[list[CellState]]()

    def read() -> None:
        try:
            with lost_connections(), closing(connection):
                connection.execute(
                    "SELECT set_config('statement_timeout', %s, true)",
                    [f"{round(1000 * seconds)}ms"],
                )
                with connection.cursor(row_factory=dict_row) as cursor:
                    rows = cursor.execute(_STATUSES, [list(names)]).fetchall()
                connection.commit()  # else the front's server ends it alone, later
            answer.set_result([_status(row) for row in rows])
        except BaseException as error:  # noqa: BLE001  # raised again by ``result``
            answer.set_exception(error)

    threading.Thread(target=read, name="ask-cells", daemon=True).start()
    return answer


def _answers(
    asked: Collection[Future[list[CellState]]], seconds: float
) -> list[list[CellState] | str]:
    """The statuses, or why there are none."""
    done = wait(asked, seconds + 0.5).done
    nothing = f"nothing came within {seconds:g} s"
    return [_answer(future, nothing) if future in done else nothing for future in asked]


def _answer(future: Future[list[CellState]], nothing: str) -> list[CellState] | str:
    try:
        return future.result()
    except CellAway as error:
        return error.reason
    except (AccountingError, psycopg.Error) as error:
        if isinstance(error.__cause__, QueryCanceled):
            return nothing
        return str(error).splitlines()[0]


def _status(row: Mapping[str, Any]) -> CellState:
    away = ""
    if row["member"] is None:
        away = "its database belongs to no front any more: let it join again"
    elif (row["front"], row["member"]) != (row["front_installation"], row["cell"]):
        away = f"its database is now the cell '{row['member']}' of a front: see its URL"
    elif row["installation"] != row["front_installation"]:
        away = "its database has another identity key: see its URL"
    elif row["database_id"] != row["joined_database"]:
        away = "its database is another than the one that joined: see its URL"
    return CellState(
        cell=row["cell"],
        away=away,
        joined_revision=row["joined_revision"],
        revision=row["revision"],
        clock_ahead_seconds=(row["clock"] - row["front_clock"]).total_seconds(),
        collations=(
            None
            if row["collation"] == row["front_collation"]
            else (row["collation"], row["front_collation"])
        ),
        captured_lag_seconds=row["captured_lag"],
        settled_lag_seconds=row["settled_lag"],
        sources=row["sources"],
        open_gaps=row["open_gaps"],
        failing_jobs=row["failing_jobs"],
    )


class AwayCells:
    """The cells that do not answer, as they were seconds ago. For any number of threads."""

    def __init__(self, connect: Callable[[], psycopg.Connection]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._away: Mapping[str, str] = {}
        self._asked_at: float | None = None

    def now(self, *, only: str | None = None) -> Mapping[str, str]:
        """Ask all cells now, or one. Returns the reasons by cell."""
        statuses = ask_cells(self._connect, only=only)
        with self._lock:
            self._away = {status.cell: status.away for status in statuses if status.away}
            self._asked_at = time.monotonic()
            return self._away

    def lately(self) -> Mapping[str, str]:
        """As they were seconds ago, where they were asked within a minute."""
        with self._lock:
            away, asked_at = self._away, self._asked_at
        age = OLD_SECONDS if asked_at is None else time.monotonic() - asked_at
        if age < FRESH_SECONDS:
            return away
        if age < OLD_SECONDS:
            if self._asking.acquire(blocking=False):
                threading.Thread(target=self._refresh, name="away-cells", daemon=True).start()
            return away
        return self.now()

    def is_waited_for(self, backend_pid: int) -> bool:
        """Whether that process of the front waits for a cell now."""
        with lost_connections(), closing(self._connect()) as connection:
            row = connection.execute(_WAITS, [backend_pid]).fetchone()
        return row is not None and bool(row[0])

    def forget(self) -> None:
        """Ask again before the next answer: a cell went away, or came back, just now."""
        with self._lock:
            self._asked_at = None

    def _refresh(self) -> None:
        try:
            self.now()
        except ConnectionLost:
            self.forget()
        finally:
            self._asking.release()
