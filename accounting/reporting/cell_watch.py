"""Ends what waits for a cell that does not answer, with an error that names the cell.

Postgres would wait for ever: the connection to a server that hangs is in order.
"""

import os
import socket
import threading
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Final

import psycopg

from accounting.errors import CellAway, ConnectionLost
from accounting.reporting.cells import AwayCells

WATCH_SECONDS: Final = 3.0
"""How long a transaction may wait for a cell before it is looked whether it answers."""
CANCEL_SECONDS: Final = 2.0


class CellWatch:
    """Watches one transaction of a front, from a thread of its own."""

    def __init__(self, connection: psycopg.Connection, cells: AwayCells) -> None:
        self._connection = connection
        self._cells = cells
        self.away: Mapping[str, str] = {}
        """Why it was ended, by cell."""
        self._ended = threading.Event()
        self._lock = threading.Lock()
        threading.Thread(target=self._run, name="watch-cells", daemon=True).start()

    def end(self) -> None:
        """The transaction is over."""
        with self._lock:
            self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(WATCH_SECONDS):
            with suppress(ConnectionLost, psycopg.Error):
                if self._cells.is_waited_for(self._connection.info.backend_pid):
                    self.away = self._cells.now()
            if self.away:
                with self._lock:
                    if not self._ended.is_set():
                        with suppress(psycopg.Error):
                            self._connection.cancel_safe(timeout=CANCEL_SECONDS)
                        hang_up(self._connection)  # Postgres may wait for the cell even then
                return


def name_cell(
    error: ConnectionLost,
    cells: AwayCells,
    away: Mapping[str, str],
    without: Collection[str] = (),
) -> ConnectionLost:
    """The error that names the cell, if one that is read does not answer.

    ``away``: the cells that are known to be away. ``without``: those that are not read.
    """
    if isinstance(error, CellAway):
        cells.forget()
        if error.cell is not None:
            return error
        away = cells.now()
    for cell, reason in away.items():
        if cell not in without:
            return CellAway(cell, reason)
    return error


def hang_up(connection: psycopg.Connection) -> None:
    """End a connection that another thread waits for."""
    with (
        suppress(OSError, psycopg.Error),
        socket.socket(fileno=os.dup(connection.fileno())) as its_socket,
    ):
        its_socket.shutdown(socket.SHUT_RDWR)
