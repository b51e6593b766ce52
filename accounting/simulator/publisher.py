"""Sends a fleet's commands to Redis or Valkey at the chosen pace.

It opens a connection for each that coturn would have, so that commands are in order within a relay
thread but not across threads, as with coturn. It sends commands in batches and reads every reply;
an error reply ends the run.
"""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from typing import Final, Self, cast
from urllib.parse import urlsplit

import hiredis
import redis

from accounting.errors import AccountingError, ConnectionLost
from accounting.simulator.fleet import Burst, Fleet
from accounting.simulator.oracle import Expected
from accounting.simulator.scenario import Scenario
from accounting.simulator.wire import Command, encode_command

BATCH_COMMANDS: Final = 1000
PROGRESS_SECONDS: Final = 0.1
MAX_PAUSE_SECONDS: Final = 0.1
"""A longer pause is split into these, to report progress meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationProgress:
    """How far a run has come."""

    elapsed_seconds: float
    virtual_seconds: float
    duration_seconds: float
    published: int
    sessions_started: int
    sessions_live: int


def run(
    scenario: Scenario,
    redis_url: str,
    on_progress: Callable[[SimulationProgress], None] | None = None,
    stop: Event | None = None,
) -> Expected:
    """Publish a scenario, and return the totals that the books must show.

    ``stop`` ends it early, as if all servers were killed; the totals are then those of what was
    published. Raises :class:`ConnectionLost` when Redis can't be reached or closes a connection,
    and :class:`AccountingError` when it refuses a command.
    """
    fleet = Fleet(scenario)
    pace = _Pace(scenario.rate)
    reporter = _ProgressReporter(fleet, on_progress)
    with _Connections(redis_url, select=bool(scenario.databases)) as connections:
        for burst in fleet.run():
            if not pace.is_due(burst):
                connections.flush()
            while not pace.is_due(burst) and not (stop is not None and stop.is_set()):
                reporter.report()
                pace.wait(burst, stop)
            connections.send(burst)
            reporter.report()
            if stop is not None and stop.is_set():
                stop = None
                fleet.halt()
                pace = _Pace(0)
        connections.read_replies()
    reporter.report(is_final=True)
    return fleet.expected()


class _ProgressReporter:
    """Calls ``on_progress`` every PROGRESS_SECONDS."""

    def __init__(
        self, fleet: Fleet, on_progress: Callable[[SimulationProgress], None] | None
    ) -> None:
        self._fleet = fleet
        self._on_progress = on_progress
        self._started_at = time.monotonic()
        self._next_report_at = self._started_at

    def report(self, *, is_final: bool = False) -> None:
        now = time.monotonic()
        if self._on_progress is None or (now < self._next_report_at and not is_final):
            return
        self._next_report_at = now + PROGRESS_SECONDS
        self._on_progress(
            SimulationProgress(
                elapsed_seconds=now - self._started_at,
                virtual_seconds=self._fleet.now_us / 1e6,
                duration_seconds=self._fleet.scenario.duration_seconds,
                published=self._fleet.ledger.published,
                sessions_started=self._fleet.ledger.sessions_started,
                sessions_live=self._fleet.active_sessions,
            )
        )


class _Pace:
    """When a burst is due: by its virtual time, by a rate of messages, or at once."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._started_at = time.monotonic()
        self._sent = 0
        self._counted_burst: Burst | None = None

    def elapsed_seconds(self) -> float:
        return time.monotonic() - self._started_at

    def is_due(self, burst: Burst) -> bool:
        return self._rate == 0 or self._due_seconds(burst) <= self.elapsed_seconds()

    def wait(self, burst: Burst, stop: Event | None) -> None:
        """Sleep until the burst is due, but at most MAX_PAUSE_SECONDS, or until ``stop`` is set."""
        seconds = self._due_seconds(burst) - self.elapsed_seconds()
        if seconds <= 0:
            return
        if stop is None:
            time.sleep(min(seconds, MAX_PAUSE_SECONDS))
        else:
            stop.wait(min(seconds, MAX_PAUSE_SECONDS))

    def _due_seconds(self, burst: Burst) -> float:
        if not self._rate:
            return burst.at_us / 1e6
        if burst is not self._counted_burst:
            self._counted_burst = burst
            self._sent += sum(command.name == b"publish" for command in burst.commands)
        return self._sent / self._rate


class _Connections:
    """The fleet's connections, opened when first used."""

    def __init__(self, redis_url: str, *, select: bool) -> None:
        self._redis_url = redis_url
        self._select = select
        self._connections: dict[int, _Connection] = {}
        self._unsent_count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for link in self._connections.values():
            link.close()

    def send(self, burst: Burst) -> None:
        if burst.serialized:
            self.read_replies()
        for command in burst.commands:
            link = self._connections.get(command.connection)
            if link is None:
                link = self._connections[command.connection] = self._open(command)
            link.add(encode_command(command.name, command.args))
        self._unsent_count += len(burst.commands)
        if burst.serialized:
            self.read_replies()
        elif self._unsent_count >= BATCH_COMMANDS:
            self.flush()

    def flush(self) -> None:
        """Send the unsent commands. Replies are read at the next flush: Redis works meanwhile."""
        self._unsent_count = 0
        for link in self._connections.values():
            link.flush()

    def read_replies(self) -> None:
        """Send the unsent commands and read all replies."""
        self.flush()
        for link in self._connections.values():
            link.read_replies()

    def _open(self, command: Command) -> "_Connection":
        url = _with_database(self._redis_url, command.database) if self._select else self._redis_url
        try:
            # With RESP2 each command has one reply and nothing comes between, so counting works.
            client = redis.Redis.from_url(url, protocol=2, single_connection_client=True)
        except redis.RedisError as error:
            raise ConnectionLost(f"the simulator can't reach Redis: {error}") from error
        return _Connection(client)


def _with_database(redis_url: str, database: int) -> str:
    """The URL with another database: a ``db`` in the query precedes the path, also for sockets."""
    parts = urlsplit(redis_url)
    return parts._replace(query=f"db={database}&{parts.query}".rstrip("&")).geturl()


class _Connection:
    """One connection: its unsent commands, and the number of unread replies."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        if client.connection is None:
            raise ConnectionLost("the simulator has no connection to Redis")
        # There is no public name for the socket. redis-py takes microseconds for each reply, too
        # long for a million of them.
        self._socket = cast(socket.socket, client.connection._sock)  # noqa: SLF001
        self._reader = hiredis.Reader()
        self._unsent: list[bytes] = []
        self._unread_replies = 0

    def add(self, command: bytes) -> None:
        self._unsent.append(command)

    def flush(self) -> None:
        if not self._unsent:
            return
        self.read_replies()
        batch, self._unread_replies = b"".join(self._unsent), len(self._unsent)
        self._unsent.clear()
        try:
            self._socket.sendall(batch)
        except OSError as error:
            raise ConnectionLost(f"the simulator lost its connection to Redis: {error}") from error

    def read_replies(self) -> None:
        """Read all unread replies."""
        while self._unread_replies:
            reply = self._reader.gets()
            if reply is False:
                self._receive()
                continue
            if isinstance(reply, hiredis.ReplyError):
                raise AccountingError(f"Redis refused a command of the simulator: {reply}")
            self._unread_replies -= 1

    def close(self) -> None:
        self._client.close()

    def _receive(self) -> None:
        try:
            received = self._socket.recv(65536)
        except OSError as error:
            raise ConnectionLost(f"the simulator lost its connection to Redis: {error}") from error
        if not received:
            raise ConnectionLost("Redis closed the simulator's connection")
        self._reader.feed(received)
