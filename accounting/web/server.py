"""Runs the web server until it is told to stop."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from accounting.errors import ConfigurationError

BACKLOG: Final = 128
KEEP_ALIVE_SECONDS: Final = 15
STOP_SECONDS: Final = 5
IDLE_CONNECTIONS: Final = 2
"""So many connections to Postgres stay open; while more of the threads read, there are more."""
STATEMENT_SECONDS: Final = 10
"""No request holds a thread for longer than a few statements of this time."""
MOST_REQUESTS: Final = 64
"""So many requests are served at once; more are answered with 503."""


def serve(app: ASGIApp, listener: socket.socket) -> None:
    """Serve on a listening socket until SIGTERM or SIGINT, then let requests end."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the gate reads them, from named proxies only
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
        limit_concurrency=MOST_REQUESTS,
        lifespan="off",
    )
    uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket. Raises ConfigurationError where the address can't be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family, backlog=BACKLOG) as listener:
            yield listener
    except OSError as error:
        raise ConfigurationError(f"can't listen on {host}:{port}: {error.strerror}") from None
