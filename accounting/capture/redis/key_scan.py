"""The key scan: which status keys lie in Redis, and for how long nobody has touched them.

Owns a connection of its own and a thread that never keeps capture waiting. Uses SCAN and OBJECT
IDLETIME, never KEYS, which stops a server, nor GET, which makes a key look used. Must not judge: a
key can vouch for a life that is known, a missing one proves nothing.
"""

import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

import structlog
from redis.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from accounting.capture.redis.address import Address, Endpoint
from accounting.capture.redis.connection import connect, execute_command, to_source_lost
from accounting.capture.source import SourceLost
from accounting.capture.spool.records import RawKeySighting

log = structlog.get_logger()

STATUS_KEY_PATTERN = b"turn/*/allocation/*/status"

# How many keys one SCAN looks at: the server does nothing else meanwhile, some 0.1 ms.
SCAN_COUNT = 500

# When Redis went away in the middle, the scan begins anew so much later.
RETRY_SECONDS = 2.0

KEYSPACE_LINE = re.compile(rb"^db(\d+):keys=", re.MULTILINE)


class KeyScan:
    """Scans in a thread when asked to; its methods belong to one other thread."""

    def __init__(self, address: Address, *, clock: Callable[[], int]) -> None:
        self._address = address
        self._clock = clock
        self._seen: deque[RawKeySighting] = deque()
        self._ended = Event()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="keyscan")
        self._running: Future[None] | None = None

    def start(self) -> None:
        """Scan anew, from now on. One that is under way is given up."""
        self._ended.set()
        self._ended = Event()
        self._running = self._executor.submit(self._scan_until_done, self._ended)

    def drain(self) -> list[RawKeySighting]:
        """What was seen since the last call. Raises a bug that ended the thread."""
        if self._running is not None and self._running.done():
            self._running.result()
        return [self._seen.popleft() for _ in range(len(self._seen))]

    def stop(self) -> None:
        """Scan no more, and wait for the thread."""
        self._ended.set()
        self._executor.shutdown()

    # -- in the thread

    def _scan_until_done(self, ended: Event) -> None:
        while not ended.is_set():
            try:
                keys = self._scan(self._address.resolve(), self._clock(), ended)
            except ResponseError as error:
                log.warning("the status keys are not looked at", reason=f"Redis refuses: {error}")
                return
            except SourceLost as error:
                log.debug("the status keys are looked at again later", reason=str(error))
                ended.wait(RETRY_SECONDS)
            else:
                log.info("looked at the status keys", keys=keys)
                return

    def _scan(self, place: Endpoint, began_at: int, ended: Event) -> int:
        """Look at every database that has keys; returns how many status keys there are."""
        with open_connection(place) as connection:
            databases = non_empty_databases(connection)
        count = 0
        for database in databases:
            with open_connection(place) as connection:
                # Asked for here and not by redis-py, to which a missing right is a failed log-in.
                if database:
                    execute_command(connection, "SELECT", str(database))
                count += self._scan_database(connection, database, began_at, ended)
        return count

    def _scan_database(
        self, connection: AbstractConnection, database: int, began_at: int, ended: Event
    ) -> int:
        cursor, count = b"0", 0
        while not ended.is_set():
            reply = execute_command(
                connection, "SCAN", cursor, "MATCH", STATUS_KEY_PATTERN, "COUNT", str(SCAN_COUNT)
            )
            assert isinstance(reply, list)
            cursor, keys = reply
            seen_at = self._clock()
            for key, idle in zip(keys, read_idle_seconds(connection, keys), strict=True):
                if idle is not None:  # None: it has gone since
                    count += 1
                    self._seen.append(
                        RawKeySighting(
                            scan_started_at=began_at,
                            seen_at=seen_at,
                            database=database,
                            key=key,
                            idle_seconds=idle,
                        )
                    )
            if cursor == b"0":
                break
        return count


@contextmanager
def open_connection(place: Endpoint) -> Iterator[AbstractConnection]:
    """A connection for as long as this lasts. Raises SourceLost when it breaks."""
    connection = place.new_connection()
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
    """The numbers of the databases that aren't empty."""
    answer = execute_command(connection, "INFO", "keyspace")
    assert isinstance(answer, bytes)
    return [int(number) for number in KEYSPACE_LINE.findall(answer)]


def read_idle_seconds(connection: AbstractConnection, keys: list[bytes]) -> list[int | None]:
    """For how long nobody touched each key, None for one that is gone. Raises ResponseError."""
    if not keys:
        return []
    connection.send_packed_command(  # type: ignore[no-untyped-call]
        connection.pack_commands([("OBJECT", "IDLETIME", key) for key in keys])  # type: ignore[no-untyped-call]
    )
    answers, refused = [], None
    for _ in keys:
        try:
            answers.append(connection.read_response())
        except ResponseError as error:
            refused = error
    if refused:
        raise refused
    return answers
