"""Every setting of Postgres that a database or a login can have, with awkward legal values."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import psycopg

EXCLUDED: Final[Mapping[str, str]] = {
    "application_name": "every connection names itself",
    "post_auth_delay": "delays each new connection, which is its purpose",
    "local_preload_libraries": "names a library that must exist",
    "session_preload_libraries": "names a library that must exist",
    "default_transaction_read_only": "stops writers on purpose; has its own test",
    "transaction_read_only": "as default_transaction_read_only",
}
_TEXT_VALUES: Final[Mapping[str, Sequence[str]]] = {
    "DateStyle": ("German, DMY", "SQL, MDY", "Postgres, DMY"),
    "TimeZone": ("Asia/Kolkata", "America/Sao_Paulo", "<-11:30>+11:30"),
    "dynamic_library_path": ("$libdir:/nonexistent",),
    "client_encoding": ("LATIN1", "SQL_ASCII", "SJIS"),
    "default_tablespace": ("pg_default",),
    "lc_monetary": ("C.UTF-8",),
    "lc_numeric": ("C.UTF-8",),
    "lc_time": ("C.UTF-8",),
    "log_connections": ("all",),
    "restrict_nonsystem_relation_kind": ("view, foreign-table",),
    "search_path": ("information_schema", "hostile, pg_catalog"),
    "timezone_abbreviations": ("Australia", "India"),
    "wal_consistency_checking": ("all",),
}
"""Texts without an entry here are tried with the empty text."""
_NUMBERS: Final[Mapping[str, Sequence[str]]] = {
    # Shorter ones end the transaction before its first statement, on a busy machine.
    "idle_in_transaction_session_timeout": ("1s",),
    "idle_session_timeout": ("1s",),
    "lock_timeout": ("1s",),
    "statement_timeout": ("1s",),
    "transaction_timeout": ("1s",),
    # More is allocated at the first use of a temporary table.
    "temp_buffers": ("800kB",),
}


class SettingValue(NamedTuple):
    """A setting and a value that is not its own."""

    name: str
    value: str


def awkward_settings(connection: psycopg.Connection[Any]) -> Iterator[list[SettingValue]]:
    """For each setting that is not excluded, its awkward values."""
    rows = connection.execute(
        "SELECT name, vartype, reset_val, min_val, max_val, enumvals FROM pg_settings"
        " WHERE context IN ('user', 'superuser', 'backend', 'superuser-backend') ORDER BY name"
    )
    for name, kind, own, smallest, largest, choices in rows:
        if name in EXCLUDED:
            continue
        values: Sequence[str]
        match kind:
            case "bool":
                values = ("off" if own == "on" else "on",)
            case "enum":
                values = [choices[0], choices[-1], *choices[1:-1]]
            case "integer" | "real":
                values = _NUMBERS.get(name, (smallest, largest))
            case _:
                values = _TEXT_VALUES.get(name, ("",))
        yield [SettingValue(name, value) for value in values if value != own]


def grouped(settings: Sequence[Sequence[SettingValue]], size: int) -> Iterator[list[SettingValue]]:
    """Groups that hold no setting twice, of all values."""
    for turn in range(max(map(len, settings), default=0)):
        values = [choices[turn] for choices in settings if len(choices) > turn]
        for start in range(0, len(values), size):
            yield values[start : start + size]


def set_for_database(
    connection: psycopg.Connection[Any], database: str, settings: Sequence[SettingValue]
) -> list[SettingValue]:
    """Set them for a database; returns those that this server accepts, for a database at all."""
    accepted = []
    for setting in settings:
        try:
            connection.execute(
                psycopg.sql.SQL("ALTER DATABASE {} SET {} TO {}").format(
                    psycopg.sql.Identifier(database),
                    psycopg.sql.Identifier(setting.name),
                    # Lists: each element a text of its own.
                    psycopg.sql.SQL(", ").join(
                        [psycopg.sql.Literal(part) for part in setting.value.split(", ")]
                        if setting.name in {"search_path", "restrict_nonsystem_relation_kind"}
                        else [psycopg.sql.Literal(setting.value)]
                    ),
                )
            )
        except psycopg.Error:
            continue
        accepted.append(setting)
    return accepted
