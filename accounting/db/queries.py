r"""Load named SQL statements: each package keeps its own in one ``queries.sql``.

A statement starts with ``-- name: ...`` and a sentence that says what it does. Parameters are
written ``:name``. Identifiers that vary, such as a table of days or months, are written
``:"name"``, so that psql can run the file unchanged (``\set name user_usage_daily``).
"""

import re
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sqlalchemy import TextClause

_NAME: Final = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_VARIABLE: Final = re.compile(r':"(\w+)"')
_IDENTIFIER: Final = re.compile(r"[a-z_]+")
_PARAMETER: Final = re.compile(r"(?<![:\w]):(\w+)")


class Queries:
    """The statements of one package."""

    def __init__(self, package: str) -> None:
        self._package = package

    def text(self, name: str, **identifiers: str) -> "TextClause":
        """A statement for SQLAlchemy. Raises KeyError for an unknown name or identifier."""
        return _text(self._package, name, tuple(sorted(identifiers.items())))

    def driver(self, name: str, **identifiers: str) -> bytes:
        """The same in psycopg's parameter style, for psycopg cursors."""
        return _driver(self._package, name, tuple(sorted(identifiers.items())))


@cache
def _statements(package: str) -> dict[str, str]:
    parts = _NAME.split(files(package).joinpath("queries.sql").read_text())
    return {
        name: body.strip().removesuffix(";")
        for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }


@cache
def _text(package: str, name: str, identifiers: tuple[tuple[str, str], ...]) -> "TextClause":
    from sqlalchemy import text  # noqa: PLC0415  # psycopg's readers do without

    return text(_statement(package, name, identifiers))


@cache
def _driver(package: str, name: str, identifiers: tuple[tuple[str, str], ...]) -> bytes:
    statement = _statement(package, name, identifiers).replace("%", "%%")
    return _PARAMETER.sub(r"%(\1)s", statement).encode()


def _statement(package: str, name: str, identifiers: tuple[tuple[str, str], ...]) -> str:
    values = dict(identifiers)
    assert all(_IDENTIFIER.fullmatch(value) for value in values.values()), values
    return _VARIABLE.sub(lambda match: values[match[1]], _statements(package)[name])
