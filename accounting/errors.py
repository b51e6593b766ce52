"""The errors that this package raises on purpose: one base class, and one class per reaction."""

import difflib
import shlex
from collections.abc import Collection
from datetime import date, datetime
from typing import Final

SIMILARITY: Final = 0.85
"""A misspelled name is this similar to the right one; ``example.com`` is not to ``example.org``."""
USER_SIMILARITY: Final = 0.75
"""Of users, whose names are shorter: ``alise`` is similar to ``alice``."""
SUGGESTED_NAMES: Final = 3
LISTED_NAMES: Final = 5


class AccountingError(Exception):
    """Base of every error raised on purpose. Its text is one line for the operator. Exit code 1."""


class ConfigurationError(AccountingError):
    """A setting is wrong or missing; the text names it and what was expected. Exit code 2."""


class UsageError(AccountingError):
    """A command was called wrongly (an unknown realm, a bad date). Exit code 2."""


class SourceConflict(ConfigurationError):
    """Two source names are used for one Redis, or one name for two. Exit code 2.

    ``source_id`` is the source that keeps the history, or the name. ``loses_messages``: nobody
    captures what the refused collector saw. The server is as text, from
    :class:`~accounting.domain.server_identity.ServerIdentity`.
    """

    def __init__(
        self, text: str, *, source_id: int, server: str = "", loses_messages: bool = False
    ) -> None:
        super().__init__(text)
        self.source_id = source_id
        self.server = server
        self.loses_messages = loses_messages


class NotAllowed(ConfigurationError):
    """The database denies this user a right; the text names the role that has it. Exit code 2."""


class LoginRefused(ConfigurationError):
    """A server refuses the login, or has no such database. A retry can't help. Exit code 2."""


class NotYet(AccountingError):
    """The requested data is not complete yet, but will be. Exit code 3."""


class LockHeld(NotYet):
    """Another session holds the lock of a job, so nothing was done; the text says which one."""


class SpoolError(AccountingError):
    """The spool can't be written or read: disk full, file damaged, or of another source."""


class SpoolDiskError(SpoolError):
    """The disk refuses a write to the spool: full, over quota, or failing."""


class DamagedChunk(SpoolError):
    """Messages in the spool are not what was written. Retry after a gap was recorded for them.

    ``number`` is that of their chunk.
    """

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.number = number


class ServerError(AccountingError):
    """An embedded server did not start or stop; the text holds the end of its log."""


class LeaseHeld(AccountingError):
    """Another collector holds the lease of this source. Retry: leases expire.

    ``suspected``: what is wrong if this collector goes on to see another Redis than that one.
    ``renewed_at``: when the holder renewed it.
    """

    def __init__(
        self,
        text: str,
        suspected: SourceConflict | None = None,
        renewed_at: datetime | None = None,
    ) -> None:
        super().__init__(text)
        self.suspected = suspected
        self.renewed_at = renewed_at


class SpoolLacksMessages(LeaseHeld):
    """The spool lacks messages after the loaded position. Retry: its collector may go back."""


class StopRequested(AccountingError):
    """A stop signal came while something was awaited. Exit code 0, as at any other time."""


class ConnectionLost(AccountingError):
    """A server can't be reached or closed the connection. Retry for ever, with backoff."""


class CellAway(ConnectionLost):
    """A cell does not answer its front. ``cell``: its name; None where the error has none."""

    def __init__(self, cell: str | None, reason: str) -> None:
        name = "a cell" if cell is None else f"cell '{cell}'"
        super().__init__(f"{name} does not answer: {reason}")
        self.cell = cell
        self.reason = reason


def without_cells_text(cells: Collection[str]) -> str:
    """What an answer lacks that leaves cells of a front out."""
    named = ", ".join(f"'{cell}'" for cell in cells)
    return (
        f"without cell {named}, which does not answer"
        if len(cells) == 1
        else f"without cells {named}, which do not answer"
    )


def unknown_name(kind: str, name: str, known: Collection[str]) -> UsageError:
    """The error for an unknown realm, source, ...: suggests a similar name, or lists some."""
    return UsageError(f"no {kind} '{name}' is known: {nearest_names(name, known)}")


def nearest_names(name: str, known: Collection[str]) -> str:
    """A question after the names that are similar to this one, else a list of some."""
    if suggestion := _suggestion(name, known, SIMILARITY):
        return suggestion
    listed = sorted(known)[:LISTED_NAMES]
    rest = len(known) - len(listed)
    names = ", ".join(f"'{known_name}'" for known_name in listed) or "none yet"
    more = f" and {rest} more" if rest else ""
    return f"known are {names}{more}"


def unknown_user(realm: str | None, name: str, known: Collection[str]) -> UsageError:
    """The error for an unknown user, of a realm or of all: suggests similar names of ``known``."""
    where = "" if realm is None else f" in realm '{realm}'"
    suggestion = _suggestion(name, known, USER_SIMILARITY)
    return UsageError(f"no user '{name}' is known{where}{suggestion and f': {suggestion}'}")


def unknown_period(realm: str | None, period: date, known: Collection[date]) -> UsageError:
    """The error for an unknown period, of a realm or of all: names the nearest ones."""
    nearest = sorted(sorted(known, key=lambda day: abs(day - period))[:SUGGESTED_NAMES])
    names = (
        f"the nearest begin on {', '.join(map(str, nearest))}"
        if nearest
        else "there is none yet; `turn-accounting job run close` makes those that have usage"
    )
    owner = "no realm has a" if realm is None else f"realm '{realm}' has no"
    return UsageError(f"{owner} period that begins on {period}: {names}")


def not_closed(realm: str, period: date, waits: str, next_step: str) -> NotYet:
    """The error for a period that is not closed. ``waits``: from domain.periods.describe_wait()."""
    return NotYet(
        f"period {period} of realm '{realm}' is not closed yet: it waits for {waits}; {next_step}"
    )


def statement_command(realm: str, period: date) -> str:
    """The command that shows a closed period."""
    return f"turn-accounting statement {shlex.quote(realm)} {period}"


def preview_command(realm: str, period: date) -> str:
    """The command that shows a period before it is closed."""
    return f"{statement_command(realm, period)} --preview"


def _suggestion(name: str, known: Collection[str], similarity: float) -> str:
    by_folded: dict[str, list[str]] = {}
    for known_name in sorted(known):
        by_folded.setdefault(known_name.casefold(), []).append(known_name)
    folded = difflib.get_close_matches(
        name.casefold(), by_folded, n=SUGGESTED_NAMES, cutoff=similarity
    )
    similar = [known_name for key in folded for known_name in by_folded[key]][:SUGGESTED_NAMES]
    names = " or ".join(f"'{similar_name}'" for similar_name in similar)
    return f"did you mean {names}?" if names else ""
