"""Captures a burst of messages that is published in one pipeline.

Three readers in turn get the same burst from a Valkey (or, with ``--server redis``, Debian's
Redis), each in its own process: a bare socket that subscribes, the source without a spool, and the
whole collector; the last two by subscription and by replication. The CPU time for each message is
compared with that of the bare socket. The collector runs with the server's default output limits,
which disconnect a slow reader; a loss without a gap fails the benchmark.

    .venv/bin/python -m benchmarks.capture_burst --server redis --messages 1000000
"""

import argparse
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import redis

from accounting.capture.clock import wall_clock
from accounting.capture.collector import run_collector
from accounting.capture.pubsub.source import PSUBSCRIBE_COMMAND
from accounting.capture.source_selection import make_source
from accounting.capture.spool.file import spool_path
from accounting.capture.spool.records import MessageOrigin
from accounting.capture.spool.spool import Spool
from accounting.config import Settings
from accounting.logs import configure_logging
from benchmarks.figures import Figure, Rounds, table
from benchmarks.measure import log_progress
from benchmarks.scale import FULL, Scale
from tests.support.servers import PostgresServer, RedisServer, ValkeyServer, wait_until

END_PAYLOAD = b"end of burst"
END_COMMAND = (
    b"*3\r\n$7\r\nPUBLISH\r\n$24\r\nturn/user/u/allocation/1\r\n$12\r\n%b\r\n" % END_PAYLOAD
)
NO_LIMITS = "pubsub 0 0 0 replica 0 0 0"
DEFAULT_LIMITS = "pubsub 33554432 8388608 60 replica 268435456 67108864 60"
QUEUE_BYTES = 256 << 20
SERVER_OPTIONS = {"repl-diskless-sync-delay": "0"}

Capture = Literal["subscribe", "replication"]


def burst_commands(messages: int) -> list[bytes]:
    """Numbered PUBLISH commands of total_traffic for many allocations, in pieces of 64 kB."""
    pieces, piece = [], bytearray()
    for number in range(messages):
        channel = (
            b"turn/realm/north.example.org/user/1700000000:user%06d/allocation/%018d/total_traffic"
            % (number % 38_000, 10**15 + number % 38_000)
        )
        payload = b"rcvp=%d, rcvb=%d, sentp=4096, sentb=4915200" % (number, number * 1200)
        piece += b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
            len(channel),
            channel,
            len(payload),
            payload,
        )
        if len(piece) > 1 << 16:
            pieces.append(bytes(piece))
            piece.clear()
    return [*pieces, bytes(piece)]


def publish(port: int, pieces: list[bytes]) -> None:
    """Send all pieces and discard the replies."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        drain = threading.Thread(target=lambda: discard_replies(connection))
        drain.start()
        for piece in pieces:
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        drain.join()


def discard_replies(connection: socket.socket) -> None:
    while connection.recv(1 << 16):
        pass


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def read_bare(port: int) -> None:
    """The limit: receive without parsing."""
    buffer = memoryview(bytearray(1 << 20))
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(PSUBSCRIBE_COMMAND)
        before, tail = cpu_seconds(), b""
        while END_PAYLOAD not in tail:
            count = connection.recv_into(buffer)
            if not count:
                sys.exit("cut off")
            tail = bytes(buffer[max(0, count - 64) : count])
    print(cpu_seconds() - before)


def read_without_spool(port: int, capture: Capture) -> None:
    url = f"redis://127.0.0.1:{port}"
    source = make_source(capture, url, queue_bytes=QUEUE_BYTES, clock=wall_clock)
    with (
        tempfile.TemporaryDirectory() as home,
        Spool.open(Path(home) / "spool", "bench") as spool,
        source.attach(spool.state(), threading.Event()) as stream,
    ):
        before, stop = cpu_seconds(), threading.Event()
        for batch in stream.batches(stop):
            if batch.messages and batch.messages[-1][3] == END_PAYLOAD:
                stop.set()
    print(cpu_seconds() - before)


def read_into_spool(port: int, data_dir: Path, capture: Capture) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    configure_logging("warning")
    settings = Settings(
        redis_url=f"redis://127.0.0.1:{port}",
        capture=capture,
        source="bench",
        data_dir=data_dir,
        spool_queue_bytes=QUEUE_BYTES,
    )
    before = cpu_seconds()
    run_collector(settings, stop)
    print(cpu_seconds() - before)


def has_reader(client: redis.Redis) -> bool:
    """Whether a client subscribes to both patterns, or replicates."""
    replication = client.info("replication")
    is_followed = replication.get("slave0", {}).get("state") == "online"
    return client.pubsub_numpat() == 2 or is_followed


class BurstResult(NamedTuple):
    """CPU microseconds of the reader for each message, seconds to publish, and to read."""

    cpu_micros: float
    publish_seconds: float
    capture_seconds: float


def read_burst(
    server: RedisServer, reader: str, capture: Capture, messages: int, home: Path
) -> BurstResult:
    """Publish one burst to one reader."""
    pieces = [*burst_commands(messages), END_COMMAND]
    command = [sys.executable, "-m", "benchmarks.capture_burst", "--reader", reader]
    command += ["--port", str(server.port), "--home", str(home), "--capture", capture]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        with redis.Redis.from_url(server.url) as client:
            # The limits may lose messages, so only the collector has them: its losses are counted.
            limit = DEFAULT_LIMITS if reader == "collector" else NO_LIMITS
            client.config_set("client-output-buffer-limit", limit)
            wait_until(lambda: has_reader(client), 30, "the reader does not read")
        began = time.monotonic()
        publish(server.port, pieces)
        published = time.monotonic() - began
        if reader == "collector":
            with Spool.open(spool_path(home, "bench"), "bench") as spool:
                wait_until(lambda: is_stored(spool, server.port), 120, "the end never came")
            child.send_signal(signal.SIGTERM)
        cpu = float(child.communicate(timeout=120)[0])
        took = time.monotonic() - began
    finally:
        child.kill()
        child.wait()
    return BurstResult(cpu / messages * 1e6, published, took)


def is_stored(spool: Spool, port: int) -> bool:
    """Whether an epoch has the end; publishes it again to a reader that was disconnected."""
    for epoch in spool.epochs():
        last = spool.last_position(epoch.number) or 0
        if [row[-1] for row in spool.read_messages(epoch.number, last - 1, 1)] == [END_PAYLOAD]:
            return True
    if len(spool.epochs()) > 1 and spool.current_gap() is None:
        publish(port, [END_COMMAND])
    return False


def check_spool(home: Path, messages: int) -> tuple[int, int]:
    """Check that numbers are in order without duplicates, and that none is missing without a gap.

    Returns the number of missing messages and the size of the spool in bytes.
    """
    with Spool.open(spool_path(home, "bench"), "bench") as spool:
        captured, last, place = 0, -1, (0, 0)
        while rows := spool.read_messages(*place, 50_000):
            place = MessageOrigin.unpack(rows[-1][0]).epoch, rows[-1][1]
            for *_, payload in rows:
                if payload != END_PAYLOAD:
                    number = int(payload[5 : payload.index(b",")])
                    assert number > last, f"{number} came after {last}"
                    captured, last = captured + 1, number
        missing = messages - captured
        assert not missing or spool.gaps(), f"{missing} are missing, and no gap says so"
        return missing, spool.size_bytes()


def run(_: PostgresServer, scale: Scale, kind: type[RedisServer] = ValkeyServer) -> list[Figure]:
    """Measure every reader with each mode of capture."""
    rounds = Rounds("capture")
    for number in range(scale.rounds):
        for capture in scale.captures:
            log_progress(f"capture: {capture}, round {number + 1} of {scale.rounds}")
            home = Path(tempfile.mkdtemp(prefix="ta-bench-"))
            try:
                with kind(SERVER_OPTIONS) as server:
                    bare, source, collector = (
                        read_burst(server, reader, capture, scale.messages, home)
                        for reader in ("bare", "source", "collector")
                    )
                missing, size = check_spool(home, scale.messages)
            finally:
                shutil.rmtree(home)
            add = partial(_add, rounds, capture)
            add("messages lost", missing, "", target=0)
            add("limit: bare socket reader, CPU", bare.cpu_micros, "us/event")
            add(
                "CPU over a bare reader",
                source.cpu_micros - bare.cpu_micros,
                "us/event",
                target=2.0,
            )
            add("CPU, the spool besides", collector.cpu_micros - source.cpu_micros, "us/event")
            add("CPU ratio", source.cpu_micros / bare.cpu_micros, "", limit="a bare socket reader")
            add("published in", collector.publish_seconds, "s")
            add("all spooled after", collector.capture_seconds, "s")
            add("spool", size / scale.messages, "B/message")
    return rounds.figures()


def _add(
    rounds: Rounds,
    capture: Capture,
    name: str,
    value: float,
    unit: str,
    target: float | None = None,
    limit: str = "",
) -> None:
    rounds.add(f"{capture}: {name}", value, unit, target=target, limit=limit)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--messages", type=int, default=1_000_000)
    arguments.add_argument("--server", choices=["valkey", "redis"], default="valkey")
    arguments.add_argument("--capture", choices=get_args(Capture), default="subscribe")
    arguments.add_argument("--reader", choices=["bare", "source", "collector"])
    arguments.add_argument("--port", type=int)
    arguments.add_argument("--home", type=Path)
    given = arguments.parse_args()
    match given.reader:
        case "bare":
            read_bare(given.port)
        case "source":
            read_without_spool(given.port, given.capture)
        case "collector":
            read_into_spool(given.port, given.home, given.capture)
        case _:
            kind = ValkeyServer if given.server == "valkey" else RedisServer
            scale = replace(FULL, messages=given.messages, rounds=1)
            print(table(run(PostgresServer(), scale, kind)))


if __name__ == "__main__":
    main()
