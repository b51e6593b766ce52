"""The command ``serve``: the page and the HTTP API."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from accounting.cli.output import write_message
from accounting.cli.resources import command_settings, open_reader
from accounting.errors import ConfigurationError, UsageError
from accounting.installation import missing_extra

if TYPE_CHECKING:
    from accounting.config import Settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve")(serve)


def serve(
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen", metavar="ADDRESS", help="127.0.0.1:8400, or unix:/path of a socket."
        ),
    ] = None,
    root_path: Annotated[
        str | None,
        typer.Option("--root-path", metavar="/turn", help="The path where a proxy shows it."),
    ] = None,
) -> None:
    """Serve the page and the HTTP API.

    On loopback without a log-in; elsewhere, and behind a proxy, with tokens:
    see `token create`.
    """
    settings = command_settings(web_listen=listen, web_root_path=root_path)
    if settings.web_listen == "off":
        raise UsageError("--listen: expected an address, as ACCOUNTING_WEB_LISTEN is off")
    _run(
        settings, lambda address, is_open: write_message(f"serving on {address}, {_asks(is_open)}")
    )


def serve_process() -> None:
    """Serve as a process of ``up``."""
    import structlog

    log = structlog.get_logger()
    _run(
        command_settings(),
        lambda address, is_open: log.info(
            "the page is served", address=address, log_in=_asks(is_open)
        ),
    )


def _asks(is_open: bool) -> str:
    return "without a log-in" if is_open else "with a log-in: `turn-accounting token create`"


def _run(settings: "Settings", announce: Callable[[str, bool], None]) -> None:
    from accounting.ops.stop_signals import stop_on_signals

    stop = stop_on_signals()
    try:
        # With its libraries it takes a second and 30 MB, and may not be installed.
        from accounting.web import server
        from accounting.web.run import run
    except ModuleNotFoundError as error:
        raise ConfigurationError(missing_extra("the page needs", str(error.name), "web")) from error
    with open_reader(
        settings,
        program="turn-accounting serve",
        idle_connections=server.IDLE_CONNECTIONS,
        statement_seconds=server.STATEMENT_SECONDS,
        takes_role=True,
        leaves_out_cells=False,  # each request does
        cancelled=stop.is_set,
    ) as database:
        run(settings, database, stop, announce)
