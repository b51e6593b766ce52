"""What commands work with: the settings in force, and the database as writer or reader."""

from collections.abc import Iterator
from contextlib import contextmanager

from accounting.config import Settings, load_settings
from accounting.db.engine import Engine
from accounting.logs import configure_logging
from accounting.ops import servers


def command_settings(**arguments: object) -> Settings:
    """Load the settings; ``arguments`` precede all other sources. Configures the log."""
    settings = load_settings(**arguments)
    configure_logging(settings.log_level, settings.log_format)
    return settings


@contextmanager
def writer_engine(settings: Settings, *, may_create: bool = False) -> Iterator[Engine]:
    """The database with the writer's rights. Raises AccountingError for an older schema.

    ``may_create``: the embedded database, where neither a URL nor that database exists.
    """
    with servers.database(settings, servers.WRITER_ROLE, may_create=may_create) as engine:
        from accounting.db import migrations  # noqa: PLC0415  # readers do not need it

        migrations.require_head(engine)
        yield engine


@contextmanager
def reader_engine(settings: Settings) -> Iterator[Engine]:
    """The database with the reader's rights: the views of ``reporting``."""
    with servers.database(settings, servers.READER_ROLE) as engine:
        yield engine
