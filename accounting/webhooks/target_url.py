"""The URL of a request, in the parts that a connection needs."""

import re
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Final, Literal
from urllib.parse import urlsplit

EXPECTED_URL: Final = "expected https://host/path, without a user, a password or a fragment"

_URL: Final = re.compile(r"[\x21-\x7e]+")
_LABEL: Final = r"[A-Za-z0-9_-]{1,63}"
_HOST: Final = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")
_BRACKETED: Final = re.compile(r"\[[^\[\]]*\](:\d*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The parts of a URL that a request needs. ``host`` has no brackets; ``path`` has the query."""

    scheme: Literal["http", "https"]
    host: str
    port: int
    path: str
    authority: str
    """As the header ``Host`` has it."""


def names_this_machine(url: str) -> bool:
    """Whether a valid URL itself says that it is for this machine, which its author means then."""
    host = split_url(url).host
    try:
        return host.lower() == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _is_ipv6(host: str) -> bool:
    try:
        return IPv6Address(host).scope_id is None
    except ValueError:
        return False


def split_url(url: str) -> Target:
    """The parts of a URL. Raises ValueError, with what is wrong and nothing of the URL."""
    if not _URL.fullmatch(url) or "\\" in url:
        raise ValueError(f"a space or a character that is not ASCII: {EXPECTED_URL}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(f"its host or port is not valid: {EXPECTED_URL}") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"its scheme is not https: {EXPECTED_URL}")
    if "@" in parts.netloc:
        raise ValueError(f"a user or password in it: {EXPECTED_URL}")
    if "#" in url:
        raise ValueError(f"a fragment in it: {EXPECTED_URL}")
    host = parts.hostname or ""
    has_brackets = "[" in parts.netloc or "]" in parts.netloc
    is_host = _is_ipv6(host) if has_brackets else _HOST.fullmatch(host)
    if has_brackets and not _BRACKETED.fullmatch(parts.netloc):
        is_host = False
    if not is_host or port == 0:
        raise ValueError(f"its host or port is not valid: {EXPECTED_URL}")
    scheme: Literal["http", "https"] = "https" if parts.scheme == "https" else "http"
    return Target(
        scheme=scheme,
        host=host,
        port=port or (443 if scheme == "https" else 80),
        path=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
        authority=parts.netloc,
    )
