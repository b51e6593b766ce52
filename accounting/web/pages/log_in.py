"""Log in with a token, and log out."""

from typing import Any, Final
from urllib.parse import parse_qs

from anyio import fail_after, to_thread
from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from accounting.web.access.log_ins import LogInRefused, LogIns, TooManyFailures
from accounting.web.cookies import clear_cookie, session_cookie, set_cookie
from accounting.web.problems import Problem, too_many_requests
from accounting.web.render import page

router = APIRouter()

BODY_SECONDS: Final = 10.0
"""A client must send its form within this time; the gate limits its size."""
FIELDS: Final = 4


@router.get("/login")
def show_log_in(request: Request, next: str = "/") -> Response:  # noqa: A002  # as the URL has it
    """The form for a token. Where no log-in is asked for there is nothing to do."""
    if request.app.state.is_open:
        return _redirect(request, _own_path(next))
    return page(request, "log_in.html", next=_own_path(next), refused=False)


@router.post("/login")
async def log_in(request: Request) -> Response:
    """Open a browser session, and go on to the page that was asked for."""
    fields = await _form(request)
    target = _own_path(fields.get("next", "/"))
    if request.app.state.is_open:
        return _redirect(request, target)
    token = fields.get("token", "").strip()
    client = request.state.arrival.client
    try:
        session = await to_thread.run_sync(_log_ins(request).open_session, token, client)
    except LogInRefused:
        return page(request, "log_in.html", status=403, next=target, refused=True)
    except TooManyFailures as error:
        raise too_many_requests(error.seconds) from None
    response = _redirect(request, target)
    response.headers.update(set_cookie(request, session.secret, session.seconds))
    return response


@router.post("/logout")
def log_out(request: Request) -> Response:
    """End the browser session."""
    secret = session_cookie(request)
    if secret is not None:
        _log_ins(request).close_session(secret)
    response = _redirect(request, "/login")
    response.headers.update(clear_cookie(request))
    return response


def _log_ins(request: Request) -> LogIns:
    log_ins: LogIns = request.app.state.log_ins
    return log_ins


async def _form(request: Request) -> dict[str, str]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise Problem(415, "Unsupported Media Type", "expected application/x-www-form-urlencoded")
    try:
        with fail_after(BODY_SECONDS):
            body = await request.body()
        fields: dict[str, Any] = parse_qs(body.decode(), max_num_fields=FIELDS)
    except TimeoutError:
        headers = {"Connection": "close"}
        raise Problem(408, "Request Timeout", headers=headers) from None
    except ValueError:
        raise Problem(400, "Bad Request", "expected the fields token and next") from None
    return {name: values[-1] for name, values in fields.items()}


def _own_path(target: str) -> str:
    """A path of this server; the first page instead of anything that a browser takes elsewhere."""
    is_own = (
        target.startswith("/")
        and not target.startswith("//")
        and "\\" not in target
        and target.isascii()
        and target.isprintable()
        and " " not in target
    )
    return target if is_own else "/"


def _redirect(request: Request, path: str) -> Response:
    root = request.scope.get("root_path", "")
    return RedirectResponse(f"{root}{path}", status_code=303)
