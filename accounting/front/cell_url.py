"""The URL of a cell: a libpq URL without a password, and what a foreign server takes of it."""

from collections.abc import Mapping
from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from accounting.errors import UsageError

_OF_LOGIN: Final = ("user", "password")
_READER: Final = "-c role=turn_accounting_reader"


def checked_cell_url(url: str) -> str:
    """The URL. Raises UsageError if it has a password, or names no user or no database."""
    try:
        parts = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        parts = {}
    if "password" in parts or "passfile" in parts:
        raise UsageError("the URL of a cell has no password: give it with --password-file")
    if not ({"user", "dbname"} <= parts.keys() and {"host", "hostaddr"} & parts.keys()):
        raise UsageError(f"{url!r} is no URL of a cell: expected postgresql://user@host/database")
    return url


def with_password(url: str, password: str | None) -> str:
    """What to connect with."""
    return url if password is None else make_conninfo(url, password=password)


def server_options(url: str) -> Mapping[str, str]:
    """The options of the foreign server: with the reader's rights, whatever those of the login."""
    parts = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    return {
        "connect_timeout": "10",
        "tcp_user_timeout": "20000",
        "keepalives_idle": "10",  # without them a host that is gone is noticed after two hours
        "keepalives_interval": "5",
        "keepalives_count": "3",
        "application_name": "turn-accounting front",
        **{name: value for name, value in parts.items() if name not in _OF_LOGIN},
        "options": " ".join(filter(None, (parts.get("options"), _READER))),
        "fetch_size": "10000",
        "async_capable": "true",
        "updatable": "false",
    }


def login_options(url: str, password: str | None) -> Mapping[str, str]:
    """The options of the user mapping. Without a password, only a superuser may make it."""
    user = str(conninfo_to_dict(url)["user"])
    if password is None:
        return {"user": user, "password_required": "false"}
    return {"user": user, "password": password}
