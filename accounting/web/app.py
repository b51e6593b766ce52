"""Puts the parts together: routes, the gate before them, and answers to errors."""

import time
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from importlib.resources import files
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from accounting.errors import AccountingError, ConnectionLost
from accounting.installation import version
from accounting.reporting.reader import DatabaseReader
from accounting.web import api, pages
from accounting.web.access.log_ins import LogIns
from accounting.web.api.openapi import WITHOUT_CELLS
from accounting.web.arrival import Proxies
from accounting.web.gate import LOOPBACK_NAMES, Admission, Gate
from accounting.web.problems import Problem, no_such_address, problem_of
from accounting.web.render import API_PREFIX, answer_problem, route_template, without_cells
from accounting.web.threads import BoundedThreads

log = structlog.get_logger()


def create_app(
    database: DatabaseReader,
    *,
    hosts: Iterable[str] = LOOPBACK_NAMES,
    root_path: str = "",
    log_in: bool = False,
    proxies: Proxies | None = None,
    now: Callable[[], float] = time.monotonic,
) -> ASGIApp:
    """The whole application. ``database``: as the reader; the caller closes it.

    ``hosts``: the names of this server, beside the address at which a request arrives. ``log_in``:
    whether a reader needs a token; one that is sent counts in any case. ``now``: the clock of the
    limit of failed log-ins.
    """
    app = FastAPI(
        title="turn-accounting",
        summary="Usage of a TURN server: sessions, usage, statements and the feed.",
        version=version(),
        openapi_url=None,  # the API has its own, which reads the views
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
        servers=[{"url": root_path}] if root_path else None,
    )
    app.state.database = database
    app.state.statement_totals = {}
    app.state.log_ins = LogIns(database, now=now)
    app.state.is_open = not log_in
    api.add_routes(app, API_PREFIX)
    pages.add_routes(app)
    app.mount("/static", StaticFiles(directory=str(files("accounting.web") / "static")))
    app.add_exception_handler(Exception, _answer_error)
    for kind in (Problem, AccountingError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _answer_error)
    admission = Admission(
        hosts=frozenset(hosts),
        proxies=proxies or Proxies(),
        log_ins=app.state.log_ins,
        is_open=not log_in,
    )
    return Gate(BoundedThreads(_NamesMissingCells(app)), admission, root_path=root_path)


class _NamesMissingCells:
    """Gives answers that leave cells of a front out the header that names them."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start" and (cells := without_cells(scope)):
                MutableHeaders(scope=message)[WITHOUT_CELLS] = ", ".join(cells)
            await send(message)

        await self.app(scope, receive, send_named)


async def _answer_error(request: Request, error: Exception) -> Response:
    problem = _problem(error)
    # Not a Problem, such as too many clients, nor what is logged where it becomes one.
    if problem.status >= 500 and not isinstance(error, Problem | ConnectionLost):
        log.error(
            "a request failed",
            route=route_template(request.scope),
            error=str(error),
            exc_info=None if isinstance(error, AccountingError) else error,
        )
    if problem.status == 405:
        allowed = _allowed_methods(problem)
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=allowed)
        problem.headers.update(allowed)
        problem.detail = f"{request.method} is not allowed here: expected {allowed['allow']}"
    return answer_problem(request, problem)


def _allowed_methods(problem: Problem) -> dict[str, str]:
    """The methods of a route; the gate answers HEAD wherever there is GET."""
    allowed = problem.headers.pop("allow", "")
    methods = {name.strip() for name in allowed.split(",") if name.strip()}
    if "GET" in methods:
        methods.add("HEAD")
    return {"allow": ", ".join(sorted({*methods, "OPTIONS"}))}


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _problem(error: Exception) -> Problem:
    match error:
        case Problem():
            return error
        case AccountingError():
            return problem_of(error)
        case HTTPException():
            if error.status_code == 404:
                return no_such_address()
            title = HTTPStatus(error.status_code).phrase
            return Problem(error.status_code, title, headers=_lower(error.headers or {}))
        case RequestValidationError():
            return Problem(400, "Bad Request", "; ".join(map(_explain, error.errors())))
        case _:
            return Problem(500, "Internal Server Error", "the server's log says what is wrong")


def _explain(error: Any) -> str:
    return f"{error['loc'][-1]}: {error['msg']}"
