"""What commands work with: the settings in force, and the database as writer or reader.

Importing these takes longer than to print a help page, so it is done when a command runs. The
modules of commands import what they do in the same way.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from accounting.cli.output import note_without_cells

if TYPE_CHECKING:
    from accounting.config import Settings
    from accounting.db.engine import Engine
    from accounting.reporting.reader import DatabaseReader


def command_settings(**arguments: object) -> "Settings":
    """Load the settings; ``arguments`` precede all other sources. Configures the log."""
    from accounting.config import load_settings
    from accounting.logs import configure_logging

    settings = load_settings(**arguments)
    configure_logging(settings.log_level, settings.log_format)
    return settings


@contextmanager
def writer_engine(settings: "Settings", *, may_create: bool = False) -> Iterator["Engine"]:
    """The database with the writer's rights. Raises AccountingError for an older schema.

    ``may_create``: the embedded database, where neither a URL nor that database exists.
    """
    from accounting.db import migrations
    from accounting.ops import servers

    with servers.database(settings, servers.WRITER_ROLE, may_create=may_create) as engine:
        migrations.require_head(engine)
        yield engine


@contextmanager
def cell_engine(settings: "Settings", source: str | None = None) -> Iterator["Engine"]:
    """As :func:`writer_engine`, for what works in a cell.

    Raises UsageError on a front, which names the cell that has the ``source``.
    """
    from accounting.front.cells import refuse_front

    with writer_engine(settings) as engine:
        refuse_front(engine, source)
        yield engine


@contextmanager
def open_reader(
    settings: "Settings",
    *,
    program: str = "turn-accounting",
    idle_connections: int = 1,
    statement_seconds: int = 0,
    takes_role: bool = False,
    leaves_out_cells: bool = True,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator["DatabaseReader"]:
    """The database with the reader's rights: the views of ``reporting``.

    ``leaves_out_cells``: without the cells of a front that do not answer now, where the settings
    say so; it is written to standard error, and the command ends with exit code 3. Postgres shows
    ``program`` as its application. ``cancelled``: ends the wait for an embedded server. The other
    arguments are those of :class:`DatabaseReader`.
    """
    from accounting.ops import servers
    from accounting.reporting.reader import DatabaseReader

    with (
        servers.database_url(settings, servers.READER_ROLE, cancelled=cancelled) as url,
        closing(
            DatabaseReader(
                url,
                application_name=program,
                reload_url=lambda: servers.configured_database_url(settings) or url,
                idle_connections=idle_connections,
                statement_seconds=statement_seconds,
                takes_role=takes_role,
                leaves_out_cells=settings.cells_away == "leave_out",
            )
        ) as reader,
    ):
        chosen = reader.leaving_out() if leaves_out_cells else reader
        note_without_cells(chosen.without_cells)
        yield chosen
