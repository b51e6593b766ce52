"""The commands that run the service: ``up``, ``collect`` and ``schedule``."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from accounting.cli.output import flush_output, write, write_message
from accounting.cli.resources import command_settings
from accounting.cli.serve import serve_process
from accounting.errors import ConfigurationError

if TYPE_CHECKING:
    from accounting.embedded import EmbeddedValkey
    from accounting.ops.fork_server import ProcessStarter

DEMO_MARKER: Final = "turn-accounting-demo"
"""File in a data directory that only a demonstration has written to, and that one may replace."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("up")(up)
    app.command("collect")(collect)
    app.command("schedule")(schedule)


def up() -> None:
    """Run everything; embedded servers where no URLs are set.

    Captures, loads and runs all jobs, and prints the line for turnserver.conf.
    """
    from accounting.ops import service
    from accounting.ops.fork_server import fork_server
    from accounting.ops.stop_signals import stop_on_signals

    settings = command_settings()
    keep_books(settings.data_dir)
    with fork_server(run_process) as starter:
        service.run_all(settings, stop_on_signals(), _announce, starter)


def collect() -> None:
    """Capture from Redis and load into Postgres.

    Messages are spooled to disk first, and loaded by a process of their own.
    """
    from accounting.ops import service  # noqa: F401  # shared by the processes that are forked
    from accounting.ops.fork_server import fork_server

    keep_books(command_settings().data_dir)
    with fork_server(run_process) as starter:
        _collect(starter)


def schedule() -> None:
    """Run the scheduled jobs, such as settle and rollup."""
    keep_books(command_settings().data_dir)
    _schedule()


def keep_books(data_dir: Path) -> None:
    """Keep a demonstration from replacing this data directory: it gets books of its own now."""
    from accounting.ops import servers

    servers.check_data_dir(data_dir)
    try:
        (data_dir / DEMO_MARKER).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"can't write in the data directory {data_dir}: {error.strerror}: set "
            "ACCOUNTING_DATA_DIR, or run this as the user of the service"
        ) from None


def run_process(command: str, starter: "ProcessStarter") -> None:
    """Run a process of the service that the fork server has started, to its end."""
    from accounting.ops import service
    from accounting.ops.stop_signals import stop_on_signals

    match command:
        case "collect":
            _collect(starter)
        case "load":
            service.run_loader_process(command_settings(), stop_on_signals())
        case "schedule":
            _schedule()
        case "serve":
            serve_process()
        case "prepare" | "prepare-embedded":
            service.prepare_database(command_settings(), is_embedded=command == "prepare-embedded")


def _schedule() -> None:
    from accounting.ops import service
    from accounting.ops.stop_signals import stop_on_signals

    service.run_scheduler_process(command_settings(), stop_on_signals())


def _collect(starter: "ProcessStarter") -> None:
    from accounting.config import environment_variable
    from accounting.ops import servers, service
    from accounting.ops.stop_signals import stop_on_signals

    settings = command_settings()
    if settings.redis_url is None:
        redis_url = servers.running_redis_url(settings)
        if redis_url is None:
            raise ConfigurationError(
                f"{environment_variable('redis_url')} is not set and no `up` runs here: "
                "expected the Redis "
                "that coturn publishes to, as redis://host:6379/0"
            )
        settings = command_settings(redis_url=redis_url)
    service.run_collector_process(settings, stop_on_signals(), starter)


def _announce(
    redis_url: str, valkey: "EmbeddedValkey | None", web_address: str | None = None
) -> None:
    """Write the line for turnserver.conf, and where the page is.

    The generated password of the embedded Valkey is in it only on a terminal: elsewhere the output
    becomes a log.
    """
    from accounting.ops import servers

    write_message("running; put this line into turnserver.conf and restart coturn:")
    show_password = valkey is not None and sys.stdout.isatty()
    write(f"{servers.turnserver_conf_line(redis_url, show_password=show_password)}\n")
    flush_output()
    if valkey is not None and not show_password:
        write_message(f"its password is in {valkey.coturn_password_file}")
    if web_address is not None:
        write_message(f"the page is on {web_address}")
