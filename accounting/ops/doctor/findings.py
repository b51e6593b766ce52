"""What an examination finds: the one shape that every check answers in."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is. ``ERROR``: usage is lost, or not counted, until it is mended."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at: ``seen``, and what to do (``advice``, empty when all is well).

    No text holds a secret or a user's name.
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
    """Works, and may not work well or for long."""
    return Finding(
        level=Level.WARNING, component=component, check=check, observed=observed, advice=advice
    )


def error(component: str, check: str, observed: str, advice: str) -> Finding:
    """Must be mended."""
    return Finding(
        level=Level.ERROR, component=component, check=check, observed=observed, advice=advice
    )


def format_bytes(count: float) -> str:
    """Bytes for people."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} B"
