"""Errors as problem details (RFC 9457), and as a page for people."""

from dataclasses import dataclass, field
from typing import Final

import structlog
from psycopg.errors import QueryCanceled

from accounting.errors import (
    AccountingError,
    CellAway,
    ConfigurationError,
    ConnectionLost,
    NotYet,
    UsageError,
)

log = structlog.get_logger()

JSON_TYPE: Final = "application/problem+json"


@dataclass(eq=False)  # an exception is not frozen: it gets a traceback
class Problem(Exception):  # RFC 9457 calls it so
    """An answer that is an error. ``title``: of its kind; ``detail``: of this one.

    ``headers``: of the answer.
    """

    status: int
    title: str
    detail: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.title}: {self.detail}"

    def fields(self) -> dict[str, object]:
        """The members of the JSON object."""
        return {
            "type": "about:blank",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }


class AnswerCut(Exception):  # not an error of the program
    """An answer that has begun can't go on: its connection ends before the answer does."""


def not_found(what: str) -> Problem:
    """What is not there, or not for this reader: the answer is the same."""
    return Problem(404, "Not Found", what)


def no_such_address() -> Problem:
    """An address that does not exist, or not for this reader: the answer is the same."""
    return Problem(404, "Not Found", "there is nothing at this address")


def too_many_requests(seconds: int) -> Problem:
    """The answer to a client from which too many log-ins failed."""
    return Problem(
        429,
        "Too Many Requests",
        f"too many log-ins failed: try again in {seconds} s",
        headers={"Retry-After": str(seconds)},
    )


def problem_of(error: AccountingError) -> Problem:
    """The answer to an error that was raised on purpose."""
    match error:
        case UsageError():
            return Problem(400, "Bad Request", str(error))
        case NotYet():
            return Problem(409, "Not Yet", str(error))
        case CellAway():
            log.error("a cell does not answer a request", error=str(error))
            name = "a cell" if error.cell is None else f"cell '{error.cell}'"
            return Problem(
                503,
                "Service Unavailable",
                f"{name} does not answer: the server's log says why",
            )
        case ConnectionLost():
            # Its text may name hosts, paths and roles, which are for the log alone.
            log.error("Postgres does not answer a request", error=str(error))
            return Problem(
                503,
                "Service Unavailable",
                "a query took too long: try again, or ask for less"
                if isinstance(error.__cause__, QueryCanceled)
                else "Postgres can't be reached: the server's log says why",
            )
        case ConfigurationError():
            return Problem(500, "Wrong Configuration", "the server's log says what is wrong")
        case _:
            return Problem(500, "Internal Server Error", "the server's log says what is wrong")
