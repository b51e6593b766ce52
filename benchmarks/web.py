"""What each page and each answer of the API costs, with ten million sessions behind it.

``serve`` runs as its users start it, reading as the reader. For each route: CPU time of the server
and of Postgres, wall time, and the size of the answer; of a page the size of all that a browser
loads with it. The limit is what Postgres takes for the bare queries, run again by psycopg alone.
"""

import gzip
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urljoin

import psycopg

from accounting.reporting.reader import DatabaseReader
from accounting.web.app import create_app
from benchmarks.figures import Figure, Rounds
from benchmarks.measure import cpu_seconds, log_progress, resident_bytes
from benchmarks.scale import Scale
from benchmarks.web_books import LARGEST_REALM, web_books
from benchmarks.web_routes import DEEP, PAGES, route_names, route_paths
from tests.support.asgi import request
from tests.support.books import READER
from tests.support.command import environment
from tests.support.servers import ADDRESS, PostgresServer, free_port, wait_until
from tests.support.service import ROOT

MAX_CPU_MS: Final = 100.0
MAX_KILOBYTES: Final = 150.0
MAX_MEGABYTES: Final = 90.0
START_SECONDS: Final = 60
DEEP_PAGES: Final = 5
GZIP_MAGIC: Final = b"\x1f\x8b"
ASSETS: Final = re.compile(r'<(?:link|script|img)\b[^>]*?(?:href|src)="([^"]+)"')
NEXT_IN_JSON: Final = re.compile(r'"next": "([^"]+)"')
NEXT_IN_PAGE: Final = re.compile(r'<a rel="next" href="([^"]+)"')
BARE: Final = "bare queries"
IN_ALL: Final = "CPU in all"
COSTS: Final = (BARE, "Postgres", "server", "wall", IN_ALL)
"""CPU of Postgres for the bare queries, of Postgres and of the server for the route; wall; CPU."""


def run(server: PostgresServer, scale: Scale) -> list[Figure]:
    with web_books(server, scale) as (postgres, database):
        names = route_names(postgres.url(database=database), LARGEST_REALM)
        url = postgres.url(READER, database)
        with running_serve(url) as web:
            sizes = Rounds("web")
            sizes.add("memory of serve, at the start", web.megabytes(), "MB", target=MAX_MEGABYTES)
            costs = {name: Rounds(f"routes, {name}") for name in COSTS}
            routes = _routes(web, names)
            bare = BareQueries(url)
            for name, path in routes.items():
                log_progress(f"web: {name}")
                web.get(path)
                bare.record(path)
                for _ in range(scale.rounds):
                    _measure(web, postgres.pid, name, path, bare, scale.web_requests, costs)
                if name in PAGES:
                    kilobytes = web.size_with_assets(path) / 1e3
                    sizes.add(f"{name}, with all it loads", kilobytes, "kB", target=MAX_KILOBYTES)
                else:
                    sizes.add(f"{name}, the answer", len(web.get(path)) / 1e3, "kB")
            bare.close()
            sizes.add("memory of serve, at the end", web.megabytes(), "MB", target=MAX_MEGABYTES)
    measured = [figure for rounds in costs.values() for figure in rounds.figures()]
    worst = max(
        (figure for figure in measured if figure.part == f"routes, {IN_ALL}"),
        key=lambda figure: figure.median,
    )
    sizes.add(f"CPU of the worst route: {worst.name}", worst.median, "ms", target=MAX_CPU_MS)
    return [*sizes.figures(), *measured]


def _measure(
    web: "Serve",
    postgres_pid: int,
    name: str,
    path: str,
    bare: "BareQueries",
    requests: int,
    costs: Mapping[str, Rounds],
) -> None:
    """Add the cost of one of so many requests, in milliseconds."""
    before = cpu_seconds(postgres_pid, tree=True)
    for _ in range(requests):
        bare.run()
    after_bare, server = cpu_seconds(postgres_pid, tree=True), web.cpu_seconds()
    began = time.perf_counter()
    for _ in range(requests):
        web.get(path)
    wall = time.perf_counter() - began
    postgres = cpu_seconds(postgres_pid, tree=True) - after_bare
    server = web.cpu_seconds() - server
    values = (after_bare - before, postgres, server, wall, postgres + server)
    for cost, value in zip(COSTS, values, strict=True):
        costs[cost].add(name, value * 1e3 / requests, "ms")


def _routes(web: "Serve", names: Mapping[str, str]) -> dict[str, str]:
    """The paths of all routes by name; of deep ones where their list goes on."""
    routes = route_paths(names)
    for name, path in routes.items():
        if DEEP in name and "after=" not in path:
            for _ in range(DEEP_PAGES):
                routes[name] = _next(web.text(routes[name]), path) or routes[name]
    return routes


def _next(text: str, path: str) -> str | None:
    """The path of the next page of a list."""
    if match := NEXT_IN_PAGE.search(text):
        return match[1].replace("&amp;", "&")
    if match := NEXT_IN_JSON.search(text):
        return f"{re.sub('&cursor=[^&]*', '', path)}&cursor={match[1]}"
    return None


@dataclass(slots=True)
class Serve:
    """The process ``serve``."""

    process: subprocess.Popen[bytes]
    address: str

    def get(self, path: str) -> bytes:
        """The body of an answer with status 200, as it is transferred to a browser."""
        request = urllib.request.Request(  # noqa: S310
            urljoin(self.address, path), headers={"Accept-Encoding": "gzip"}
        )
        with urllib.request.urlopen(request) as answer:  # noqa: S310
            body: bytes = answer.read()
        return body

    def text(self, path: str) -> str:
        body = self.get(path)
        return (gzip.decompress(body) if body.startswith(GZIP_MAGIC) else body).decode()

    def size_with_assets(self, path: str) -> int:
        """The bytes of a page and of everything that it loads, as transferred."""
        assets = {urljoin(path, asset) for asset in ASSETS.findall(self.text(path))}
        return sum(len(self.get(address)) for address in (path, *assets))

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.process.pid)

    def megabytes(self) -> float:
        return resident_bytes(self.process.pid) / 1e6


@contextmanager
def running_serve(url: str) -> Iterator[Serve]:
    """Run ``serve`` on a free port, with an answer to the first request."""
    address = f"{ADDRESS}:{free_port()}"
    process = subprocess.Popen(
        [sys.executable, "-m", "accounting", "serve", "--listen", address],
        cwd=ROOT,
        env=environment({"database_url": url}),
    )
    try:
        web = Serve(process, f"http://{address}/")
        wait_until(lambda: _answers(web), START_SECONDS, "serve does not answer")
        yield web
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _answers(web: Serve) -> bool:
    assert web.process.poll() is None, "serve has ended"
    try:
        web.get("/static/icon.svg")
    except urllib.error.URLError:
        return False
    return True


@dataclass(slots=True)
class BareQueries:
    """The queries of one request, and a connection on which they are run again."""

    url: str
    queries: list[tuple[Any, Any]] = field(default_factory=list)
    connection: psycopg.Connection = field(init=False)

    def __post_init__(self) -> None:
        self.connection = psycopg.connect(self.url, prepare_threshold=None)

    def record(self, path: str) -> None:
        """Answer a request in this process, and note its queries."""
        self.queries = []
        reader = RecordingReader(self.url, self.queries)
        request(create_app(reader), path)
        reader.close()

    def run(self) -> None:
        """Run the queries and fetch their rows."""
        for query, values in self.queries:
            self.connection.execute(query, values).fetchall()
        self.connection.rollback()

    def close(self) -> None:
        self.connection.close()


class RecordingReader(DatabaseReader):
    """Notes the queries on the views, with their parameters."""

    def __init__(self, url: str, queries: list[tuple[Any, Any]]) -> None:
        super().__init__(url)
        self._queries = queries

    @contextmanager
    def transaction(
        self, *, is_snapshot: bool = False, commits: bool = False
    ) -> Iterator[psycopg.Connection]:
        queries = self._queries

        class RecordingCursor(psycopg.ServerCursor[Any]):
            def execute(self, query: Any, params: Any = None, **rest: Any) -> Any:
                queries.append((query, params))
                return super().execute(query, params, **rest)

        with super().transaction(is_snapshot=is_snapshot, commits=commits) as connection:
            connection.server_cursor_factory = RecordingCursor
            yield connection
