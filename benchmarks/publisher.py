"""Publishes the workload to Redis at a steady rate, in its own process.

``python -m benchmarks.publisher --port 6379 --open 100000 --users 50000``. A line on standard input
sets the rate in messages a second (0 pauses); the end of input ends it. As coturn does, it also
sends SET or DEL for each status; only PUBLISH counts as a message.

It prints a line of JSON ten times a second: the time and the number of messages and of started
sessions. The last line also has the sums that the books must have. Messages that it could not send
in time are not sent later.
"""

import argparse
import json
import select
import socket
import subprocess
import sys
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Final, Self

from benchmarks.workload import Message, Workload
from tests.support.service import ROOT

TICK_SECONDS: Final = 0.01
REPORT_SECONDS: Final = 0.1
MAX_DEBT_SECONDS: Final = 0.2


def resp(messages: Sequence[Message]) -> bytes:
    """The commands of messages as coturn sends them: SET or DEL, then PUBLISH."""
    parts: list[bytes] = []
    for channel, payload in messages:
        if payload == b"deleted":
            parts.append(b"*2\r\n$3\r\nDEL\r\n$%d\r\n%b\r\n" % (len(channel), channel))
        elif channel.endswith(b"/status"):
            parts.append(
                b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
                % (len(channel), channel, len(payload), payload)
            )
        parts.append(
            b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
            % (len(channel), channel, len(payload), payload)
        )
    return b"".join(parts)


@dataclass(slots=True)
class _Pace:
    """The number of messages due: a token bucket that fills at the rate."""

    rate: float = 0.0
    due: float = 0.0
    at: float = field(default_factory=time.monotonic)

    def fill(self) -> None:
        now = time.monotonic()
        self.due = min(self.due + (now - self.at) * self.rate, self.rate * max(MAX_DEBT_SECONDS, 0))
        self.at = now


def publish(port: int, mix: Workload) -> None:
    """Send at the rate that standard input sets, until it ends."""
    groups = chain(mix.open(), mix.churn())
    pace = _Pace()
    reported_at = 0.0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        while True:
            if select.select([sys.stdin], [], [], TICK_SECONDS)[0]:
                line = sys.stdin.readline()
                if not line:
                    break
                pace.rate, pace.due = float(line), 0.0
            pace.fill()
            batch: list[Message] = []
            while len(batch) < pace.due:
                batch += next(groups)
            pace.due -= len(batch)
            if batch:
                connection.sendall(resp(batch))
            _read_replies(connection)
            if time.monotonic() - reported_at >= REPORT_SECONDS:
                reported_at = time.monotonic()
                _report(mix)
        connection.shutdown(socket.SHUT_WR)
        while _receive(connection):
            pass
    _report(mix, expected=mix.expected())


def _report(mix: Workload, **more: object) -> None:
    row = {"at": time.time(), "messages": mix.messages, "started": mix.started, **more}
    print(json.dumps(row), flush=True)


def _read_replies(connection: socket.socket) -> None:
    while select.select([connection], [], [], 0)[0]:
        _receive(connection)


def _receive(connection: socket.socket) -> bytes:
    answers = connection.recv(1 << 18)
    if b"-" in answers:
        raise SystemExit(f"Redis refuses: {answers[:200]!r}")
    return answers


class Publisher:
    """A publisher process and its reports so far."""

    def __init__(
        self, home: Path, name: str, port: int, *, open_sessions: int, users: int, realms: str = ""
    ) -> None:
        self._report_path = home / f"publisher-{name}.jsonl"
        command = [sys.executable, "-m", "benchmarks.publisher", "--port", str(port)]
        command += ["--open", str(open_sessions), "--users", str(users), "--realms", realms]
        with self._report_path.open("wb") as report:
            self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=report)

    @property
    def pid(self) -> int:
        return self.process.pid

    def set_rate(self, messages_a_second: float) -> None:
        """Set the rate; 0 pauses."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"%d\n" % messages_a_second)
        self.process.stdin.flush()

    def timeline(self) -> "Timeline":
        return Timeline.read(self._report_path)

    def stop(self) -> dict[str, int]:
        """End the process; returns the sums that the books must have."""
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()
        assert self.process.wait(60) == 0, "the publisher failed"
        return self.timeline().expected

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


@dataclass(frozen=True, slots=True)
class Timeline:
    """The number of messages and started sessions over time."""

    at: list[float]
    messages: list[int]
    started: list[int]
    expected: dict[str, int]

    @classmethod
    def read(cls, path: Path) -> Self:
        rows = list(_rows(path))
        return cls(
            [row["at"] for row in rows],
            [row["messages"] for row in rows],
            [row["started"] for row in rows],
            rows[-1].get("expected", {}) if rows else {},
        )

    def lag(self, now: float, started: int) -> float:
        """The age of the oldest session that is not among so many; 0.0 when all are."""
        place = bisect_right(self.started, started)
        if place == len(self.at):
            return 0.0
        return max(0.0, now - self.at[place])

    def sent(self, since: float, until: float) -> int:
        """Messages sent between two times."""
        first, last = bisect_right(self.at, since), bisect_right(self.at, until)
        return self.messages[last - 1] - self.messages[first - 1] if first and last else 0


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):  # the last line may be incomplete
            yield json.loads(line)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--port", type=int, required=True)
    arguments.add_argument("--open", type=int, required=True)
    arguments.add_argument("--users", type=int, required=True)
    arguments.add_argument(
        "--realms", default="", help="comma-separated; by default those of the workload"
    )
    given = arguments.parse_args()
    mix = Workload(given.open, given.users)
    if given.realms:
        mix = Workload(given.open, given.users, given.realms.encode().split(b","))
    publish(given.port, mix)


if __name__ == "__main__":
    main()
