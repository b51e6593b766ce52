"""The clock of a replication stream: how far it had come at what time.

Owns the second connection, over which Redis is asked that, and its thread. Everything published
before the question lies before the offset of the answer. Must not touch the stream.
"""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

from redis.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from accounting.capture.redis.connection import read_server_info, shutdown_socket, to_source_lost
from accounting.capture.replication.backlog_times import OffsetTime
from accounting.capture.source import SourceLost


class OffsetPoller:
    """A thread that asks every `tick_seconds`; its methods belong to one other thread."""

    def __init__(
        self,
        connection: AbstractConnection,
        *,
        server_run_id: str | None,
        poll_seconds: float,
        clock: Callable[[], int],
    ) -> None:
        self._connection = connection
        self._server_run = server_run_id
        self._tick_seconds = poll_seconds
        self._clock = clock
        self._moments: deque[OffsetTime] = deque()
        self._wanted = Event()
        self._halted = Event()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="ticker")
        self._running: Future[None] = self._executor.submit(self._ask)

    def drain(self) -> list[OffsetTime]:
        """What was learnt since the last call. Raises what ended the thread."""
        if self._running.done():
            self._running.result()
        return [self._moments.popleft() for _ in range(len(self._moments))]

    def poll_now(self) -> None:
        """Ask at once, and not only when it is time again."""
        self._wanted.set()

    def stop(self) -> None:
        """Ask no more, and wait for the thread."""
        self._halted.set()
        self._wanted.set()
        shutdown_socket(self._connection)  # a question under way is not waited for
        self._executor.shutdown()

    # -- in the thread

    def _ask(self) -> None:
        due = time.monotonic()
        while not self._halted.is_set():
            # Cleared before the question, so that one asked for meanwhile is asked after this one.
            self._wanted.clear()
            self._moments.append(self._moment())
            due = max(due + self._tick_seconds, time.monotonic())
            self._wanted.wait(due - time.monotonic())

    def _moment(self) -> OffsetTime:
        try:
            server = read_server_info(self._connection, self._clock)
        except ResponseError as error:
            raise SourceLost(
                "redis_unreachable",
                f"Redis refuses INFO: {error}",
                "give this user the command info",
            ) from None
        except (RedisError, OSError) as error:
            raise to_source_lost(error) from None
        if server.run_id != self._server_run or server.role != "master":
            raise SourceLost("disconnected", "another server is the master now")
        return OffsetTime(server.asked_at, server.replication_offset)
