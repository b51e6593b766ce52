"""What every request passes before a route sees it, and what every answer gets.

In this order: the request is small; the Host header names this server, so that no other site's page
can reach it by a name that resolves here (DNS rebinding); a proxy that nobody named is not served
what a log-in would guard; a form comes from a page of this server; the reader is known.

``request.state.reader`` is the :class:`Reader` from then on, ``request.state.arrival`` is where the
request comes from. An answer that takes long calls ``request.state.identify()`` again for each of
its parts, which raises the problem of a token that was revoked meanwhile.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog
from anyio import to_thread
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from accounting.errors import AccountingError
from accounting.web.access.log_ins import LogInRefused, LogIns, TooManyFailures
from accounting.web.access.reader import NOBODY, Reader
from accounting.web.arrival import (
    Arrival,
    Proxies,
    arrival_of,
    is_address,
    seems_forwarded,
    server_address,
)
from accounting.web.cookies import clear_cookie, session_cookie
from accounting.web.problems import AnswerCut, Problem, problem_of, too_many_requests
from accounting.web.render import answer_problem, log_in_redirect, route_path, route_template

log = structlog.get_logger()

LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "[::1]")
PUBLIC_PATHS: Final = ("/login", "/logout")
PUBLIC_FOLDER: Final = "/static/"
MAX_TARGET_BYTES: Final = 4096
MAX_HEADER_BYTES: Final = 8192
MAX_BODY_BYTES: Final = 4096
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_PROXY_NOT_NAMED: Final = (
    "this request seems to have come through a proxy (by its headers, or as HTTP/1.0), and no "
    "log-in is asked for here: set ACCOUNTING_WEB_PROXIES to the address of the proxy, which turns "
    "the log-in on, or ACCOUNTING_WEB_LOGIN=required"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Who is let in. ``is_open``: a request without a token reads everything."""

    hosts: frozenset[str]
    proxies: Proxies
    log_ins: LogIns
    is_open: bool


class Gate:
    """The outermost ASGI application."""

    def __init__(self, app: ASGIApp, admission: Admission, *, root_path: str) -> None:
        self.app = app
        self._admission = admission
        self._root_path = root_path
        self._has_warned = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", scope["type"]  # the server is set up for nothing else
        arrival = arrival_of(scope, self._admission.proxies)
        self._warn_of_prefix(scope)
        is_head = scope["method"] == "HEAD"
        scope = {
            **_below(self._root_path, scope),
            # The server leaves the body out of the answer to a HEAD, by its own scope.
            "method": "GET" if is_head else scope["method"],
            "root_path": self._root_path,
            "scheme": arrival.scheme,
            "headers": _with_host(scope["headers"], arrival.host),
            "state": {**scope.get("state", {}), "reader": NOBODY, "arrival": arrival},
        }
        answer = _Answer(send, path=route_path(scope), is_head=is_head)
        request = Request(scope)
        try:
            self._check(request, arrival)
            await self._log_in(request, arrival, answer)
        except Problem as problem:
            await _refusal(request, problem)(scope, receive, answer.send)
            return
        try:
            await self.app(scope, receive, answer.send)
        except AnswerCut as cut:
            log.warning("an answer was cut", route=route_template(scope), reason=str(cut))
        finally:
            _audit(scope, arrival, answer)

    def _warn_of_prefix(self, scope: Scope) -> None:
        """Say once that a proxy strips a path of which the settings know nothing."""
        if self._root_path or self._has_warned or not self._admission.proxies:
            return
        prefix = Headers(scope=scope).get("x-forwarded-prefix", "").strip("/")
        if prefix:
            self._has_warned = True
            log.warning(
                "a proxy shows the page below a path, and links lead elsewhere: set "
                "ACCOUNTING_WEB_ROOT_PATH, or --root-path, to that path",
                x_forwarded_prefix=prefix[:100],
            )

    def _check(self, request: Request, arrival: Arrival) -> None:
        """Raise the Problem of a request that no reader may send."""
        scope, headers = request.scope, request.headers
        if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_TARGET_BYTES:
            raise Problem(414, "URI Too Long")
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            raise Problem(431, "Request Header Fields Too Large")
        if "transfer-encoding" in headers:
            raise Problem(411, "Length Required")
        if int(headers.get("content-length", "0")) > MAX_BODY_BYTES:
            raise Problem(413, "Content Too Large")
        if not self._is_known_host(scope, arrival):
            raise Problem(
                421,
                "Misdirected Request",
                "this server is not known by that name: ACCOUNTING_WEB_HOSTS lists its names",
            )
        if self._admission.is_open and seems_forwarded(
            scope, {arrival.name, *self._admission.hosts}
        ):
            raise Problem(403, "Forbidden", _PROXY_NOT_NAMED)
        if scope["method"] not in SAFE_METHODS and not _is_from_here(headers, arrival):
            raise Problem(403, "Forbidden", _other_site(headers, arrival))

    def _is_known_host(self, scope: Scope, arrival: Arrival) -> bool:
        return arrival.name in self._admission.hosts or is_address(
            arrival.name, server_address(scope)
        )

    async def _log_in(self, request: Request, arrival: Arrival, answer: "_Answer") -> None:
        """Find out who asks. Raises the Problem of a request that needs a log-in."""
        log_ins, is_open = self._admission.log_ins, self._admission.is_open
        if is_open:
            request.state.reader = Reader()
            request.state.identify = Reader
        path = route_path(request.scope)
        if path in PUBLIC_PATHS or path.startswith(PUBLIC_FOLDER):
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        cookie = session_cookie(request)
        if scheme.lower() == "bearer":
            identify = partial(_identify, log_ins.reader_of_token, token.strip(), arrival.client)
        elif cookie is not None:
            identify = partial(_identify, log_ins.reader_of_session, cookie, arrival.client)
        elif is_open:
            return
        else:
            raise Problem(401, "Unauthorized", "a token is needed", headers={**_CHALLENGE})
        try:
            request.state.reader = await to_thread.run_sync(identify)
        except Problem as problem:
            request.state.reader = NOBODY
            if problem.status == 401 and cookie is not None:
                answer.extra.update(clear_cookie(request))
            raise
        request.state.identify = identify


def _below(root_path: str, scope: Scope) -> Scope:
    """The scope with the root path in its path, whether a proxy stripped that or not."""
    path = str(scope["path"])
    if not root_path or path == root_path or path.startswith(f"{root_path}/"):
        return scope
    raw_path = root_path.encode() + scope["raw_path"]
    return {**scope, "path": root_path + path, "raw_path": raw_path}


def _with_host(headers: Iterable[tuple[bytes, bytes]], host: str) -> list[tuple[bytes, bytes]]:
    """Headers with the host that the client sees, for the addresses of redirects."""
    return [
        *((name, value) for name, value in headers if name != b"host"),
        (b"host", host.encode()),
    ]


_CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="turn-accounting"'}


def _identify(find: Callable[[str, str], Reader], secret: str, client: str) -> Reader:
    """The reader of a secret. Raises the Problem of one that is not valid."""
    try:
        return find(secret, client)
    except LogInRefused:
        detail = "this token is not valid: it is unknown, expired or revoked"
        raise Problem(401, "Unauthorized", detail, headers={**_CHALLENGE}) from None
    except TooManyFailures as error:
        raise too_many_requests(error.seconds) from None
    except AccountingError as error:
        raise problem_of(error) from error


def _refusal(request: Request, problem: Problem) -> ASGIApp:
    is_page = not route_path(request.scope).startswith("/api/")
    if problem.status == 401 and is_page and request.method == "GET":
        return log_in_redirect(request)
    if problem.status in {411, 413, 414, 431}:  # the rest of the request is not read
        problem.headers["Connection"] = "close"
    return answer_problem(request, problem)


def _is_from_here(headers: Headers, arrival: Arrival) -> bool:
    """Whether a form was sent by a page of this server, or by a program that is no browser."""
    site = headers.get("sec-fetch-site")
    if site is not None and site not in {"same-origin", "none"}:
        return False
    origin = headers.get("origin")
    return origin is None or origin.lower() == arrival.origin


def _other_site(headers: Headers, arrival: Arrival) -> str:
    origin = headers.get("origin")
    if origin is None or headers.get("sec-fetch-site") in {"cross-site", "same-site"}:
        return "the form was sent by a page of another site"
    return (
        f"the form was sent by a page of {origin}, and this server is {arrival.origin}: a proxy in "
        "front of it, which ACCOUNTING_WEB_PROXIES names, must pass on Host (with the port) or "
        "X-Forwarded-Host, and X-Forwarded-Proto"
    )


class _Answer:
    """Adds the headers to an answer, and sees how it ends."""

    def __init__(self, send: Send, *, path: str, is_head: bool) -> None:
        self._send = send
        self._is_static = path.startswith(PUBLIC_FOLDER)
        self._has_version = path.startswith(f"{PUBLIC_FOLDER}vendor/")
        self._is_head = is_head
        self._has_ended = False
        self.extra: dict[str, str] = {}
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", self._cache_control())
            for name, value in self.extra.items():
                headers.append(name, value)
        elif self._is_head:  # nothing is left to send: the route gets a disconnect
            if self._has_ended:
                return
            self._has_ended = True
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    def _cache_control(self) -> str:
        """Books are not stored anywhere. A browser asks whether a file has changed, by its ETag."""
        if not self._is_static or self.status not in {200, 304}:
            return "no-store"
        return "public, max-age=31536000, immutable" if self._has_version else "no-cache"


def _audit(scope: Scope, arrival: Arrival, answer: _Answer) -> None:
    """Log a request that was made with a token: who, the route and the answer, and nothing else.

    The path and the query are the client's, and may have names.
    """
    reader: Reader = scope["state"]["reader"]
    if reader.token:
        log.info(
            "request",
            token=reader.token,
            label=reader.label,
            method=scope["method"],
            route=route_template(scope),
            status=answer.status,
            client=arrival.client,
        )
