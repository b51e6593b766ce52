"""The fork server: starts the service's processes from one that has imported everything.

Processes that are forked share the memory of what was imported, which is most of theirs, and start
at once. But a process with threads must not fork: a lock that another thread holds would be held
for ever in the child. So the first process of the service forks a server before it has any thread,
socket or engine. The server has none either, and forks a process whenever it is asked to, by the
first process or by one that it forked.

Each of them has a channel to the server, a socket: orders go there, by name and environment, and
exits come back. It also inherits the reading end of a pipe, which the server closes once the
process that ordered it has ended; it ends too when the server is killed.
"""

import gc
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final

import structlog

from accounting.errors import AccountingError
from accounting.ops.library_pages import release_library_pages
from accounting.ops.malloc import limit_arenas
from accounting.ops.process_title import set_process_title
from accounting.ops.stop_signals import STOP_SIGNALS, parent_variable

log = structlog.get_logger()

TITLE: Final = "accounting"
READ_BYTES: Final = 1 << 16
MALLOC_ARENAS: Final = 2
"""Of the C library, for all threads: it makes one for each thread otherwise, and fills none."""


class ProcessStarter:
    """Orders processes from the fork server. For one thread of a process."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._received = bytearray()
        self._exit_codes: dict[int, int] = {}
        self._reply: dict[str, Any] | None = None

    def start(self, command: str, environment: Mapping[str, str], drain_seconds: float) -> int:
        """Start a process that runs ``command``; returns its pid.

        It drains for at most ``drain_seconds`` when this process has ended. Raises AccountingError
        when it can't be started.
        """
        self._send(
            {"start": command, "environment": dict(environment), "drain_seconds": drain_seconds}
        )
        while self._reply is None:
            self._receive(None)
        reply, self._reply = self._reply, None
        if "pid" not in reply:
            raise AccountingError(f"can't start the process {command}: {reply['error']}")
        return int(reply["pid"])

    def send_signal(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to a process that was started here, unless it has ended."""
        self._send({"signal": int(number), "pid": pid})

    def exit_code(self, pid: int) -> int | None:
        """The exit code of a process that was started here, once; None while it runs."""
        self._receive(0.0)
        return self._exit_codes.pop(pid, None)

    def wait(self, pid: int, timeout_seconds: float | None = None) -> int | None:
        """Wait until a process has ended; returns its exit code, None after the timeout."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while pid not in self._exit_codes:
            left_seconds = None if deadline is None else deadline - time.monotonic()
            if left_seconds is not None and left_seconds <= 0:
                return None
            self._receive(left_seconds)
        return self._exit_codes.pop(pid)

    def _send(self, order: Mapping[str, object]) -> None:
        with _lost_server():
            self._channel.sendall(json.dumps(order).encode() + b"\n")

    def _receive(self, timeout_seconds: float | None) -> None:
        """Read what the server has sent; wait for something when there is nothing yet."""
        while select.select([self._channel], [], [], timeout_seconds)[0]:
            with _lost_server():
                data = self._channel.recv(READ_BYTES)
                if not data:
                    raise ConnectionResetError
            for message in _take_messages(self._received, data):
                if "exited" in message:
                    self._exit_codes[int(message["exited"])] = int(message["code"])
                else:
                    self._reply = message
            timeout_seconds = 0.0


@contextmanager
def fork_server(run: Callable[[str, ProcessStarter], None]) -> Iterator[ProcessStarter]:
    """A fork server that runs until the block, and all processes that it started, have ended.

    Enter it before this process has a thread, socket or engine. In a process that the server
    started it does not return: there it calls ``run`` with the command, and raises SystemExit.
    """
    if threading.active_count() > 1:
        raise RuntimeError("a process with threads must not fork")
    limit_arenas(MALLOC_ARENAS)
    # The collector writes to each object that it examines: no page with one would stay shared.
    gc.freeze()
    release_library_pages()
    sys.stdout.flush()
    sys.stderr.flush()
    channel, server_channel = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        channel.close()
        command, starter = _Server(server_channel).serve()
        run(command, starter)
        raise SystemExit(0)
    server_channel.close()
    try:
        yield ProcessStarter(channel)
    finally:
        channel.close()
        os.waitpid(pid, 0)


@dataclass(slots=True)
class _Client:
    """A process with a channel, and what it ordered: the pipes by pid of those that run."""

    channel: socket.socket
    received: bytearray = field(default_factory=bytearray)
    pipes: dict[int, int] = field(default_factory=dict)

    def close_pipe(self, pid: int) -> None:
        os.close(self.pipes.pop(pid))


class _Server:
    """The server's process: one thread, which waits for orders and for exits."""

    def __init__(self, channel: socket.socket) -> None:
        self._clients = {channel.fileno(): _Client(channel)}
        self._orphans: set[int] = set()
        self._signals, self._signals_writer = os.pipe()

    def serve(self) -> tuple[str, ProcessStarter]:
        """Serve, and exit. Returns only in a process that it started: its command and channel."""
        try:
            self._prepare()
            while self._clients or self._orphans:
                ready, _, _ = select.select([self._signals, *self._clients], [], [])
                if self._signals in ready:
                    os.read(self._signals, READ_BYTES)
                    self._report_exits()
                for descriptor in ready:
                    client = self._clients.get(descriptor)
                    started = None if client is None else self._read_orders(client)
                    if started is not None:
                        return started
        except BaseException as error:  # its parent's frames are not its own
            log.error("the fork server failed", exc_info=error)
            os._exit(1)
        os._exit(0)

    def _prepare(self) -> None:
        """Ignore what stops the service: the server ends after all others have."""
        os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        os.set_blocking(self._signals_writer, False)
        signal.set_wakeup_fd(self._signals_writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _ignore)
        _read_from_nothing()
        set_process_title(TITLE, "fork-server")

    def _report_exits(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._orphans.discard(pid)
            for client in self._clients.values():
                if pid in client.pipes:
                    client.close_pipe(pid)
                    code = os.waitstatus_to_exitcode(status)
                    _reply(client, {"exited": pid, "code": code})

    def _read_orders(self, client: _Client) -> tuple[str, ProcessStarter] | None:
        try:
            data = client.channel.recv(READ_BYTES)
        except OSError:
            data = b""
        if not data:
            self._forget(client)
            return None
        for order in _take_messages(client.received, data):
            if "signal" in order:
                if order["pid"] in client.pipes:  # the pid can't be another process's before that
                    os.kill(order["pid"], order["signal"])
                continue
            started = self._start(client, order)
            if started is not None:
                return started
        return None

    def _forget(self, client: _Client) -> None:
        """A client has ended: what it ordered learns of it, and ends too."""
        del self._clients[client.channel.fileno()]
        client.channel.close()
        self._orphans.update(client.pipes)
        for pid in list(client.pipes):
            client.close_pipe(pid)

    def _start(self, client: _Client, order: dict[str, Any]) -> tuple[str, ProcessStarter] | None:
        reader, writer = os.pipe()
        channel, server_channel = socket.socketpair()
        try:
            pid = os.fork()
        except OSError as error:
            for descriptor in (reader, writer):
                os.close(descriptor)
            channel.close()
            server_channel.close()
            _reply(client, {"error": error.strerror or str(error)})
            return None
        if pid:
            os.close(reader)
            channel.close()
            client.pipes[pid] = writer
            self._clients[server_channel.fileno()] = _Client(server_channel)
            _reply(client, {"pid": pid})
            return None
        os.close(writer)
        server_channel.close()
        self._leave()
        os.environ.clear()
        os.environ.update(order["environment"])
        os.environ.update(parent_variable(reader, order["drain_seconds"]))
        set_process_title(TITLE, order["start"])
        return order["start"], ProcessStarter(channel)

    def _leave(self) -> None:
        """In a process that was forked: drop what is the server's.

        The stop signals stay blocked: before :func:`stop_on_signals`, which unblocks them, they
        would end the process without a drain.
        """
        os.setpgid(0, 0)  # so that Ctrl-C reaches only the first process
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(self._signals)
        os.close(self._signals_writer)
        for client in self._clients.values():
            client.channel.close()
            for pid in list(client.pipes):
                client.close_pipe(pid)


def _reply(client: _Client, message: Mapping[str, object]) -> None:
    with suppress(OSError):  # it has ended; the next read finds that out
        client.channel.sendall(json.dumps(message).encode() + b"\n")


def _take_messages(received: bytearray, data: bytes) -> list[dict[str, Any]]:
    """Add data to what was received, and remove the complete lines: their objects."""
    received += data
    *lines, rest = received.split(b"\n")
    received[:] = rest
    return [json.loads(line) for line in lines]


def _read_from_nothing() -> None:
    """No process that is forked reads the terminal."""
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.dup2(descriptor, 0)
    os.close(descriptor)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """A handler: with one, Python writes the signal's number into the pipe."""


@contextmanager
def _lost_server() -> Iterator[None]:
    try:
        yield
    except OSError:
        raise AccountingError(
            "the process that starts the others has ended: all of them stop"
        ) from None
