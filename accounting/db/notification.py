"""Notifications between the service's processes, through Postgres' LISTEN and NOTIFY.

They only make work begin sooner: none is needed for correctness. A pooler in transaction mode
carries none, and a server whose queue of notifications is full refuses them.
"""

import os
import secrets
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import psycopg
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from accounting.waiting import Backoff

NEW_REPORTS: Final = "accounting_reports"
"""The channel of the loaders: reports were committed."""
MIN_RETRY_SECONDS: Final = 1.0
MAX_RETRY_SECONDS: Final = 60.0
_NOTIFY: Final = text("SELECT pg_notify(:channel, :payload)")


def notify(engine: Engine, channel: str, payload: str = "") -> None:
    """Notify the listeners, in a transaction of its own, which may fail without a consequence."""
    with suppress(psycopg.Error, DBAPIError), engine.begin() as connection:
        connection.execute(_NOTIFY, {"channel": channel, "payload": payload})


class Listener:
    """Listens on a connection and in a thread of its own, and calls ``on_notification`` there.

    ``is_listening`` is true once a notification of its own has come back, by another connection:
    from then on others come too.
    """

    def __init__(self, engine: Engine, channel: str, on_notification: Callable[[], None]) -> None:
        self._engine = engine
        self._channel = channel
        self._on_notification = on_notification
        self.is_listening = False
        self._stop = threading.Event()
        self._stop_reader, self._stop_writer = os.pipe()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Listen until the block ends."""
        thread = threading.Thread(target=self._run, name="listener", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            os.close(self._stop_writer)
            thread.join()
            os.close(self._stop_reader)

    def _run(self) -> None:
        backoff = Backoff(MIN_RETRY_SECONDS, MAX_RETRY_SECONDS)
        while not self._stop.is_set():
            with suppress(psycopg.Error, DBAPIError):
                self._listen(backoff)
            self.is_listening = False
            self._stop.wait(backoff.next_pause())

    def _listen(self, backoff: Backoff) -> None:
        pooled = self._engine.raw_connection()
        driver = pooled.driver_connection
        pooled.detach()
        assert isinstance(driver, psycopg.Connection)
        with driver:
            driver.autocommit = True
            driver.execute(b"LISTEN " + self._channel.encode())
            token = secrets.token_hex(8)
            notify(self._engine, self._channel, token)
            while not self._stop.is_set():
                # Not in psycopg, which wakes up ten times a second while it waits.
                select.select([driver.fileno(), self._stop_reader], [], [])
                for notification in driver.notifies(timeout=0):
                    if notification.payload == token:
                        self.is_listening = True
                        backoff.reset()
                    elif not notification.payload:
                        self._on_notification()
