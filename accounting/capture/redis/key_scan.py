"""The key scan: which status keys of coturn are in Redis, and for how long they have been idle.

It runs in its own thread on its own connection, so that capture never waits for it. It uses SCAN
and OBJECT IDLETIME: KEYS would block the server, and GET would reset a key's idle time. A key
confirms a session that is known; a missing key proves nothing.
"""

import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Final

import structlog
from redis.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from accounting.capture.redis.address import Address, Endpoint
from accounting.capture.redis.connection import (
    connect,
    execute_command,
    execute_pipeline,
    to_source_lost,
)
from accounting.capture.source import SourceLost
from accounting.capture.spool.records import MAX_MESSAGE_BYTES, RawKeySighting

log = structlog.get_logger()

STATUS_KEY_PATTERN: Final = b"turn/*/allocation/*/status"

SCAN_COUNT: Final = 500
"""Keys that one SCAN visits; it blocks the server for about 0.1 ms."""

RETRY_SECONDS: Final = 2.0
"""Delay before a new scan, after the connection was lost in the middle of one."""

MAX_SCANNED_KEYS: Final = 10_000_000
"""A scan that has found more ends: Redis' own would have ended, and memory and disk are bounded."""

MAX_PAGES: Final = 1_000_000
"""Of one database: 500 million keys. A server whose scan is longer does not end it."""

MAX_WAITING: Final = 100_000
"""Sightings that the collector has not stored yet; the scan waits for it."""

MAX_CURSOR_DIGITS: Final = 20
MAX_IDLE_SECONDS: Final = (1 << 31) - 1

KEYSPACE_LINE: Final = re.compile(rb"^db(\d{1,9}):keys=", re.MULTILINE)


class KeyScan:
    """Scans in a thread. One other thread calls the methods."""

    def __init__(self, address: Address, *, clock: Callable[[], int]) -> None:
        self._address = address
        self._clock = clock
        self._sightings: deque[RawKeySighting] = deque()
        self._cancelled = Event()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="keyscan")
        self._scan_thread: Future[None] | None = None

    def start(self) -> None:
        """Start a scan. One that is running is cancelled."""
        self._cancelled.set()
        self._cancelled = Event()
        self._scan_thread = self._executor.submit(self._scan_with_retries, self._cancelled)

    def drain(self) -> list[RawKeySighting]:
        """The sightings since the last call. Raises a bug that ended the thread."""
        if self._scan_thread is not None and self._scan_thread.done():
            self._scan_thread.result()
        return [self._sightings.popleft() for _ in range(len(self._sightings))]

    def stop(self) -> None:
        """Cancel a scan and wait for the thread."""
        self._cancelled.set()
        self._executor.shutdown()

    # -- in the thread

    def _scan_with_retries(self, cancelled: Event) -> None:
        while not cancelled.is_set():
            try:
                count = self._scan(self._address.resolve(), self._clock(), cancelled)
            except ResponseError as error:
                log.warning("status keys not scanned", reason=f"Redis refuses: {error}")
                return
            except SourceLost as error:
                log.debug("scan of the status keys will be retried", reason=str(error))
                cancelled.wait(RETRY_SECONDS)
            else:
                log.info("scanned the status keys", keys=count)
                return

    def _scan(self, endpoint: Endpoint, started_at: int, cancelled: Event) -> int:
        """Scan every database that has keys; returns the number of status keys."""
        with open_connection(endpoint) as connection:
            databases = non_empty_databases(connection)
        count = 0
        for database in databases:
            with open_connection(endpoint) as connection:
                # redis-py's own SELECT would report a missing permission as a failed log-in.
                if database:
                    execute_command(connection, "SELECT", str(database))
                count += self._scan_database(connection, database, started_at, cancelled)
        return count

    def _scan_database(
        self, connection: AbstractConnection, database: int, started_at: int, cancelled: Event
    ) -> int:
        cursor, count = b"0", 0
        for _ in range(MAX_PAGES):
            while len(self._sightings) > MAX_WAITING and not cancelled.wait(RETRY_SECONDS):
                pass
            if cancelled.is_set():
                break
            cursor, keys = parse_page(
                execute_command(
                    connection,
                    *("SCAN", cursor, "MATCH", STATUS_KEY_PATTERN, "COUNT", str(SCAN_COUNT)),
                )
            )
            seen_at = self._clock()
            idle_times = execute_pipeline(connection, [("OBJECT", "IDLETIME", key) for key in keys])
            for key, idle_seconds in zip(keys, idle_times, strict=True):
                # None: the key was deleted meanwhile.
                if isinstance(idle_seconds, int) and 0 <= idle_seconds <= MAX_IDLE_SECONDS:
                    count += 1
                    self._sightings.append(
                        RawKeySighting(
                            scan_started_at=started_at,
                            seen_at=seen_at,
                            database=database,
                            key=key,
                            idle_seconds=idle_seconds,
                        )
                    )
            if cursor == b"0" or count > MAX_SCANNED_KEYS:
                break
        return count


def parse_page(reply: object) -> tuple[bytes, list[bytes]]:
    """The next cursor of SCAN, and the keys that may be coturn's. Raises SourceLost."""
    match reply:
        case [bytes(cursor), [*keys]] if len(cursor) <= MAX_CURSOR_DIGITS and cursor.isdigit():
            return cursor, [
                key for key in keys if isinstance(key, bytes) and len(key) <= MAX_MESSAGE_BYTES
            ]
    raise SourceLost("redis_unreachable", "the reply to SCAN is not a page of keys")


@contextmanager
def open_connection(endpoint: Endpoint) -> Iterator[AbstractConnection]:
    """Connect, and disconnect at the end. Raises SourceLost when the connection breaks."""
    connection = endpoint.new_connection()
    try:
        connect(connection)
        yield connection
    except ResponseError:
        raise
    except (RedisError, OSError) as error:
        raise to_source_lost(error) from None
    finally:
        connection.disconnect()  # type: ignore[no-untyped-call]


def non_empty_databases(connection: AbstractConnection) -> list[int]:
    """The numbers of the databases that have keys."""
    reply = execute_command(connection, "INFO", "keyspace")
    if not isinstance(reply, bytes):
        raise SourceLost("redis_unreachable", "the reply to INFO is not text")
    return [int(number) for number in KEYSPACE_LINE.findall(reply)]
