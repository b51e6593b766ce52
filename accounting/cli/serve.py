"""The command ``serve``: the page and the HTTP API."""

from typing import Annotated, Final

import typer

from accounting.cli.output import write_message
from accounting.cli.resources import command_settings, open_reader
from accounting.config import environment_variable, parse_listen_address
from accounting.errors import ConfigurationError, UsageError

DEFAULT_LISTEN: Final = "127.0.0.1:8400"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve")(serve)


def serve(
    listen: Annotated[
        str | None,
        typer.Option("--listen", metavar="HOST:PORT", help="Where to listen: 127.0.0.1:8400."),
    ] = None,
) -> None:
    """Serve the page and the HTTP API.

    On loopback without a log-in; elsewhere with tokens.
    """
    try:
        # With its libraries it takes a second and 30 MB, and may not be installed.
        from accounting.web import gate, server
        from accounting.web.app import create_app
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{error.name} is not installed: `pip install 'turn-accounting[web]'`"
        ) from error
    settings = command_settings()
    address = listen or settings.web_listen or DEFAULT_LISTEN
    try:
        host, port = parse_listen_address(address)
    except ValueError as error:
        raise UsageError(f"{environment_variable('web_listen')} {address!r}: {error}") from None
    with (
        open_reader(
            settings,
            idle_connections=server.IDLE_CONNECTIONS,
            statement_seconds=server.STATEMENT_SECONDS,
        ) as reader,
        server.listening(host, port) as listener,
    ):
        write_message(f"serving on http://{address}/")
        server.serve(create_app(reader, hosts=gate.LOOPBACK_NAMES), listener)
