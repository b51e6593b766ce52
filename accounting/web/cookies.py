"""The cookie of a browser session: no script reads it, and no other site's page sends it.

Over https its name begins so that the browser takes it from this very host and over https only.
"""

from typing import Final

from starlette.requests import Request

NAME: Final = "turn-accounting"


def _name(request: Request) -> str:
    if request.scope["scheme"] != "https":
        return NAME
    return f"__Secure-{NAME}" if request.scope.get("root_path") else f"__Host-{NAME}"


def session_cookie(request: Request) -> str | None:
    """The secret of the browser session, if the request has one."""
    return request.cookies.get(_name(request))


def set_cookie(request: Request, secret: str, seconds: int) -> dict[str, str]:
    """The header that sets the cookie for so many seconds."""
    attributes = [
        f"{_name(request)}={secret}",
        f"Path={request.scope.get('root_path') or '/'}",
        f"Max-Age={seconds}",
        "HttpOnly",
        "SameSite=Strict",
    ]
    if request.scope["scheme"] == "https":
        attributes.append("Secure")
    return {"Set-Cookie": "; ".join(attributes)}


def clear_cookie(request: Request) -> dict[str, str]:
    """The header that deletes the cookie."""
    return set_cookie(request, "", 0)
