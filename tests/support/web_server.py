"""The page and the API over real HTTP: the app in a thread of the test, on a free port.

with serving(url, log_in=True) as web:
    assert web.get("/", token=token).status == 200
"""

import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Final

from accounting.reporting.reader import DatabaseReader
from accounting.web import server
from accounting.web.app import create_app

ADDRESS: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer. ``headers``: by name in lower case; the last where there are several."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebServer:
    """A running server. ``app``: behind the gate, for its routes."""

    port: int
    app: Any

    def get(self, path: str, *, token: str | None = None, **headers: str) -> Answer:
        """GET with a bearer token; an underscore in a header's name is a hyphen."""
        return self.request("GET", path, token=token, headers=_hyphens(headers))

    def request(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        body: str | bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Any request, over a connection of its own."""
        connection = http.client.HTTPConnection(ADDRESS, self.port, timeout=30)
        try:
            sent = dict(headers or {})
            if token is not None:
                sent["Authorization"] = f"Bearer {token}"
            connection.request(method, path, body=body, headers=sent)
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(status=answer.status, headers=names, body=answer.read())
        finally:
            connection.close()

    def post_form(self, path: str, body: str, **headers: str) -> Answer:
        form = {"Content-Type": "application/x-www-form-urlencoded", **_hyphens(headers)}
        return self.request("POST", path, body=body, headers=form)


def _hyphens(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


@contextmanager
def serving(url: str, **options: Any) -> Iterator[WebServer]:
    """Serve the books of a database URL until the block ends. ``options``: of create_app()."""
    stop = threading.Event()
    with (
        closing(DatabaseReader(url, idle_connections=2, takes_role=True)) as database,
        server.listening(ADDRESS, ADDRESS, 0) as listener,
    ):
        gate: Any = create_app(database, **options)
        arguments = (gate, listener, stop, options.get("proxies"))
        thread = threading.Thread(target=server.serve, args=arguments)
        thread.start()
        try:
            yield WebServer(port=listener.getsockname()[1], app=gate.app.app.app)
        finally:
            stop.set()
            thread.join()
