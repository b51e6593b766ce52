"""A receiver of webhooks, as a program of its own: ``webhook_receiver_process.py PORT DIRECTORY``.

It writes each request to ``record.jsonl`` before it answers, and what it answers before it sends
that, so that a kill leaves a record that says no less than what a sender may have seen. How it
behaves is in ``behaviour.json``, which it reads again for each request; see ``webhook_receiver``.
"""

import json
import os
import random
import select
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, cast

from standardwebhooks import Webhook, WebhookVerificationError

FAULTS: Final[tuple[Mapping[str, Any], ...]] = (
    {"do": "answer", "status": 500, "body": "\0\x1b[31m\r\n\u2028"},
    {"do": "answer", "status": 503, "headers": {"Retry-After": "1"}},
    {"do": "answer", "status": 429, "headers": {"Retry-After": "0"}},
    {"do": "answer", "status": 302, "headers": {"Location": "http://169.254.169.254/"}},
    {"do": "answer", "status": 401, "body": "x" * 100_000},
    {"do": "lie"},
    {"do": "drop"},
    {"do": "garble"},
    {"do": "drip"},
    {"do": "flood"},
)
"""What ``{"do": "random"}`` chooses from; ``drip`` and ``flood`` are correct answers."""
POLL_SECONDS: Final = 0.02


class Receiver(ThreadingHTTPServer):
    """The server, its record and its behaviour."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, directory: Path) -> None:
        super().__init__(("127.0.0.1", port), RequestHandler)
        self._directory = directory
        self._record = (directory / "record.jsonl").open("ab", buffering=0)
        self._lock = threading.Lock()
        self._received = 0
        self.random = random.Random(port)

    def write(self, **entry: Any) -> None:
        """Append a line to the record."""
        entry["at"] = time.monotonic_ns()
        with self._lock:
            self._record.write(json.dumps(entry).encode() + b"\n")

    def new_number(self) -> str:
        """What identifies a request, also among those before a restart."""
        with self._lock:
            self._received += 1
            return f"{os.getpid()}-{self._received}"

    def behaviour(self, path: str) -> Mapping[str, Any]:
        """How to answer at a path now."""
        behaviours = json.loads((self._directory / "behaviour.json").read_text())
        return cast("Mapping[str, Any]", behaviours.get(path, {"do": "answer", "status": 404}))


class RequestHandler(BaseHTTPRequestHandler):
    """Records and answers the requests of one connection."""

    protocol_version = "HTTP/1.1"
    server: Receiver

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: the record has it."""

    def do_POST(self) -> None:
        """Record a request and answer as the behaviour says."""
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) < length:  # the sender was killed: there was no request
            self.close_connection = True
            return
        number = self.server.new_number()
        behaviour = self.server.behaviour(self.path)
        is_verified = verify(behaviour.get("secrets"), dict(self.headers), body)
        self.server.write(
            entry="received",
            number=number,
            path=self.path,
            headers={name.lower(): value for name, value in self.headers.items()},
            body=body.decode(),
            is_verified=is_verified,
        )
        try:
            if (settled := self._settle(behaviour)) is None:
                self.server.write(entry="left", number=number)
            elif is_verified is False:
                self._answer(number, {"do": "answer", "status": 401})
            else:
                self._answer(number, settled)
        except OSError:
            self.close_connection = True
            self.server.write(entry="left", number=number)

    def _settle(self, behaviour: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The behaviour after any wait and choice; None when the sender has left."""
        while behaviour["do"] == "hold":
            if select.select([self.connection], [], [], POLL_SECONDS)[0]:
                self.close_connection = True
                return None
            behaviour = self.server.behaviour(self.path)
        if behaviour["do"] == "random":
            is_fault = self.server.random.random() < behaviour["faults"]
            return self.server.random.choice(FAULTS) if is_fault else {"do": "answer"}
        return behaviour

    def _answer(self, number: str, behaviour: Mapping[str, Any]) -> None:
        status = behaviour.get("status", 200)
        action = behaviour["do"]
        is_whole = action not in ("lie", "drop", "garble")
        self.server.write(entry="answered", number=number, status=status, is_whole=is_whole)
        body = behaviour.get("body", "ok").encode()
        head = f"HTTP/1.1 {status} Status\r\n".encode()
        for name, value in behaviour.get("headers", {}).items():
            head += f"{name}: {value}\r\n".encode()
        length = f"Content-Length: {len(body)}\r\n\r\n".encode()
        match action:
            case "lie":
                self.connection.sendall(head + length + body[:1])
                self._reset()
            case "drop":
                self._reset()
            case "garble":
                self.connection.sendall(b"\0\1\2 this is not HTTP\r\n\r\n")
                self.close_connection = True
            case "drip":
                for byte in head + length + body:
                    self.connection.sendall(bytes([byte]))
            case "flood":
                self.close_connection = True
                self.connection.sendall(head + b"\r\n")
                with suppress(OSError):
                    while True:
                        self.connection.sendall(body * 10_000)
            case _:
                self.connection.sendall(head + length + body)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.connection.close()


def verify(secrets: list[str] | None, headers: dict[str, str], body: bytes) -> bool | None:
    """Whether a request is signed by one of the secrets; None where nothing is signed."""
    if secrets is None:
        return None
    for secret in secrets:
        with suppress(WebhookVerificationError):
            Webhook(secret).verify(body, headers)
            return True
    return False


if __name__ == "__main__":
    with Receiver(int(sys.argv[1]), Path(sys.argv[2])) as receiver:
        receiver.serve_forever()
