"""The I/O shell: sends a fleet's commands to Redis or Valkey, paced, and hands back the oracle.

Owns connections and time. One connection for each connection that coturn would have, so order
holds within a relay thread and not across threads, as with coturn. Commands are packed here and
written in batches; every answer is read, and an error among them ends the run.
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
from accounting.simulator.wire import Command, packed

BATCH_COMMANDS: Final = 1000
PROGRESS_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 0.1
"""A longer pause is made of these, so that progress goes on being told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
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
    on_progress: Callable[[Progress], None] | None = None,
    stop: Event | None = None,
) -> Expected:
    """Publish a scenario and say what the books must come to.

    ``stop`` ends it early, as if all servers were killed; the answer then speaks of what was
    published until then. Raises :class:`ConnectionLost` when Redis can't be reached or goes away,
    and :class:`AccountingError` when it refuses a command; the oracle is void then.
    """
    fleet = Fleet(scenario)
    pace = _Pace(scenario.rate)
    watch = _Watch(fleet, on_progress)
    with _Links(redis_url, select=bool(scenario.databases)) as links:
        for burst in fleet.run():
            if not pace.due(burst):
                links.flush()
            while not pace.due(burst) and not (stop is not None and stop.is_set()):
                watch.look()
                pace.wait(burst, stop)
            links.send(burst)
            watch.look()
            if stop is not None and stop.is_set():
                stop = None
                fleet.halt()
                pace = _Pace(0)
        links.settle()
    watch.look(last=True)
    return fleet.expected()


class _Watch:
    """Tells the caller how far the run has come, now and then."""

    def __init__(self, fleet: Fleet, on_progress: Callable[[Progress], None] | None) -> None:
        self._fleet = fleet
        self._on_progress = on_progress
        self._began = time.monotonic()
        self._next = self._began

    def look(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if self._on_progress is None or (now < self._next and not last):
            return
        self._next = now + PROGRESS_SECONDS
        self._on_progress(
            Progress(
                elapsed_seconds=now - self._began,
                virtual_seconds=self._fleet.now_us / 1e6,
                duration_seconds=self._fleet.scenario.duration_seconds,
                published=self._fleet.ledger.published,
                sessions_started=self._fleet.ledger.sessions_started,
                sessions_live=self._fleet.sessions_live,
            )
        )


class _Pace:
    """When a burst is due: by its virtual time, by a rate of messages, or at once."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._began = time.monotonic()
        self._sent = 0
        self._counted: Burst | None = None

    def elapsed_seconds(self) -> float:
        return time.monotonic() - self._began

    def due(self, burst: Burst) -> bool:
        return self._rate == 0 or self._due_seconds(burst) <= self.elapsed_seconds()

    def wait(self, burst: Burst, stop: Event | None) -> None:
        """Sleep until the burst is due, or a moment, or until told to stop."""
        seconds = self._due_seconds(burst) - self.elapsed_seconds()
        if seconds <= 0:
            return
        if stop is None:
            time.sleep(min(seconds, LONGEST_PAUSE_SECONDS))
        else:
            stop.wait(min(seconds, LONGEST_PAUSE_SECONDS))

    def _due_seconds(self, burst: Burst) -> float:
        if not self._rate:
            return burst.at_us / 1e6
        if burst is not self._counted:
            self._counted = burst
            self._sent += sum(command.name == b"publish" for command in burst.commands)
        return self._sent / self._rate


class _Links:
    """The fleet's connections, opened when first used."""

    def __init__(self, redis_url: str, *, select: bool) -> None:
        self._redis_url = redis_url
        self._select = select
        self._links: dict[int, _Link] = {}
        self._waiting = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for link in self._links.values():
            link.close()

    def send(self, burst: Burst) -> None:
        if burst.alone:
            self.settle()
        for command in burst.commands:
            link = self._links.get(command.connection)
            if link is None:
                link = self._links[command.connection] = self._open(command)
            link.add(packed(command.name, command.args))
        self._waiting += len(burst.commands)
        if burst.alone:
            self.settle()
        elif self._waiting >= BATCH_COMMANDS:
            self.flush()

    def flush(self) -> None:
        """Write what waits. Answers to it are read at the next flush: Redis works meanwhile."""
        self._waiting = 0
        for link in self._links.values():
            link.flush()

    def settle(self) -> None:
        """Write what waits and read every answer."""
        self.flush()
        for link in self._links.values():
            link.settle()

    def _open(self, command: Command) -> "_Link":
        url = _with_database(self._redis_url, command.database) if self._select else self._redis_url
        try:
            # RESP2: one answer to each command and nothing between, so answers can be counted.
            client = redis.Redis.from_url(url, protocol=2, single_connection_client=True)
        except redis.RedisError as error:
            raise ConnectionLost(f"the simulator can't reach Redis: {error}") from error
        return _Link(client)


def _with_database(redis_url: str, database: int) -> str:
    """The URL with another database; in the query it goes before the path, and suits sockets."""
    parts = urlsplit(redis_url)
    return parts._replace(query=f"db={database}&{parts.query}".rstrip("&")).geturl()


class _Link:
    """One connection: what waits to be written, and how many answers are due."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        if client.connection is None:
            raise ConnectionLost("the simulator has no connection to Redis")
        # The bare socket has no public name; redis-py takes microseconds of Python for an answer,
        # and a million of them matter here.
        self._socket = cast(socket.socket, client.connection._sock)  # noqa: SLF001
        self._reader = hiredis.Reader()
        self._parts: list[bytes] = []
        self._due = 0

    def add(self, command: bytes) -> None:
        self._parts.append(command)

    def flush(self) -> None:
        if not self._parts:
            return
        self.settle()
        batch, self._due = b"".join(self._parts), len(self._parts)
        self._parts.clear()
        try:
            self._socket.sendall(batch)
        except OSError as error:
            raise ConnectionLost(f"Redis went away from the simulator: {error}") from error

    def settle(self) -> None:
        """Read every answer that is due."""
        while self._due:
            answer = self._reader.gets()
            if answer is False:
                self._receive()
                continue
            if isinstance(answer, hiredis.ReplyError):
                raise AccountingError(f"Redis refused a command of the simulator: {answer}")
            self._due -= 1

    def close(self) -> None:
        self._client.close()

    def _receive(self) -> None:
        try:
            received = self._socket.recv(65536)
        except OSError as error:
            raise ConnectionLost(f"Redis went away from the simulator: {error}") from error
        if not received:
            raise ConnectionLost("Redis closed the simulator's connection")
        self._reader.feed(received)
