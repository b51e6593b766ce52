"""Answers: rows as JSON and CSV, and pages from templates."""

import gzip
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any, Final
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import Scope

from accounting.errors import without_cells_text
from accounting.reporting.row_text import json_object, json_value
from accounting.web import html
from accounting.web.access.reader import NOBODY, Reader
from accounting.web.problems import JSON_TYPE, Problem

API_PREFIX: Final = "/api/v1"
COMPRESSION_LEVEL: Final = 1
"""A sixth of a page is left, in less than a millisecond; higher levels save little more."""
_ACCEPTS_GZIP: Final = re.compile(r"\bgzip\b(?! *; *q=0(\.0*)? *(,|$))")


def json_response(
    text: str, *, status: int = 200, media_type: str = "application/json"
) -> Response:
    """JSON that is already text."""
    return Response(text + "\n", status_code=status, media_type=media_type)


def items_response(
    rows: Iterable[Mapping[str, Any]], cursor: str | None, more: Mapping[str, Any] | None = None
) -> Response:
    """A page of rows, the cursor of the next one, and ``more`` members."""
    items = ",\n".join(map(json_object, rows))
    members = "".join(f', "{name}": {json_value(value)}' for name, value in (more or {}).items())
    return json_response(f'{{"items": [\n{items}\n], "next": {json_value(cursor)}{members}}}')


def problem_response(problem: Problem) -> Response:
    """A problem document."""
    response = json_response(
        json_object(problem.fields()), status=problem.status, media_type=JSON_TYPE
    )
    response.headers.update(problem.headers)
    return response


def answer_problem(request: Request, problem: Problem) -> Response:
    """A problem document for programs, a page with the same words for people."""
    if route_path(request.scope).startswith("/api/"):
        return problem_response(problem)
    response = page(request, "problem.html", status=problem.status, problem=problem)
    response.headers.update(problem.headers)
    return response


def route_path(scope: Scope) -> str:
    """The path of a request below the root path, which the gate has put into each path."""
    return str(scope["path"]).removeprefix(str(scope.get("root_path", ""))) or "/"


def route_template(scope: Scope) -> str:
    """The path of the route that a request went to, for the log: the path itself may have names."""
    route: Any = scope.get("route")
    if route is None:
        return "none"
    prefix = API_PREFIX if route_path(scope).startswith(f"{API_PREFIX}/") else ""
    return f"{prefix}{str(route.path).removeprefix(prefix)}"


def log_in_redirect(request: Request) -> Response:
    """Redirect to the log-in, which leads back to this page."""
    target = route_path(request.scope)
    if request.url.query:
        target += f"?{request.url.query}"
    root = request.scope.get("root_path", "")
    return RedirectResponse(f"{root}/login?next={quote(target, safe='/')}", status_code=303)


@cache
def _templates() -> Environment:
    """Undefined names are errors; everything is escaped."""
    environment = Environment(
        loader=PackageLoader("accounting.web", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["html"] = html
    return environment


def without_cells(scope: Scope) -> Sequence[str]:
    """The cells of a front that are left out of what this request read."""
    books = scope["state"].get("books")
    return () if books is None else books.without_cells


def page(request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
    """A page from a template, which also gets ``request``, ``reader``, ``root`` and ``url``."""
    root = request.scope.get("root_path", "")
    text = (
        _templates()
        .get_template(template)
        .render(
            request=request,
            reader=request.state.reader,
            root=root,
            here=route_path(request.scope),
            url=partial(html.url, root),
            reader_pages=_pages_of(request.state.reader),
            reader_label=_label(request.state.reader),
            without_cells=without_cells(request.scope),
            without_cells_text=without_cells_text,
            **values,
        )
    )
    return _html_response(request, text, status)


def _html_response(request: Request, text: str, status: int) -> Response:
    """HTML, compressed where the client can: tables repeat themselves."""
    body = text.encode()
    headers = {"Vary": "Accept-Encoding"}
    if _ACCEPTS_GZIP.search(request.headers.get("accept-encoding", "")):
        body = gzip.compress(body, COMPRESSION_LEVEL, mtime=0)
        headers["Content-Encoding"] = "gzip"
    return HTMLResponse(body, status_code=status, headers=headers)


def _pages_of(reader: Reader) -> list[tuple[str, str]]:
    """What the navigation offers: addresses and labels."""
    if reader == NOBODY:
        return []
    if reader.user_key is not None:
        return [(f"/user/{reader.user_key}", "Usage"), ("/sessions", "Sessions")]
    pages = [("/sessions", "Sessions"), ("/periods", "Periods"), ("/limits", "Limits")]
    if reader.reads_all:
        pages = [("/realms", "Realms"), *pages, ("/gaps", "Gaps")]
    return [("/", "Overview"), *pages]


def _label(reader: Reader) -> str:
    if reader.user_key is not None:
        return "reads one user"
    if reader.realm is None:
        return "reads all"
    return f"reads realm {html.plain_name(reader.realm)}"
