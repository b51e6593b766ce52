"""Publishes the messages of the simulated servers to the current master at a steady rate.

Like coturn it has one connection for each server, reads every reply and sends nothing twice. A
message that was sent before the connection ended, without a reply, has an unknown fate: Redis may
have published it or not.
"""

import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

import hiredis

from accounting.capture.clock import wall_clock
from accounting.simulator import wire
from tests.chaos.allocations import Command, Coturn, Fate, Message
from tests.support.servers import ADDRESS

TICK_SECONDS: Final = 0.05
SILENCE_SECONDS: Final = 60.0


class Connection:
    """One server's connection to Redis."""

    def __init__(self, port: Callable[[], int], database: int) -> None:
        self._port = port
        self._database = database
        self._sock: socket.socket | None = None
        self._reader = hiredis.Reader()

    def send(self, commands: Sequence[Command]) -> None:
        """Send commands in one write, and set the fate of each message."""
        before = wall_clock()
        fates = [Fate.UNSENT] * len(commands)
        try:
            sock = self._sock or self._connect()
            fates = [Fate.UNKNOWN] * len(commands)
            sock.sendall(
                b"".join(wire.encode_command(command.name, command.args) for command in commands)
            )
            for place in range(len(commands)):
                is_error = isinstance(self._read_reply(sock), hiredis.ReplyError)
                fates[place] = Fate.REFUSED if is_error else Fate.PUBLISHED
        except OSError:
            self.close()
        after = wall_clock()
        for command, fate in zip(commands, fates, strict=True):
            if command.message is not None:
                command.message.sent_after, command.message.sent_before = before, after
                command.message.fate = fate

    def close(self) -> None:
        if self._sock is not None:
            with suppress(OSError):
                self._sock.close()
        self._sock, self._reader = None, hiredis.Reader()

    def _connect(self) -> socket.socket:
        self._sock = socket.create_connection((ADDRESS, self._port()), timeout=SILENCE_SECONDS)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock.sendall(wire.encode_command(b"select", [b"%d" % self._database]))
        if isinstance(self._read_reply(self._sock), hiredis.ReplyError):
            raise ConnectionError("not ready")  # Redis loads its snapshot
        return self._sock

    def _read_reply(self, sock: socket.socket) -> object:
        while (answer := self._reader.gets()) is False:
            data = sock.recv(1 << 16)
            if not data:
                raise ConnectionError("closed")
            self._reader.feed(data)
        return answer


class Publisher:
    """Publishes about ``rate`` messages a second in a thread, except while it is paused."""

    def __init__(
        self, port: Callable[[], int], databases: Sequence[int], rate: float, seed: int
    ) -> None:
        self.coturns = [Coturn(number, seed + number) for number in databases]
        self._connections = [Connection(port, number) for number in databases]
        self._messages_per_tick = rate * TICK_SECONDS / len(databases)
        self._stopping = threading.Event()
        self._running_allowed = threading.Event()
        self._paused = threading.Event()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="publisher")
        self._messages: list[Message] = []
        self.bytes = 0
        """The approximate number of bytes sent to Redis."""

    def begin_round(self, number: int) -> None:
        """Use the names of another round; only while it is paused."""
        for coturn in self.coturns:
            coturn.begin_round(number)

    def pause(self) -> None:
        """Stop publishing; returns once every reply is read."""
        self._running_allowed.clear()
        self._paused.wait()

    def resume(self) -> None:
        self._paused.clear()
        self._running_allowed.set()

    def take_messages(self) -> list[Message]:
        """The messages since the last call; only while it is paused."""
        messages, self._messages = self._messages, []
        return messages

    def __enter__(self) -> Self:
        self._running = self._executor.submit(self._publish)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._running_allowed.set()
        self._executor.shutdown()
        for connection in self._connections:
            connection.close()
        self._running.result()

    def _publish(self) -> None:
        owed, beats = 0.0, 0
        due = time.monotonic()
        while not self._stopping.is_set():
            if not self._running_allowed.is_set():
                self._paused.set()
                self._running_allowed.wait()
                due = time.monotonic()
                continue
            owed += self._messages_per_tick
            for coturn, connection in zip(self.coturns, self._connections, strict=True):
                commands = list(coturn.commands(int(owed)))
                if beats % round(wire.KEEPALIVE_SECONDS / TICK_SECONDS) == 0:
                    commands.append(coturn.keepalive())
                if commands:
                    connection.send(commands)
                self._messages += [
                    command.message for command in commands if command.message is not None
                ]
                self.bytes += sum(len(word) for command in commands for word in command.args)
            owed -= int(owed)
            beats += 1
            # After a stall the missed messages are not sent: coturn's traffic does not wait.
            due = max(due + TICK_SECONDS, time.monotonic() - 1.0)
            self._stopping.wait(max(0.0, due - time.monotonic()))
