"""The check of the page: whether it answers where ``up`` or ``serve`` of these settings has it."""

import http.client
import socket
from collections.abc import Iterator
from typing import Final

from accounting.config import (
    UNIX_PREFIX,
    Settings,
    environment_variable,
    parse_listen_address,
)
from accounting.ops.doctor.findings import Finding, ok, warning
from accounting.ops.web_process import ADDRESS, kept_port

TIMEOUT_SECONDS: Final = 5.0
PUBLIC_PATH: Final = "/static/icon.svg"
"""A file that needs no log-in."""


def check_page(settings: Settings) -> Iterator[Finding]:
    """Ask for a file of the page; nothing where none is served, as far as the settings say."""
    address = settings.web_listen or None
    if address is None:
        port = kept_port(settings.data_dir)
        address = None if port is None else f"{ADDRESS}:{port}"
    if address is None or address == "off":
        return
    try:
        seen = _ask(address)
    except (OSError, http.client.HTTPException) as error:
        seen = str(getattr(error, "strerror", None) or error or type(error).__name__)
    if seen == "":
        yield ok("page", "address", f"answers on {address}")
        return
    yield warning(
        "page",
        "address",
        f"{address}: {seen}",
        "`turn-accounting up` or `serve` serves it; if one runs, its log says why not; "
        f"{environment_variable('web_listen')}=off turns it off",
    )


def _ask(address: str) -> str:
    """What is wrong with the answer; empty if nothing. Raises OSError and HTTPException."""
    if address.startswith(UNIX_PREFIX):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(TIMEOUT_SECONDS)
            client.connect(address.removeprefix(UNIX_PREFIX))
        return ""
    host, port = parse_listen_address(address)
    if host in {"0.0.0.0", "::"}:  # noqa: S104  # it listens everywhere
        host = "::1" if host == "::" else ADDRESS
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", PUBLIC_PATH)
        status = connection.getresponse().status
    finally:
        connection.close()
    return "" if status == http.client.OK else f"answers {status}: is that another program?"
