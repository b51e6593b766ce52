"""Serves as the settings say: where, under which names, and whether readers need to log in."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from ipaddress import ip_address
from pathlib import Path
from socket import socket
from typing import Final

import structlog

from accounting.config import UNIX_PREFIX, Settings, is_loopback, parse_listen_address
from accounting.ops.library_pages import release_library_pages
from accounting.ops.malloc import limit_arenas
from accounting.reporting.reader import DatabaseReader
from accounting.web import server
from accounting.web.app import create_app
from accounting.web.arrival import Proxies
from accounting.web.gate import LOOPBACK_NAMES

log = structlog.get_logger()

DEFAULT_LISTEN: Final = "127.0.0.1:8400"


def run(
    settings: Settings,
    database: DatabaseReader,
    stop: threading.Event,
    announce: Callable[[str, bool], None],
) -> None:
    """Serve until ``stop`` is set. ``announce`` receives the address once it listens, and whether
    it is open: whether everybody who reaches it reads everything, without a token.

    Raises ConfigurationError where it can't listen.
    """
    address = settings.web_listen or DEFAULT_LISTEN
    proxies = Proxies.of(settings.web_proxies)
    if address.startswith(UNIX_PREFIX):
        host = ""
        opened: AbstractContextManager[socket] = server.listening_on_path(
            Path(address.removeprefix(UNIX_PREFIX))
        )
        shown = address
    else:
        host, port = parse_listen_address(address)
        opened = server.listening(address, host, port)
        shown = f"http://{address}{settings.web_root_path}/"
    is_local = is_loopback(host) and not proxies and all(map(is_loopback, settings.web_hosts))
    is_open = is_local and settings.web_login == "auto"
    app = create_app(
        database,
        hosts={*LOOPBACK_NAMES, *settings.web_hosts, *_name(host)},
        root_path=settings.web_root_path,
        log_in=not is_open,
        proxies=proxies,
    )
    limit_arenas(1)  # its threads take turns anyway
    release_library_pages()
    with opened as listener:
        if host and not is_loopback(host) and not proxies:
            log.warning(
                "tokens and books pass unencrypted: put a proxy with TLS in front of the page",
                address=address,
            )
        announce(shown, is_open)
        server.serve(app, listener, stop, proxies)


def _name(host: str) -> tuple[str, ...]:
    """The host to listen on where it is a name: the gate knows the addresses."""
    try:
        ip_address(host)
    except ValueError:
        return (host,) if host else ()
    return ()
