"""The HTTP server of ``/metrics`` and ``/healthz``.

It changes nothing, has no login and returns no username. It still belongs on an address that is
not reachable from outside.
"""

import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final
from urllib.parse import urlsplit

import structlog
from prometheus_client import CONTENT_TYPE_LATEST

from accounting.config import environment_variable, parse_listen_address
from accounting.errors import ConfigurationError
from accounting.ops.monitoring.health import Health
from accounting.ops.monitoring.metrics import render_metrics
from accounting.ops.monitoring.snapshot import Snapshot

log = structlog.get_logger()

REQUEST_TIMEOUT_SECONDS: Final = 10.0
"""A client must send its request within this time."""
JSON: Final = "application/json"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    read_snapshot: Callable[[], Snapshot]
    evaluate: Callable[[Snapshot], Health]

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        error = sys.exception()
        if isinstance(error, OSError):  # the client disconnected
            log.debug("a request for metrics ended", reason=str(error))
        else:
            log.error("a request for metrics failed", exc_info=error)


class _IPv6Server(_Server):
    address_family = socket.AF_INET6


class _Request(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_TIMEOUT_SECONDS
    server_version = "turn-accounting"
    sys_version = ""

    def do_GET(self) -> None:  # the library's name
        match urlsplit(self.path).path:
            case "/metrics":
                metrics = render_metrics(self.server.read_snapshot())
                self._respond(HTTPStatus.OK, CONTENT_TYPE_LATEST, metrics)
            case "/healthz":
                health = self.server.evaluate(self.server.read_snapshot())
                status = HTTPStatus.SERVICE_UNAVAILABLE if health.problems else HTTPStatus.OK
                self._respond(status, JSON, json.dumps(health_document(health)).encode() + b"\n")
            case _:
                self._respond(HTTPStatus.NOT_FOUND, "text/plain", b"/metrics or /healthz\n")

    do_HEAD = do_GET  # noqa: N815

    def _respond(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        log.debug("request for metrics", request=format % args)


def health_document(health: Health) -> dict[str, object]:
    """The JSON response to ``/healthz``; its keys are part of the public interface."""
    document: dict[str, object] = {"status": "failing" if health.problems else "ok"}
    if health.problems:
        document["troubles"] = list(health.problems)
    if health.warnings:
        document["suspicions"] = list(health.warnings)
    return document


@contextmanager
def serve(
    listen: str, read_snapshot: Callable[[], Snapshot], evaluate: Callable[[Snapshot], Health]
) -> Iterator[None]:
    """Serve at ``listen`` (``address:port``) until the block ends.

    Raises ConfigurationError when it can't listen there.
    """
    host, port = parse_listen_address(listen)
    try:
        server = (_IPv6Server if ":" in host else _Server)((host, port), _Request)
    except OSError as error:
        raise ConfigurationError(
            f"{environment_variable('metrics_listen')}={listen!r} can't be listened at "
            f"({error.strerror}): expected an address of this machine and a free port"
        ) from None
    server.read_snapshot, server.evaluate = read_snapshot, evaluate
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    log.info("metrics are served", address=listen)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
