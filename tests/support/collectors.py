"""Collectors for tests, in a thread or in a process that can be killed; publishing and reading."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import redis

from accounting.capture.clock import CaptureClock, wall_clock
from accounting.capture.clock_correction import ClockCorrection
from accounting.capture.collector import capture_loop
from accounting.capture.pubsub.source import PubSubSource
from accounting.capture.redis.address import parse_address
from accounting.capture.redis.key_scan import KeyScan
from accounting.capture.replication.source import ReplicationSource
from accounting.capture.source import Source
from accounting.capture.spool.file import spool_path
from accounting.capture.spool.records import Gap, MessageOrigin
from accounting.capture.spool.spool import Spool
from accounting.domain.client_addresses import ClientAddresses
from tests.support import collector_process
from tests.support.fork_server import ForkedProcess
from tests.support.redis_proxy import Proxy
from tests.support.servers import RedisServer, wait_until

CHANNEL = b"turn/realm/north/user/ann/allocation/001000000000000001/traffic"

HOSTILE_USERS = [
    b"",
    b"x/allocation/000000000000000009/status",
    b"a*b?c[d]e=f,g:h",
    b"\x00\x01\x7f\xff\xfe\x80",
    b"\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n",
    b"$-1\r\n:1\r\n-ERR no\r\n+OK\r\n",
    b"u" * 512,
]

# By default a master waits 5 s for other replicas that may want the same snapshot.
PROMPT_SYNC = {"repl-diskless-sync-delay": "0"}


class CollectorThread:
    """``capture_loop`` in a thread; ``spool`` is a second handle on its file, as for a loader."""

    def __init__(
        self,
        url: str,
        data_dir: Path,
        *,
        clock: Callable[[], int] = wall_clock,
        queue_bytes: int = 16 << 20,
        silence_seconds: float = 10.0,
        source_class: type[ReplicationSource] | type[PubSubSource] = PubSubSource,
        source: Source | None = None,
        with_key_scan: bool = False,
        client_addresses: ClientAddresses = ClientAddresses.KEEP,
    ) -> None:
        self.path = spool_path(data_dir, "test")
        self.stopping = threading.Event()
        self._scan = KeyScan(parse_address(url), clock=clock) if with_key_scan else None
        self._source = source or source_class(
            url,
            queue_bytes=queue_bytes,
            clock=clock,
            checkpoint_seconds=0.03,
            silence_seconds=silence_seconds,
        )
        self._clock = clock
        self._client_addresses = client_addresses

    def __enter__(self) -> Self:
        self._collector_spool = Spool.open(self.path, "test", clock=self._clock)
        self.spool = Spool.open(self.path, "test")
        self._executor = ThreadPoolExecutor(1)
        self._running = self._executor.submit(
            capture_loop,
            self._source,
            self._collector_spool,
            self.stopping,
            ClockCorrection(CaptureClock(), self._collector_spool),
            self._scan,
            client_addresses=self._client_addresses,
        )
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stopping.set()
        self._executor.shutdown()
        if self._scan is not None:
            self._scan.stop()
        self._collector_spool.close()
        self.spool.close()
        self._running.result()

    def stop(self) -> None:
        """Stop the collector and wait for it."""
        self.stopping.set()
        self._running.result(timeout=30)

    def await_attached(self, server: RedisServer) -> None:
        if isinstance(self._source, PubSubSource):
            await_subscribed(server)
        wait_until(self.is_captured_now, message="no checkpoint")

    def is_captured_now(self) -> bool:
        """Whether there is a checkpoint and no open gap."""
        return self.spool.state().captured_until is not None and not self.spool.current_gap()

    def await_checkpoint(self) -> int:
        """Wait for two more checkpoints: everything published before the call is stored then."""
        checkpoints = {self.spool.state().captured_until or 0}

        def has_two_more() -> bool:
            checkpoints.add(self.spool.state().captured_until or 0)
            return len(checkpoints) > 2

        wait_until(has_two_more, message="no checkpoint")
        return max(checkpoints)

    def await_gap(self, number: int) -> Gap:
        """The gap of that number, once it is closed."""

        def is_closed() -> bool:
            gaps = self.spool.gaps()
            return len(gaps) >= number and gaps[number - 1].to_at is not None

        wait_until(is_closed, message=f"gap {number} is not closed")
        return self.spool.gaps()[number - 1]


class CollectorProcess:
    """``run_collector`` in its own process; SIGTERM stops it."""

    def __init__(
        self,
        url: str,
        data_dir: Path,
        *,
        max_file_bytes: int | None = None,
        capture: str = "subscribe",
        queue_bytes: int = 64 << 20,
        own_python: bool = False,
    ) -> None:
        """Start it: forked, unless it has a Python of its own, whose memory is its own too."""
        self._output = data_dir / "collector.out"
        data_dir.mkdir(parents=True, exist_ok=True)
        self._output.write_bytes(b"")
        arguments = [str(data_dir), *([str(max_file_bytes)] if max_file_bytes else [])]
        environ = {
            "ACCOUNTING_REDIS_URL": url,
            "ACCOUNTING_SOURCE": "test",
            "ACCOUNTING_CAPTURE": capture,
            "ACCOUNTING_SPOOL_QUEUE_BYTES": str(queue_bytes),
        }
        self._process: ForkedProcess | subprocess.Popen[bytes]
        if not own_python:
            self._process = ForkedProcess(
                collector_process.run_forked, arguments, environ, self._output
            )
            return
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", collector_process.__name__, *arguments],
                env=environ,
                stdout=output,
                stderr=output,
            )

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(30)

    def peak_bytes(self) -> int:
        """The most memory that the process has had so far."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) << 10

    def terminate(self) -> tuple[int, str]:
        self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        """The exit code and the output."""
        code = self._process.wait(60)
        return code, self._output.read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()


class Publisher:
    """Publishes numbered messages in a thread; ``sent`` has the times before and after each."""

    def __init__(self, server: RedisServer | Proxy) -> None:
        self._url = server.url
        self._stopping = threading.Event()
        self._executor = ThreadPoolExecutor(1)
        self.sent: dict[int, tuple[int, int]] = {}

    def __enter__(self) -> Self:
        self._running = self._executor.submit(self._publish)
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop publishing; Redis has every message in ``sent``."""
        self._stopping.set()
        self._executor.shutdown()
        self._running.result()

    def _publish(self) -> None:
        number = 0
        with redis.Redis.from_url(self._url) as client:
            while not self._stopping.wait(0.0005):
                before = wall_clock()
                try:
                    client.publish(CHANNEL, b"%d" % number)
                except redis.ConnectionError:
                    continue  # Redis never had this message
                self.sent[number] = before, wall_clock()
                number += 1

    def await_more(self, count: int) -> None:
        wanted = len(self.sent) + count
        wait_until(lambda: len(self.sent) >= wanted)


def replication_collector(url: str, data_dir: Path, **options: Any) -> CollectorThread:
    return CollectorThread(url, data_dir, source_class=ReplicationSource, **options)


def redis_client(server: RedisServer, database: int = 0) -> "redis.Redis":
    return redis.Redis(port=server.port, db=database)


def kill_subscribers(server: RedisServer) -> None:
    with redis_client(server) as client:
        client.client_kill_filter(_type="pubsub")


def kill_replicas(server: RedisServer) -> None:
    with redis_client(server) as client:
        client.client_kill_filter(_type="replica")


def await_subscribed(server: RedisServer) -> None:
    """Wait until one client is subscribed to both patterns."""
    with redis.Redis.from_url(server.url) as client:
        wait_until(lambda: client.pubsub_numpat() == 2, message="no client subscribed")


def publish(server: RedisServer, *payloads: bytes, to: bytes = CHANNEL) -> None:
    """Publish payloads in order; Redis has processed them when this returns."""
    with redis.Redis.from_url(server.url) as client, client.pipeline(transaction=False) as pipeline:
        for payload in payloads:
            pipeline.publish(to, payload)
        pipeline.execute()


class SpooledMessage(NamedTuple):
    """A message of the spool, unpacked."""

    epoch: int
    database: int
    estimated: bool
    position: int
    received_at: int
    channel: bytes
    payload: bytes


def stored_messages(spool: Spool) -> list[SpooledMessage]:
    """All messages of a spool."""
    rows = spool.read_messages(0, 0, 10_000_000)
    return [SpooledMessage._make((*MessageOrigin.unpack(row[0]), *row[1:])) for row in rows]


def payload_numbers(rows: list[SpooledMessage]) -> list[int]:
    return [int(row.payload) for row in rows]


def assert_losses_in_gaps(spool: Spool, sent: dict[int, tuple[int, int]]) -> list[int]:
    """Assert that every number is stored once and in order, or was sent within a gap.

    Positions must rise strictly within their epoch, and receipt times never fall. Returns the lost
    numbers.
    """
    messages, gaps = stored_messages(spool), spool.gaps()
    numbers = [int(message.payload) for message in messages]
    assert numbers == sorted(set(numbers)), "duplicated or out of order"
    places = [(message.epoch, message.position) for message in messages]
    assert places == sorted(set(places))
    times = [message.received_at for message in messages]
    assert times == sorted(times)
    lost = sorted(sent.keys() - set(numbers))
    for number in lost:
        before, after = sent[number]
        assert any(
            after >= gap.from_at and before <= (gap.to_at or wall_clock()) for gap in gaps
        ), f"{number} is lost outside of all gaps"
    return lost
