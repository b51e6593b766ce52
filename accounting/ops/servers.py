"""The servers of this service: the configured ones, or the embedded ones of the data directory."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from accounting import embedded
from accounting.config import Settings, environment_variable, reload_secret
from accounting.db.revisions import is_at_head
from accounting.errors import ConfigurationError

if TYPE_CHECKING:
    from accounting.db.engine import Engine

WRITER_ROLE: Final = "turn_accounting_writer"
READER_ROLE: Final = "turn_accounting_reader"


@contextmanager
def database(
    settings: Settings,
    role: str | None = None,
    *,
    program: str = "turn-accounting",
    may_create: bool = False,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator["Engine"]:
    """An engine for :func:`database_url`. Postgres shows ``program`` as the application's name."""
    from accounting.db.engine import open_engine  # noqa: PLC0415  # readers do not need it

    with database_url(settings, role, may_create=may_create, cancelled=cancelled) as url:
        engine = open_engine(
            url,
            application_name=program,
            reload_url=lambda: configured_database_url(settings) or url,
        )
        try:
            yield engine
        finally:
            engine.dispose()


@contextmanager
def database_url(
    settings: Settings,
    role: str | None = None,
    *,
    may_create: bool = False,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[str]:
    """The URL, with its password, of the configured database; or of the embedded one as ``role``.

    Attaches to the embedded Postgres of a running ``up``, or starts one until the block ends, and
    migrates it to this version's schema. Raises ConfigurationError where the data directory has
    none, unless this ``may_create`` it; StopRequested when ``cancelled()`` is true while it waits.
    """
    if (configured := configured_database_url(settings)) is not None:
        yield configured
    else:
        check_data_dir(settings.data_dir)
        if not may_create and not embedded.has_postgres(settings.data_dir):
            raise ConfigurationError(
                f"there are no books: {environment_variable('database_url')} is not set, and "
                f"{settings.data_dir} has no database; set it, or "
                f"{environment_variable('data_dir')} to the data directory of `turn-accounting up`"
            )
        with embedded.attach_or_start(settings.data_dir, cancelled=cancelled) as server:
            prepare_embedded_database(server)
            yield server.url(role)


def configured_database_url(settings: Settings) -> str | None:
    """The URL of the configured Postgres, as the file that has it has it now."""
    return reload_secret(settings, "database_url")


def prepare_embedded_database(server: embedded.EmbeddedPostgres) -> None:
    """Migrate the embedded database to this version, and let the roles log in."""
    if is_at_head(server.url()):
        return
    from accounting.db import migrations  # noqa: PLC0415  # readers do not need these
    from accounting.db.engine import open_engine  # noqa: PLC0415
    from accounting.front.cell_views import upgrade  # noqa: PLC0415

    engine = open_engine(server.url())
    try:
        upgrade(engine)
        migrations.allow_role_logins(engine)
    finally:
        engine.dispose()


def check_data_dir(data_dir: Path) -> None:
    """Raise ConfigurationError where this user can't enter the data directory, which may lack."""
    try:
        # The dot takes the right to enter.
        os.stat(f"{data_dir}/.")  # noqa: PTH116  # pathlib drops the dot
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigurationError(
            f"can't enter the data directory {data_dir}: {error.strerror}: set "
            f"{environment_variable('data_dir')}, or run this as the user of the service"
        ) from None


def running_database_url(settings: Settings) -> str | None:
    """The configured Postgres, or the embedded one of a running ``up``; None without either."""
    if (configured := configured_database_url(settings)) is not None:
        return configured
    check_data_dir(settings.data_dir)
    server = embedded.running_postgres(settings.data_dir)
    return None if server is None else server.url(WRITER_ROLE)


def running_redis_url(settings: Settings) -> str | None:
    """The configured Redis, or the embedded Valkey of a running ``up``; None without either."""
    if (configured := reload_secret(settings, "redis_url")) is not None:
        return configured
    check_data_dir(settings.data_dir)
    server = embedded.running_valkey(settings.data_dir)
    return None if server is None else server.url


def turnserver_conf_line(redis_url: str, *, show_password: bool = False) -> str:
    """The line for turnserver.conf that makes coturn publish to this Redis.

    It has a placeholder for the password unless ``show_password``. Where coturn can't use the
    address, the line is a comment that says why.
    """
    parts = urlsplit(redis_url)
    if parts.scheme == "unix":
        return "# coturn speaks TCP only: let Redis listen on a port, and name it in redis-statsdb"
    if parts.scheme.endswith("+sentinel"):
        return "# coturn asks no sentinels: give redis-statsdb an address that follows the master"
    password = parts.password if show_password else "<password>"
    fields = [
        f"ip={parts.hostname or '127.0.0.1'}",
        f"dbname={parts.path.strip('/') or 0}",
        *([f"password={password}"] if parts.password else []),
        f"port={parts.port or 6379}",
        "connect_timeout=30",
    ]
    return f'redis-statsdb="{" ".join(fields)}"'
