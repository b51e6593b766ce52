"""Arguments that the commands for webhooks have in common, and how their texts are read."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TextIO, TypeVar

import typer

from accounting.cli.arguments import MAX_INTEGER
from accounting.domain.calendar import to_micros
from accounting.domain.human_text import visible
from accounting.errors import UsageError
from accounting.plurals import listed
from accounting.reporting.filters import time_span
from accounting.reporting.view_query import instant

if TYPE_CHECKING:
    from accounting.db.engine import Engine

MAX_SPAN_DAYS: Final = 365
MAX_KEY_LENGTH: Final = 500
_SPAN: Final = re.compile(r"([0-9]{1,6})([smhd])")
_UNIT_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

Number = Annotated[
    int, typer.Argument(min=1, max=MAX_INTEGER, help="Its number in `webhook list`.")
]


def parse_types(text: str | None) -> Sequence[str] | None:
    """The types of ``--types``, each once; None: all. Raises UsageError."""
    if text is None:
        return None
    from accounting.feed.outbox import EVENT_TYPES

    types = [word.strip() for word in text.split(",")]
    unknown = [word for word in types if word not in EVENT_TYPES]
    if unknown:
        raise UsageError(
            f"--types {visible(unknown[0])!r}: expected some of {', '.join(EVENT_TYPES)}"
        )
    return list(dict.fromkeys(types))


def parse_since(engine: "Engine", text: str | None, realm: str | None) -> datetime | None:
    """The time of ``--since``, in the zone that the realm has then; in UTC without a realm."""
    from accounting.db.clock import database_now
    from accounting.db.engine import lost_connections
    from accounting.domain.time_zones import time_zone
    from accounting.identities.realm_queries import find_realm, read_rules

    bound, _ = time_span(text, None)
    if bound is None:
        return None
    with lost_connections(), engine.connect() as connection:
        now = database_now(connection)
        moment = instant(bound, now, UTC)
        if realm is None:
            return moment
        rules = read_rules(connection, find_realm(connection, realm))
    return instant(bound, now, time_zone(rules.rule_at(to_micros(moment)).time_zone))


def parse_span(option: str, text: str) -> float:
    """Seconds of a text such as ``90m``. Raises UsageError."""
    match = _SPAN.fullmatch(text)
    seconds = int(match[1]) * _UNIT_SECONDS[match[2]] if match else 0 if text == "0" else -1
    if not 0 <= seconds <= MAX_SPAN_DAYS * 86_400:
        raise UsageError(f"{option} {text!r}: expected a time such as 90m, 24h or 7d, or 0")
    return float(seconds)


_Choice = TypeVar("_Choice", bound=StrEnum)


def parse_choice(option: str, text: str, choices: type[_Choice]) -> _Choice:
    """One of the choices of an option. Raises UsageError."""
    try:
        return choices(text)
    except ValueError:
        raise UsageError(
            f"{option} {visible(text)!r}: expected {listed([choice.value for choice in choices])}"
        ) from None


def read_key(path: str) -> str:
    """The API key in a file. It has no spaces: it goes into a header."""
    with opened(path, "--key-file") as file:
        key = file.read(MAX_KEY_LENGTH + 2).strip()
    if not 1 <= len(key) <= MAX_KEY_LENGTH or not re.fullmatch(r"[!-~]+", key):
        raise UsageError(
            f"--key-file {visible(path)}: expected an API key and nothing else: at most "
            f"{MAX_KEY_LENGTH} printable characters without spaces"
        )
    return key


@contextmanager
def opened(path: str, option: str) -> Iterator[TextIO]:
    """A text file, or stdin. Raises UsageError."""
    try:
        with ExitStack() as stack:
            yield (
                sys.stdin
                if path == "-"
                else stack.enter_context(Path(path).open(encoding="utf-8-sig", newline=""))
            )
    except OSError as error:
        raise UsageError(f"{option} {visible(path)}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{option} {visible(path)}: expected text in UTF-8") from None
