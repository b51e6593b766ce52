"""Polls the server's replication offset, on a second connection and in its own thread.

Everything published before a poll lies before the offset in its reply.
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
from accounting.capture.replication.failover import FailoverGuard
from accounting.capture.source import SourceLost


class OffsetPoller:
    """Polls every ``poll_seconds``. One other thread calls the methods."""

    def __init__(
        self,
        connection: AbstractConnection,
        *,
        server_run_id: str | None,
        replication_id: str,
        failover_guard: FailoverGuard,
        poll_seconds: float,
        clock: Callable[[], int],
    ) -> None:
        self._connection = connection
        self._server_run_id = server_run_id
        self._replication_id = replication_id
        self._failover_guard = failover_guard
        self.server_is_shutting_down = False
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._offset_times: deque[OffsetTime] = deque()
        self._poll_requested = Event()
        self._stopping = Event()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="offset-poller")
        self._thread: Future[None] = self._executor.submit(self._run)

    def drain(self) -> list[OffsetTime]:
        """The results since the last call. Raises the error that ended the thread."""
        if self._thread.done():
            self._thread.result()
        return [self._offset_times.popleft() for _ in range(len(self._offset_times))]

    def poll_now(self) -> None:
        """Poll at once, without waiting for the next interval."""
        self._poll_requested.set()

    def stop(self) -> None:
        """Stop polling and wait for the thread. A poll in flight is cut off."""
        self._stopping.set()
        self._poll_requested.set()
        shutdown_socket(self._connection)
        self._executor.shutdown()

    # -- in the thread

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopping.is_set():
            # Cleared before the poll: a request that comes meanwhile needs a later poll.
            self._poll_requested.clear()
            self._offset_times.append(self._poll())
            due = max(due + self._poll_seconds, time.monotonic())
            self._poll_requested.wait(due - time.monotonic())

    def _poll(self) -> OffsetTime:
        try:
            server = read_server_info(self._connection, self._clock)
            self._failover_guard.abort_if_hopeless(self._connection, server)
        except ResponseError as error:
            raise SourceLost(
                "redis_unreachable",
                f"Redis refuses INFO: {error}",
                "give this user the command info",
            ) from None
        except (RedisError, OSError) as error:
            raise to_source_lost(error) from None
        if server.run_id != self._server_run_id or server.role != "master":
            raise SourceLost("disconnected", "another server is the master now")
        if server.replication_id != self._replication_id:
            # It was a replica for a moment: what was published then is not in the stream.
            raise SourceLost("disconnected", "the server began another history")
        self.server_is_shutting_down = server.is_shutting_down
        return OffsetTime(server.read_at, server.replication_offset)
