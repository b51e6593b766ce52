"""Finds the reader of a token or of a browser session, and limits how often that may fail.

A secret has 256 random bits, so nobody finds one by trying. The limit protects the log, and the
form of the log-in. It is per client address; and for all addresses together, except for those from
which a log-in succeeded lately. A valid token or session is never limited, so that somebody else at
the same address locks nobody out.
"""

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from psycopg.rows import dict_row

from accounting.db.queries import Queries
from accounting.reporting.reader import DatabaseReader
from accounting.web.access.reader import Reader
from accounting.web.access.secret_texts import SESSION, TOKEN, digest, new_session
from accounting.web.arrival import network_of

log = structlog.get_logger()

CLIENT_FAILURES: Final = 10
CLIENT_SECONDS: Final = 6.0
"""A client may fail so often at once, and once more after so many seconds each time."""
ALL_FAILURES: Final = 300
ALL_SECONDS: Final = 0.2
MOST_CLIENTS: Final = 10_000
"""So many clients are remembered, those that failed last; as many that succeeded."""
_QUERIES: Final = Queries("accounting.web.access")


class LogInRefused(Exception):
    """A secret that is not valid."""


@dataclass
class TooManyFailures(Exception):
    """A log-in of this client fails without another word for so many seconds."""

    seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowserSession:
    """A browser session that was opened: the secret for the cookie, and how long it is valid."""

    secret: str = field(repr=False)
    seconds: int


class LogIns:
    """The log-ins of one server. ``now``: seconds of a clock that is never set."""

    def __init__(
        self, database: DatabaseReader, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._failures = _Failures(now)

    def reader_of_token(self, token: str, client: str) -> Reader:
        """The reader of a token. Raises LogInRefused, TooManyFailures and ConnectionLost."""
        return self._reader("identify", TOKEN, token, client)

    def reader_of_session(self, secret: str, client: str) -> Reader:
        """The reader of a browser session; raises as :meth:`reader_of_token`."""
        return self._reader("identify_session", SESSION, secret, client)

    def open_session(self, token: str, client: str) -> BrowserSession:
        """Open a browser session with a token; raises as :meth:`reader_of_token`."""
        self._failures.check(client)
        secret = new_session()
        seconds: float | None = None
        if TOKEN.fullmatch(token):
            row = self._call("open_session", token=digest(token), session=digest(secret))
            seconds = None if row is None else row["seconds"]
        if seconds is None:
            raise self._refused(client)
        self._failures.succeeded(client)
        return BrowserSession(secret=secret, seconds=int(seconds))

    def close_session(self, secret: str) -> None:
        """End a browser session, if there is one with this secret."""
        if SESSION.fullmatch(secret):
            self._call("close_session", digest=digest(secret))

    def _reader(self, query: str, form: re.Pattern[str], secret: str, client: str) -> Reader:
        row = self._call(query, digest=digest(secret)) if form.fullmatch(secret) else None
        if row is None:
            self._failures.check(client)
            raise self._refused(client)
        self._failures.succeeded(client)
        return Reader(
            token=row["number"], label=row["label"], realm=row["realm"], user_key=row["user_key"]
        )

    def _call(self, query: str, **values: bytes) -> dict[str, Any] | None:
        """Call a function of schema ``access``; its row, if there is one."""
        with (
            self._database.transaction(commits=True) as connection,
            connection.cursor(row_factory=dict_row) as cursor,
        ):
            return cursor.execute(_QUERIES.driver(query), values).fetchone()

    def _refused(self, client: str) -> LogInRefused:
        self._failures.add(client)
        log.warning("log-in refused", client=client)
        return LogInRefused()


@dataclass(slots=True)
class _Bucket:
    """A leaky bucket: it holds ``failures`` at ``at``."""

    failures: float = 0.0
    at: float = 0.0

    def seconds_to_wait(self, now: float, most: int, seconds_each: float) -> float:
        """Drain it up to now; how long until there is room for another failure."""
        self.failures = max(0.0, self.failures - (now - self.at) / seconds_each)
        self.at = now
        return max(0.0, (self.failures - most + 1) * seconds_each)


class _Failures:
    """Failed attempts by client, and in all. Several threads use it."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._all = _Bucket(at=now())
        self._clients: OrderedDict[str, _Bucket] = OrderedDict()
        self._known: OrderedDict[str, None] = OrderedDict()

    def check(self, client: str) -> None:
        """Raise TooManyFailures where the client, or all of them, failed too often lately."""
        key = network_of(client)
        with self._lock:
            now = self._now()
            seconds = 0.0
            if bucket := self._clients.get(key):
                seconds = bucket.seconds_to_wait(now, CLIENT_FAILURES, CLIENT_SECONDS)
            if key not in self._known:
                seconds = max(seconds, self._all.seconds_to_wait(now, ALL_FAILURES, ALL_SECONDS))
        if seconds:
            raise TooManyFailures(int(seconds) + 1)

    def add(self, client: str) -> None:
        """Record a failure."""
        key = network_of(client)
        with self._lock:
            now = self._now()
            bucket = self._clients.pop(key, None) or _Bucket(at=now)
            bucket.seconds_to_wait(now, CLIENT_FAILURES, CLIENT_SECONDS)
            bucket.failures += 1
            self._clients[key] = bucket
            self._all.seconds_to_wait(now, ALL_FAILURES, ALL_SECONDS)
            self._all.failures += 1
            if len(self._clients) > MOST_CLIENTS:
                self._clients.popitem(last=False)

    def succeeded(self, client: str) -> None:
        """Record that a log-in succeeded from this address."""
        key = network_of(client)
        with self._lock:
            self._known.pop(key, None)
            self._known[key] = None
            if len(self._known) > MOST_CLIENTS:
                self._known.popitem(last=False)
