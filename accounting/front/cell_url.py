"""The URL of a cell: a libpq URL without a password, and what a foreign server takes of it."""

import re
from collections.abc import Mapping
from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from accounting.errors import UsageError

_OF_LOGIN: Final = ("user", "password")
_READER: Final = "-c role=turn_accounting_reader"
IDLE_SECONDS: Final = 3600
"""An open transaction on the front keeps one in each cell that it read, so dead rows stay there."""
# fmt: off
_ALLOWED: Final = frozenset({
    "application_name", "channel_binding", "connect_timeout", "dbname", "gssencmode",
    "gsslib", "host", "hostaddr", "keepalives", "keepalives_count", "keepalives_idle",
    "keepalives_interval", "krbsrvname", "load_balance_hosts", "options", "port",
    "require_auth", "ssl_max_protocol_version", "ssl_min_protocol_version", "sslcert",
    "sslcrl", "sslcrldir", "sslkey", "sslmode", "sslnegotiation", "sslrootcert", "sslsni",
    "target_session_attrs", "tcp_user_timeout", "user",
})
# fmt: on
"""The options of a URL that both libpq and postgres_fdw take."""
_SECRET: Final = ("password", "passfile", "sslpassword")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


def check_cell_name(name: str) -> None:
    """Raise UsageError for a name that no foreign server of the front can have."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' is no name for a cell: expected at most 40 of a-z, 0-9, '_' and '-', a "
            "letter or a digit first"
        )


def checked_cell_url(url: str) -> str:
    """The URL. Raises UsageError for one that a foreign server can't have, or that has a secret.

    The text of the error has nothing of the URL but the names of options.
    """
    try:
        parts = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        parts = {}
    if "sslpassword" in parts:
        raise UsageError("the URL of a cell has no sslpassword: use a key without one")
    if not parts.keys().isdisjoint(_SECRET):
        raise UsageError("the URL of a cell has no password: give it with --password-file")
    if not ({"user", "dbname"} <= parts.keys() and {"host", "hostaddr"} & parts.keys()):
        raise UsageError("this is no URL of a cell: expected postgresql://user@host/database")
    if others := sorted(parts.keys() - _ALLOWED):
        raise UsageError(
            f"the URL of a cell can't have {', '.join(others)}: a foreign server has no such option"
        )
    return url


def with_password(url: str, password: str | None) -> str:
    """What to connect with."""
    return url if password is None else make_conninfo(url, password=password)


def server_options(url: str) -> Mapping[str, str]:
    """The options of the foreign server: with the reader's rights, whatever those of the login."""
    parts = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    return {
        "connect_timeout": "5",
        "tcp_user_timeout": "20000",
        "keepalives_idle": "10",  # without them a host that is gone is noticed after two hours
        "keepalives_interval": "5",
        "keepalives_count": "3",
        "application_name": "turn-accounting front",
        **{name: value for name, value in parts.items() if name not in _OF_LOGIN},
        "options": " ".join(
            filter(
                None,
                (
                    f"-c idle_in_transaction_session_timeout={IDLE_SECONDS}s",
                    "-c jit=off",  # compiling takes longer than the look whether a cell answers
                    parts.get("options"),
                    _READER,
                ),
            )
        ),
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
