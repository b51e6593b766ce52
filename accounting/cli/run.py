"""The commands that run the service: ``up``, ``collect``, ``load``, ``schedule``."""

from collections.abc import Callable

import typer

from accounting.cli.terminal import flush_output, warn, write
from accounting.config import Settings, variable
from accounting.errors import ConfigurationError
from accounting.ops import service
from accounting.ops.processes import stop_on_signals


def mount(app: typer.Typer, settings: Callable[..., Settings]) -> None:
    """Add the commands. ``settings``: reads them when a command runs; arguments go before all."""

    @app.command()
    def up() -> None:
        """Run the whole service: embedded servers where no URLs are set, capture, load, all
        jobs.
        """
        service.up(settings(), stop_on_signals(), _announce)

    @app.command()
    def collect() -> None:
        """Capture from Redis into the spool, and load the spool into Postgres."""
        chosen = settings()
        if chosen.redis_url is None:
            found = service.redis_url(chosen)
            if found is None:
                raise ConfigurationError(
                    f"{variable('redis_url')} is not set and no `up` runs here: expected the Redis "
                    "that coturn publishes to, as redis://host:6379/0"
                )
            chosen = settings(redis_url=found)
        service.collect(chosen, stop_on_signals())

    @app.command(hidden=True)
    def load() -> None:
        """Load the spool into Postgres: a part of `collect`."""
        service.load(settings(), stop_on_signals())

    @app.command()
    def schedule() -> None:
        """Run the jobs: settle, roll up, make partitions."""
        service.schedule(settings(), stop_on_signals())


def _announce(line: str) -> None:
    warn("running; put this line into turnserver.conf and restart coturn:")
    write(f"{line}\n")
    flush_output()
