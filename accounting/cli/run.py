"""The commands that run the service: ``up``, ``collect``, ``load``, ``schedule``."""

import sys

import typer

from accounting.cli.output import flush_output, write, write_message
from accounting.cli.resources import command_settings
from accounting.config import environment_variable
from accounting.embedded import EmbeddedValkey
from accounting.errors import ConfigurationError
from accounting.ops import servers, service
from accounting.ops.stop_signals import stop_on_signals


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("up")(up)
    app.command("collect")(collect)
    app.command("load", hidden=True)(load)
    app.command("schedule")(schedule)


def up() -> None:
    """Run everything: capture, load and all jobs; embedded servers where no URLs are set."""
    service.run_all(command_settings(), stop_on_signals(), _announce)


def collect() -> None:
    """Capture from Redis into the spool, and load the spool into Postgres."""
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
    service.run_collector_process(settings, stop_on_signals())


def load() -> None:
    """Load the spool into Postgres: a child process of `collect`."""
    service.run_loader_process(command_settings(), stop_on_signals())


def schedule() -> None:
    """Run the scheduled jobs, such as settle and rollup."""
    service.run_scheduler_process(command_settings(), stop_on_signals())


def _announce(redis_url: str, valkey: EmbeddedValkey | None) -> None:
    """Write the line for turnserver.conf.

    The generated password of the embedded Valkey is in it only on a terminal: elsewhere the output
    becomes a log.
    """
    write_message("running; put this line into turnserver.conf and restart coturn:")
    show_password = valkey is not None and sys.stdout.isatty()
    write(f"{servers.turnserver_conf_line(redis_url, show_password=show_password)}\n")
    flush_output()
    if valkey is not None and not show_password:
        write_message(f"its password is in {valkey.coturn_password_file}")
