"""The real application over HTTP, for tests of the API."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlencode

import uvicorn
from starlette.types import ASGIApp

from accounting.reporting.reader import DatabaseReader
from accounting.web import server
from accounting.web.app import create_app
from tests.support.books import READER, Books
from tests.support.servers import free_port, wait_until


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass(frozen=True, slots=True)
class Site:
    """A running server. ``books``: what it reads."""

    port: int
    books: Books

    def raw(self, path: str, **headers: str) -> Answer:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers.items()), response.read().decode())
        finally:
            connection.close()

    def get(self, route: str, **parameters: object) -> Answer:
        query = f"?{urlencode(parameters)}" if parameters else ""
        return self.raw(f"/api/v1/{route}{query}")

    def items(self, route: str, **parameters: object) -> list[dict[str, Any]]:
        """All items, page by page."""
        items: list[dict[str, Any]] = []
        page = self.page(route, **parameters)
        items += page["items"]
        while page["next"] is not None:
            page = self.page(route, **{**parameters, "cursor": page["next"]})
            items += page["items"]
        return items

    def page(self, route: str, **parameters: object) -> Any:
        answer = self.get(route, **parameters)
        assert answer.status == 200, answer.text
        return answer.json

    def problem(self, route: str, **parameters: object) -> tuple[int, str]:
        """The status and the detail of a problem."""
        answer = self.get(route, **parameters)
        assert answer.headers["content-type"] == "application/problem+json", answer.text
        assert answer.json["status"] == answer.status
        return answer.status, answer.json["detail"]


@contextmanager
def serving(books: Books, *, statement_seconds: int = server.STATEMENT_SECONDS) -> Iterator[Site]:
    """Serve books as ``turn-accounting serve`` does, from a thread."""
    reader = DatabaseReader(
        books.url(READER),
        idle_connections=server.IDLE_CONNECTIONS,
        statement_seconds=statement_seconds,
    )
    app = create_app(reader, hosts=["127.0.0.1"])
    try:
        with running(app) as port:
            yield Site(port, books)
    finally:
        reader.close()


@contextmanager
def running(app: ASGIApp) -> Iterator[int]:
    port = free_port()
    config = uvicorn.Config(
        app, port=port, log_config=None, access_log=False, lifespan="off",
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    web = uvicorn.Server(config)
    thread = threading.Thread(target=web.run, name="web")
    thread.start()
    wait_until(lambda: web.started or not thread.is_alive())
    try:
        yield port
    finally:
        web.should_exit = True
        thread.join()


def busy_connections(books: Books) -> int:
    """How many connections to Postgres a server has in use."""
    [row] = books.query(
        "SELECT count(*) AS busy FROM pg_stat_activity WHERE application_name = 'turn-accounting'"
        " AND usename = 'turn_accounting_reader' AND datname = current_database()"
        " AND state <> 'idle'"
    )
    return int(row["busy"])
