"""A server that asks for a log-in, as the tests of access have it."""

from collections.abc import Mapping
from dataclasses import dataclass

from tests.support.books import Books
from tests.support.web_server import WebServer


class SetClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """``tokens``: one of each kind of SCOPES. ``clock``: of the limit of failed log-ins."""

    books: Books
    web: WebServer
    tokens: Mapping[str, str]
    clock: SetClock
