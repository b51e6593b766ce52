"""Numbered messages for the live tests, with the time at which each was published.

Each is an interim of a user's only allocation; its received bytes are its number.
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


def publish_new(server: RedisServer, user: str) -> None:
    """Publish the status ``new`` of the allocation that a user's numbers belong to."""
    with redis.Redis.from_url(server.url) as client:
        client.publish(channel("status", user=user), status_payload("new", 3600))


class NumberPublisher:
    """Publishes the numbers from 1 in a thread, until it is stopped or the block ends."""

    def __init__(self, server: RedisServer, user: str) -> None:
        self._server = server
        self._user = user
        self._stopping = threading.Event()
        self._executor = ThreadPoolExecutor(1)
        self.sent: dict[int, tuple[int, int]] = {}

    def __enter__(self) -> Self:
        publish_new(self._server, self._user)
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
        """Stop; returns the times before and after the publication of each number."""
        self._stopping.set()
        self._executor.shutdown()
        self._running.result()
        return self.sent

    def _publish(self) -> None:
        number = 1
        channel_name = channel("traffic", user=self._user)
        with redis.Redis.from_url(self._server.url) as client:
            while not self._stopping.wait(0.002):
                before = wall_clock()
                try:
                    client.publish(channel_name, traffic_payload(1, number, 0, 0))
                except redis.ConnectionError:
                    continue  # like coturn, which does not publish a message twice
                self.sent[number] = before, wall_clock()
                number += 1

    def wait_for_more(self, count: int) -> None:
        """Return once so many more numbers are published."""
        target = len(self.sent) + count
        wait_until(lambda: len(self.sent) >= target)


def publish_burst(server: RedisServer, user: str, count: int) -> None:
    """Publish the numbers from 1 to ``count`` in one pipeline."""
    channel_name = channel("traffic", user=user)
    publish_pipelined(
        server, ((channel_name, traffic_payload(1, number, 0, 0)) for number in range(1, count + 1))
    )


def publish_pipelined(server: RedisServer, messages: Iterable[tuple[bytes, bytes]]) -> None:
    """Publish each (channel, payload) in order, in one pipeline."""
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


def loaded_numbers(books: Books, user: str) -> list[int]:
    """A user's numbers in the loaded reports, in order of position."""
    rows = books.query(
        "SELECT received_bytes FROM reporting.traffic_reports WHERE username = %s"
        " ORDER BY source, epoch, position",
        [user],
    )
    return [row["received_bytes"] for row in rows]


def hourly_received_bytes(books: Books, user: str) -> int:
    """The sum of received bytes over a user's hours."""
    (row,) = books.query(
        "SELECT coalesce(sum(received_bytes), 0) AS bytes FROM reporting.user_usage_hourly"
        " WHERE user_id = %s",
        [user],
    )
    return int(row["bytes"])


def assert_losses_have_gaps(
    books: Books, user: str, sent: Mapping[int, tuple[int, int]]
) -> list[int]:
    """Check that each number is loaded once, in order, or was sent in a gap; returns the lost."""
    numbers = loaded_numbers(books, user)
    assert numbers == sorted(set(numbers)), "doubled or out of order"
    gaps = books.rows("capture_gaps")
    lost = sorted(sent.keys() - set(numbers))
    for number in lost:
        assert any(may_be_lost_in(sent[number], gap) for gap in gaps), (
            f"{number} is lost without a gap"
        )
    return lost


def may_be_lost_in(sent: tuple[int, int], gap: Mapping[str, Any]) -> bool:
    """Whether the time span in which a message was sent overlaps the gap."""
    before, after = (at / 1e6 for at in sent)
    ends = gap["to_at"]
    begins = gap["from_at"].timestamp()
    return after >= begins and (ends is None or before <= ends.timestamp())
