"""Rows as text for programs: JSON and CSV. All digits of a number, times in RFC 3339 and UTC."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any
from uuid import UUID

from accounting.domain.spreadsheet_text import escape_formulas


def json_object(row: Mapping[str, Any]) -> str:
    """One JSON object in one line."""
    fields = [f"{_json_name(name)}: {json_value(value)}" for name, value in row.items()]
    return "{" + ", ".join(fields) + "}"


_json_name = lru_cache(maxsize=1000)(json.dumps)


def json_value(value: object) -> str:
    """One value of a JSON object."""
    # By exact types first: they are nearly all of a page's values.
    if type(value) is int:
        return str(value)
    if type(value) is str:
        text = json.dumps(value)
        return text.replace("\x7f", "\\u007f") if "\x7f" in text else text
    match value:
        case datetime():
            return f'"{value.astimezone(UTC).isoformat()}"'
        case Decimal():
            return format(value, "f")  # str() may give 1E-6
        case UUID():
            return f'"{value}"'
        case bytes() | memoryview():
            return json.dumps(bytes(value).hex())
        case dict():
            return json_object(value)
        case list() | tuple():
            return "[" + ", ".join(map(json_value, value)) + "]"
        case None | bool() | int() | float():
            return json.dumps(value)
        case _:
            return json_value(str(value))


def csv_line(
    row: Mapping[str, Any], columns: Sequence[str], shown: Callable[[str], str] = str
) -> str:
    """One line of CSV, without its end. Formulas are escaped; ``shown`` is applied to texts."""
    return ",".join([_csv(row[name], shown) for name in columns])


def _csv(value: object, shown: Callable[[str], str]) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case Decimal():
            return format(value, "f")
        case datetime():
            return value.astimezone(UTC).isoformat()
        case list():
            return _csv(json_value(value), shown)
        case str():
            text = shown(escape_formulas(value))
            is_plain = text and text.strip() == text and not any(char in text for char in ',"\r\n')
            return text if is_plain else '"' + text.replace('"', '""') + '"'
        case _:
            return str(value)
