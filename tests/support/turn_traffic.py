"""Numbered messages for the live tests: what was published, and when, so that none is forgotten.

Each is an interim of one user's only allocation; its received bytes are its number.
"""

import socket
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import redis

from accounting.capture.clock import wall_clock
from tests.support.books import Books, channel, status_payload, traffic_payload
from tests.support.servers import ADDRESS, RedisServer, wait_until


def announce(server: RedisServer, user: str) -> None:
    """Publish the beginning of the allocation that a user's numbers belong to."""
    with redis.Redis.from_url(server.url) as client:
        client.publish(channel("status", user=user), status_payload("new", 3600))


class Numbers:
    """Publishes numbers from 1 on, in a thread, until it is stopped or the block ends."""

    def __init__(self, server: RedisServer, user: str) -> None:
        self._server = server
        self._user = user
        self._stopping = threading.Event()
        self._executor = ThreadPoolExecutor(1)
        self.sent: dict[int, tuple[int, int]] = {}

    def __enter__(self) -> Self:
        announce(self._server, self._user)
        self._running = self._executor.submit(self._publish)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> dict[int, tuple[int, int]]:
        """Publish no more; returns when each number was on its way."""
        self._stopping.set()
        self._executor.shutdown()
        self._running.result()
        return self.sent

    def _publish(self) -> None:
        number = 1
        to = channel("traffic", user=self._user)
        with redis.Redis.from_url(self._server.url) as client:
            while not self._stopping.wait(0.002):
                before = wall_clock()
                try:
                    client.publish(to, traffic_payload(1, number, 0, 0))
                except redis.ConnectionError:
                    continue  # Redis is away: nobody heard it, and coturn would not say it again
                self.sent[number] = before, wall_clock()
                number += 1

    def await_more(self, count: int) -> None:
        """Return once so many more are published."""
        wanted = len(self.sent) + count
        wait_until(lambda: len(self.sent) >= wanted)


def burst(server: RedisServer, user: str, count: int) -> None:
    """Publish the numbers from 1 to `count`, pipelined, as fast as Redis takes them."""
    to = channel("traffic", user=user)
    publish_pipelined(
        server, ((to, traffic_payload(1, number, 0, 0)) for number in range(1, count + 1))
    )


def publish_pipelined(server: RedisServer, messages: Iterable[tuple[bytes, bytes]]) -> None:
    """Publish each (channel, payload) in order, as fast as Redis takes them."""
    commands = [
        b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(to), to, len(payload), payload)
        for to, payload in messages
    ]
    with socket.create_connection((ADDRESS, server.port)) as sock, ThreadPoolExecutor(1) as writer:
        writing = writer.submit(sock.sendall, b"".join(commands))
        answers = 0
        while answers < len(commands):
            answers += sock.recv(1 << 16).count(b"\n")
        writing.result()


def loaded(books: Books, user: str) -> list[int]:
    """A user's numbers in the reports, in order of position."""
    rows = books.query(
        "SELECT received_bytes FROM reporting.traffic_reports WHERE username = %s"
        " ORDER BY source, epoch, position",
        [user],
    )
    return [row["received_bytes"] for row in rows]


def billed(books: Books, user: str) -> int:
    """What a user's hours come to, in received bytes."""
    (row,) = books.query(
        "SELECT coalesce(sum(received_bytes), 0) AS bytes FROM reporting.user_usage_hourly"
        " WHERE user_id = %s",
        [user],
    )
    return int(row["bytes"])


def assert_honest(books: Books, user: str, sent: Mapping[int, tuple[int, int]]) -> list[int]:
    """Every number is loaded once, in order, or was on its way within a gap. Returns the lost."""
    numbers = loaded(books, user)
    assert numbers == sorted(set(numbers)), "doubled or out of order"
    gaps = books.rows("capture_gaps")
    lost = sorted(sent.keys() - set(numbers))
    for number in lost:
        assert any(is_within(sent[number], gap) for gap in gaps), f"{number} is lost without a gap"
    return lost


def is_within(sent: tuple[int, int], gap: Mapping[str, Any]) -> bool:
    """Whether a message that was on its way from one time to the other may be lost in that gap."""
    before, after = (at / 1e6 for at in sent)
    ends = gap["to_at"]
    begins = gap["from_at"].timestamp()
    return after >= begins and (ends is None or before <= ends.timestamp())
