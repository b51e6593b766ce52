"""Do work for all cells at once, and what fails again for each cell, and then for each realm of it.

What one cell has of one realm may be something that the front can't take: a sum that is out of
range, or a row that a trigger refuses. It must not keep the others from being billed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, OperationalError

from accounting.db.engine import lost_connections
from accounting.db.queries import Queries
from accounting.errors import AccountingError

_QUERIES: Final = Queries("accounting.front.billing")
_MOST_SHOWN: Final = 5

Step = Callable[[Connection, str | None, str | None], int]
"""Work for one cell and one realm, or for all, where they are None; returns how much was done."""


class Failures:
    """What could not be done, and why."""

    def __init__(self) -> None:
        self._messages: list[str] = []

    def add(self, where: str, error: DBAPIError) -> None:
        """Record the error. Raises it if it is not about what was read or written."""
        if isinstance(error, OperationalError):
            raise error
        self._messages.append(f"{where}: {str(error.orig).splitlines()[0]}")

    def run(self, connection: Connection, step: Step) -> int:
        """Do a step, and leave out what fails of it. Returns how much was done.

        Raises ConnectionLost where a cell does not answer.
        """
        try:
            with savepoint(connection):
                return step(connection, None, None)
        except OperationalError:
            raise
        except DBAPIError:
            done = 0
        rows = connection.execute(_QUERIES.text("cells_and_realms")).all()
        for cell in dict.fromkeys(row.cell for row in rows):
            try:
                with savepoint(connection):
                    done += step(connection, cell, None)
                continue
            except OperationalError:
                raise
            except DBAPIError:
                realms = [row.realm for row in rows if row.cell == cell]
            for realm in realms:
                try:
                    with savepoint(connection):
                        done += step(connection, cell, realm)
                except DBAPIError as error:
                    self.add(f"cell '{cell}', realm '{realm}'", error)
        return done

    def raise_any(self) -> None:
        """Raise AccountingError if anything failed."""
        if self._messages:
            shown = self._messages[:_MOST_SHOWN]
            more = len(self._messages) - len(shown)
            raise AccountingError(
                f"not billed: {'; '.join(shown)}{f'; and {more} more' if more else ''}"
            )


@contextmanager
def savepoint(connection: Connection) -> Iterator[None]:
    """A savepoint. Raises ConnectionLost where a cell does not answer; other errors pass."""
    with lost_connections(), connection.begin_nested():
        yield
