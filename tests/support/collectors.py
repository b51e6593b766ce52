"""Collectors for tests: in a thread, to look at closely, or in a process, to be killed."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import redis

from accounting.capture.clock import wall_clock
from accounting.capture.collector import capture_loop
from accounting.capture.pubsub.source import PubSubSource
from accounting.capture.redis.address import parse_address
from accounting.capture.redis.key_scan import KeyScan
from accounting.capture.replication.source import ReplicationSource
from accounting.capture.source import Source
from accounting.capture.spool.file import spool_path
from accounting.capture.spool.records import Gap, MessageOrigin
from accounting.capture.spool.spool import Spool
from tests.support.servers import RedisServer, free_port, wait_until

CHANNEL = b"turn/realm/north/user/ann/allocation/001000000000000001/traffic"


class CollectorThread:
    """`collect` in a thread; `spool` is another view of the same file, as the loader has it."""

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

    def __enter__(self) -> Self:
        self._writing = Spool.open(self.path, "test", clock=self._clock)
        self.spool = Spool.open(self.path, "test")
        self._executor = ThreadPoolExecutor(1)
        self._running = self._executor.submit(
            capture_loop, self._source, self._writing, self.stopping, self._scan
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stopping.set()
        self._executor.shutdown()
        if self._scan is not None:
            self._scan.stop()
        self._writing.close()
        self.spool.close()
        self._running.result()

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        self.stopping.set()
        self._running.result(timeout=30)

    def await_attached(self, server: RedisServer) -> None:
        if isinstance(self._source, PubSubSource):
            await_subscribed(server)
        wait_until(self.is_captured_now, message="no tick")

    def is_captured_now(self) -> bool:
        """Whether something is proven captured, and no gap is open."""
        return self.spool.state().captured_until is not None and not self.spool.current_gap()

    def await_checkpoint(self) -> int:
        """Wait for two more ticks: everything published before the call is stored then."""
        before = self.spool.state().captured_until or 0
        ticks = {before}

        def has_ticked_twice() -> bool:
            ticks.add(self.spool.state().captured_until or 0)
            return len(ticks) > 2

        wait_until(has_ticked_twice, message="no tick")
        return max(ticks)

    def await_gap(self, number: int) -> Gap:
        """The gap of that number, once it is closed."""

        def is_closed() -> bool:
            gaps = self.spool.gaps()
            return len(gaps) >= number and gaps[number - 1].to_at is not None

        wait_until(is_closed, message=f"gap {number} is not closed")
        return self.spool.gaps()[number - 1]


class CollectorProcess:
    """`run_collector` in a process of its own, with SIGTERM as its stop."""

    def __init__(
        self,
        url: str,
        data_dir: Path,
        *,
        max_file_bytes: int | None = None,
        capture: str = "subscribe",
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.collector_process", str(data_dir)]
            + ([str(max_file_bytes)] if max_file_bytes else []),
            env={
                "ACCOUNTING_REDIS_URL": url,
                "ACCOUNTING_SOURCE": "test",
                "ACCOUNTING_CAPTURE": capture,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=30)

    def terminate(self) -> tuple[int, str]:
        self._process.terminate()
        return self.wait()

    def wait(self) -> tuple[int, str]:
        """The exit code and all that it printed."""
        text = self._process.communicate(timeout=60)[0]
        return self._process.returncode, text

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate(timeout=30)


class Publisher:
    """Publishes numbered messages in a thread, and remembers when each was on its way."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._stopping = threading.Event()
        self._executor = ThreadPoolExecutor(1)
        self.sent: dict[int, tuple[int, int]] = {}

    def __enter__(self) -> Self:
        self._running = self._executor.submit(self._publish)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Publish no more; everything that is in `sent` is with Redis."""
        self._stopping.set()
        self._executor.shutdown()
        self._running.result()

    def _publish(self) -> None:
        number = 0
        with redis.Redis.from_url(self._server.url) as client:
            while not self._stopping.wait(0.0005):
                before = wall_clock()
                try:
                    client.publish(CHANNEL, b"%d" % number)
                except redis.ConnectionError:
                    continue  # nobody has it: coturn's loss, not the collector's
                self.sent[number] = before, wall_clock()
                number += 1

    def await_more(self, count: int) -> None:
        wanted = len(self.sent) + count
        wait_until(lambda: len(self.sent) >= wanted)


class TlsRedisServer(RedisServer):
    """Debian's Redis with a TLS port too, and a certificate for 127.0.0.1 that signs itself."""

    def start(self) -> None:
        certificate, key = self.home / "certificate.pem", self.home / "key.pem"
        what = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        whose = ["-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
        subprocess.run(
            ["openssl", "req", *what, *whose, "-keyout", key, "-out", certificate],
            check=True,
            capture_output=True,
        )
        port = str(free_port())
        self.options |= {"tls-port": port, "tls-auth-clients": "no"}
        self.options |= {"tls-cert-file": str(certificate), "tls-key-file": str(key)}
        self.tls_url = f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate}"
        super().start()


class Sentinel(RedisServer):
    """A sentinel of the same program, that decides alone, half a second after its master died."""

    def __init__(self, master: RedisServer) -> None:
        super().__init__()
        self._master = master

    def command(self) -> list[str]:
        return [self._master.binary, str(self.configured(self._master.port)), "--sentinel"]

    def configured(self, port: int, *lines: str) -> Path:
        """The file for a sentinel that watches the master at that port."""
        path = self.home / "sentinel.conf"
        said = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {self.home}",
            *lines,
            f"sentinel monitor turn 127.0.0.1 {port} 1",
            "sentinel down-after-milliseconds turn 500",
            "sentinel failover-timeout turn 5000",
        ]
        path.write_text("\n".join(said))
        return path


class TlsSentinel(Sentinel):
    """The same over TLS too, with the certificate of its master, for who knows the password."""

    def __init__(self, master: TlsRedisServer) -> None:
        super().__init__(master)
        self._tls_master = master
        self.options = {"tls-port": str(free_port()), "requirepass": "hush&more"}

    def command(self) -> list[str]:
        certificate, key = (self._tls_master.home / f"{n}.pem" for n in ("certificate", "key"))
        path = self.configured(
            int(self._tls_master.options["tls-port"]),
            *(f"{name} {value}" for name, value in self.options.items()),
            f"tls-cert-file {certificate}",
            f"tls-ca-cert-file {certificate}",
            f"tls-key-file {key}",
            "tls-auth-clients no",
            "tls-replication yes",
        )
        return [self._master.binary, str(path), "--sentinel"]

    @property
    def url(self) -> str:
        return f"redis://:hush%26more@127.0.0.1:{self.port}/0"


class Proxy:
    """Stands between clients and a server: says what it is told to, cuts, holds up, alters."""

    def __init__(
        self,
        server: RedisServer,
        *,
        alter: tuple[bytes, bytes] = (b"", b""),
        close_at: bytes | None = None,
    ) -> None:
        self._server = server
        self._alter = alter
        self._hang_up = close_at
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self._clients: list[socket.socket] = []
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._is_cut = False
        # Clients that asked for a stream, and don't get it while this is so.
        self._streams: set[socket.socket] = set()
        self._flows = threading.Event()
        self._flows.set()

    def inject(self, text: bytes) -> None:
        """Say `text` to the client that came last. Between whole messages only."""
        self._clients[-1].sendall(text)

    def cut(self) -> None:
        """End every connection and let none come about."""
        self._is_cut = True
        for sock in self._sockets:
            close(sock)

    def mend(self) -> None:
        self._is_cut = False

    def hold_streams(self) -> None:
        """Pass nothing more to those that asked for a stream; the others notice nothing."""
        self._flows.clear()

    def release_streams(self) -> None:
        self._flows.set()

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._flows.set()
        for sock in (self._listener, *self._sockets):
            close(sock)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            if self._is_cut:
                close(client)
                continue
            server = socket.create_connection(("127.0.0.1", self._server.port))
            self._clients.append(client)
            self._sockets += [client, server]
            for pump in (self._to_server, self._to_client):
                thread = threading.Thread(target=pump, args=(client, server))
                self._threads.append(thread)
                thread.start()

    def _to_server(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(1 << 16):
                if self._hang_up is not None and self._hang_up in data:
                    break
                if b"PSYNC" in data:
                    self._streams.add(client)
                server.sendall(data.replace(*self._alter) if self._alter[0] else data)
        close(server)
        close(client)

    def _to_client(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 16):
                if client in self._streams:
                    self._flows.wait(60)
                client.sendall(data)
        close(client)


def close(sock: socket.socket) -> None:
    """Close it, whoever reads from it."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


def await_subscribed(server: RedisServer) -> None:
    """Wait until one client is subscribed to both patterns."""
    with redis.Redis.from_url(server.url) as client:
        wait_until(lambda: client.pubsub_numpat() == 2, message="nobody subscribed")


def publish(server: RedisServer, *payloads: bytes, to: bytes = CHANNEL) -> None:
    """Publish payloads, in order, in one go; they are with Redis when this returns."""
    with redis.Redis.from_url(server.url) as client, client.pipeline(transaction=False) as pipeline:
        for payload in payloads:
            pipeline.publish(to, payload)
        pipeline.execute()


class SpooledMessage(NamedTuple):
    """A row of the spool, with names."""

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


def assert_losses_in_gaps(spool: Spool, sent: dict[int, tuple[int, int]]) -> list[int]:
    """Every number is stored once, in order, or was on its way within a gap. Returns the lost.

    Positions rise strictly within their epoch, receipt times never fall.
    """
    messages, gaps = stored_messages(spool), spool.gaps()
    numbers = [int(message.payload) for message in messages]
    assert numbers == sorted(set(numbers)), "doubled or out of order"
    places = [(message.epoch, message.position) for message in messages]
    assert places == sorted(set(places))
    times = [message.received_at for message in messages]
    assert times == sorted(times)
    lost = sorted(sent.keys() - set(numbers))
    for number in lost:
        before, after = sent[number]
        assert any(
            after >= gap.from_at and before <= (gap.to_at or wall_clock()) for gap in gaps
        ), f"{number} is lost, and no gap says so"
    return lost
