"""The web server as a process of ``up``: its address, its settings, and what it never does.

It gets the database as the reader and none of the other secrets, and whatever happens to it, the
rest of the service goes on.
"""

import importlib.util
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from accounting.config import UNIX_PREFIX, Settings, environment_variable
from accounting.config.loading import file_variable
from accounting.config.settings import PREFIX
from accounting.installation import install_command
from accounting.ops.fork_server import ProcessStarter
from accounting.ops.processes import ChildProcess

log = structlog.get_logger()

LIBRARIES: Final = ("fastapi", "jinja2", "uvicorn")
ADDRESS: Final = "127.0.0.1"
FIRST_PORT: Final = 8400
PORTS: Final = 100
PORT_FILE: Final = "web-port"
"""In the data directory."""
CONFIGURATION_EXIT_CODE: Final = 2
STOP_TIMEOUT_SECONDS: Final = 10.0
_KEPT: Final = (
    "data_dir",
    "log_format",
    "log_level",
    "web_hosts",
    "web_login",
    "web_proxies",
    "web_root_path",
)


class WebProcess(NamedTuple):
    """The process, which is not started yet, and the address of the page."""

    process: ChildProcess
    address: str


def web_process(
    settings: Settings, starter: ProcessStarter, embedded_url: str | None
) -> WebProcess | None:
    """The process; None where the settings or the installation have none.

    ``embedded_url``: of the embedded database as the reader, where it is that one.
    """
    if settings.web_listen == "off":
        return None
    if missing := missing_library():
        log.warning(
            "the page is not served: install the extra web, or set ACCOUNTING_WEB_LISTEN=off",
            missing=missing,
            install=install_command("web"),
        )
        return None
    address = settings.web_listen or f"{ADDRESS}:{_choose_port(settings.data_dir)}"
    environment = _environment(settings, embedded_url)
    environment[environment_variable("web_listen")] = address
    process = ChildProcess(
        starter,
        "serve",
        environment,
        inherits=False,
        stop_timeout_seconds=STOP_TIMEOUT_SECONDS,
        final_exit_code=CONFIGURATION_EXIT_CODE,
    )
    is_tcp = not address.startswith(UNIX_PREFIX)
    return WebProcess(process, f"http://{address}{settings.web_root_path}/" if is_tcp else address)


def missing_library() -> str:
    """The first library of the extra ``web`` that is not installed; empty where all are."""
    return next((name for name in LIBRARIES if importlib.util.find_spec(name) is None), "")


def _environment(settings: Settings, embedded_url: str | None) -> dict[str, str]:
    """The settings that it needs, and everything of this process that is not a setting."""
    masked = settings.masked()
    environment = {
        name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)
    }
    environment |= {environment_variable(name): masked[name] for name in _KEPT if masked[name]}
    return environment | _database(settings, embedded_url)


def _database(settings: Settings, embedded_url: str | None) -> dict[str, str]:
    """The database's URL, or the file that has it, from which a rotated password is read again."""
    if embedded_url is not None:
        return {environment_variable("database_url"): embedded_url}
    assert settings.database_url is not None
    origin = settings.origins()["database_url"]
    if origin == file_variable("database_url"):
        return {origin: os.environ[origin]}
    if settings.config is not None and origin.startswith(f"{settings.config}: "):
        return {environment_variable("config"): str(settings.config)}
    return {environment_variable("database_url"): settings.database_url.get_secret_value()}


def kept_port(data_dir: Path) -> int | None:
    """The port of the last run, on 127.0.0.1; None before the first."""
    try:
        return int((data_dir / PORT_FILE).read_text())
    except (OSError, ValueError):
        return None


def _choose_port(data_dir: Path) -> int:
    """That of the last run if it is free, so that bookmarks stay valid; else the first free one."""
    last = kept_port(data_dir)
    kept = [] if last is None else [last]
    candidates = [*kept, *range(FIRST_PORT, FIRST_PORT + PORTS)]
    port = next(filter(_is_free, candidates), 0)
    if not port:
        with socket.create_server((ADDRESS, 0)) as listener:
            port = int(listener.getsockname()[1])
    if [port] != kept:
        with suppress(OSError):  # the next run has another port at worst
            (data_dir / PORT_FILE).write_text(f"{port}\n")
    return port


def _is_free(port: int) -> bool:
    try:
        socket.create_server((ADDRESS, port)).close()
    except OSError:
        return False
    return True
