"""The result type of every check."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

MAX_NAMES: Final = 5
"""The most realms that a finding names."""


class Level(StrEnum):
    """The severity. ``ERROR``: usage is lost, or not counted, until the cause is fixed."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check of a component ``observed``, and the ``advice``; empty when all is well.

    No text has a secret or a username.
    """

    level: Level
    component: str
    check: str
    observed: str
    advice: str = ""


def ok(component: str, check: str, observed: str) -> Finding:
    """All is well."""
    return Finding(level=Level.OK, component=component, check=check, observed=observed)


def warning(component: str, check: str, observed: str, advice: str) -> Finding:
    """It works now, but perhaps not well or not for long."""
    return Finding(
        level=Level.WARNING, component=component, check=check, observed=observed, advice=advice
    )


def error(component: str, check: str, observed: str, advice: str) -> Finding:
    """It must be fixed."""
    return Finding(
        level=Level.ERROR, component=component, check=check, observed=observed, advice=advice
    )


def listed_names(realms: Iterable[str]) -> str:
    """The names of some realms, and how many more there are."""
    names = sorted(map(repr, realms))
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def format_bytes(count: float) -> str:
    """A number of bytes with its unit."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} B"
