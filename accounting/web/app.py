"""Puts the parts together: routes, the gate before them, and answers to errors."""

from collections.abc import Iterable
from importlib.resources import files
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from accounting.errors import AccountingError
from accounting.reporting.reader import Reader
from accounting.web import api, pages
from accounting.web.gate import Gate
from accounting.web.problems import Problem, problem_of
from accounting.web.render import page, problem_response
from accounting.web.threads import BoundedThreads

log = structlog.get_logger()
API_PREFIX = "/api/v1"


def create_app(database: Reader, *, hosts: Iterable[str], root_path: str = "") -> ASGIApp:
    """The whole application. ``database``: as the reader; the caller closes it."""
    app = FastAPI(
        title="turn-accounting",
        summary="Usage of a TURN server: sessions, usage, statements and the feed.",
        openapi_url=None,  # the API has its own, which reads the views
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
        root_path=root_path,
    )
    app.state.database = database
    api.add_routes(app, API_PREFIX)
    pages.add_routes(app)
    app.mount("/static", StaticFiles(directory=str(files("accounting.web") / "static")))
    app.add_exception_handler(Exception, _answer_error)
    for kind in (Problem, AccountingError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _answer_error)
    return Gate(BoundedThreads(app), hosts=hosts)


async def _answer_error(request: Request, error: Exception) -> Response:
    """A problem document for programs, a page with the same words for people."""
    problem = _problem(error)
    if problem.status >= 500:
        log.error("a request failed", path=request.url.path, exc_info=error)
    if request.url.path.startswith("/api/"):
        return problem_response(problem)
    return page(request, "problem.html", status=problem.status, problem=problem)


def _problem(error: Exception) -> Problem:
    match error:
        case Problem():
            return error
        case AccountingError():
            return problem_of(error)
        case HTTPException():
            return Problem(error.status_code, str(error.detail))
        case RequestValidationError():
            return Problem(400, "Bad Request", "; ".join(map(_explain, error.errors())))
        case _:
            return Problem(500, "Internal Server Error", "the server's log says what is wrong")


def _explain(error: Any) -> str:
    return f"{error['loc'][-1]}: {error['msg']}"
