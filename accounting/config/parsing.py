"""Parses the texts of settings: sizes, addresses and URLs.

A wrong text raises a ValueError that says what was expected, and contains neither the name of the
setting nor a password.
"""

import re
from ipaddress import ip_address, ip_network
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

EXPECTED_DATABASE_URL: Final = "postgresql://user@host:5432/database (or ?host=/socket/directory)"
EXPECTED_REDIS_URL: Final = (
    "redis://host:6379/0, rediss://, valkey://, unix:///path/of/socket, or "
    "redis+sentinel://host:26379,host:26379/service"
)

UNIX_PREFIX: Final = "unix:"
MAX_SOCKET_PATH_BYTES: Final = 107
_HOST: Final = re.compile(r"\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?")
_ROOT_PATH: Final = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")
_BYTES: Final = re.compile(r"(\d+)\s*([KMG]i?B?|B)?", re.IGNORECASE)
_BYTES_FACTOR: Final = {
    "": 1,
    "k": 1000,
    "ki": 2**10,
    "m": 10**6,
    "mi": 2**20,
    "g": 10**9,
    "gi": 2**30,
}


def parse_bytes(value: object) -> object:
    """Parse a number of bytes, such as 1000, 256MiB or 64 kB."""
    if not isinstance(value, str):
        return value
    match = _BYTES.fullmatch(value.strip())
    if match is None:
        raise ValueError("expected a number of bytes, such as 268435456 or 256MiB")
    number, unit = match.groups()
    return int(number) * _BYTES_FACTOR[(unit or "").lower().removesuffix("b")]


def _check_url(url: str, schemes: tuple[str, ...], expected: str) -> None:
    """Check that a text is a URL of these schemes. The error shows only the scheme of it."""
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise ValueError(f"not a URL: expected {expected}")
    if scheme not in schemes:
        shown = f"scheme {scheme!r}" if re.fullmatch(r"[a-z][a-z0-9+]{0,20}", scheme) else "scheme"
        raise ValueError(f"{shown} is not known: expected {expected}")
    try:
        parts = urlsplit(url)
        for host in parts.netloc.rpartition("@")[2].split(","):  # libpq takes several hosts
            _ = urlsplit(f"//{host}").port
    except ValueError:
        raise ValueError(f"its host or port is not valid: expected {expected}") from None
    if "@" in parts.path or parts.fragment or "=" not in (parts.query or "="):
        raise ValueError(
            "a special character in its user or password is not percent-encoded: "
            f"expected {expected}"
        )


def check_database_url(url: str) -> None:
    """Check that a text is a libpq URL."""
    _check_url(url, ("postgresql", "postgres"), EXPECTED_DATABASE_URL)


def normalize_redis_url(url: str) -> str:
    """Check the URL of a Redis; returns it with the schemes that redis-py knows."""
    servers = ("redis", "rediss", "valkey", "valkeys")
    sentinels = tuple(f"{scheme}+sentinel" for scheme in servers)
    _check_url(url, (*servers, "unix", *sentinels), EXPECTED_REDIS_URL)
    if url.startswith("valkey"):  # redis-py has no scheme for it
        url = "redis" + url.removeprefix("valkey")
    parts = urlsplit(url)
    if parts.scheme == "unix":
        if not parts.path.startswith("/"):
            raise ValueError(f"it lacks the path of a socket: expected {EXPECTED_REDIS_URL}")
    elif parts.scheme.endswith("+sentinel"):
        if not re.fullmatch(r"/[^/]+(/\d*)?", parts.path):
            raise ValueError(f"it lacks the name of a service: expected {EXPECTED_REDIS_URL}")
    elif not re.fullmatch(r"/?\d*", parts.path):
        raise ValueError(f"its path is not a database number: expected {EXPECTED_REDIS_URL}")
    return url


def parse_listen_address(value: str) -> tuple[str, int]:
    """The host and port of ``host:port`` or ``[address]:port``; raises ValueError."""
    expected = "expected an address and a port, such as 127.0.0.1:9464 or [::1]:9464"
    try:
        parts = urlsplit(f"//{value}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(expected) from None
    if not host or not port or parts.netloc != value or "@" in value:
        raise ValueError(expected)
    return host, port


def check_web_listen_address(value: str) -> None:
    """Check that a text is ``host:port``, ``[address]:port`` or ``unix:/path``."""
    if value.startswith(UNIX_PREFIX):
        path = value.removeprefix(UNIX_PREFIX)
        if not path.startswith("/") or len(path.encode()) > MAX_SOCKET_PATH_BYTES:
            raise ValueError("expected unix:/path/of/socket, of at most 107 bytes")
    else:
        parse_listen_address(value)


def is_loopback(host: str) -> bool:
    """Whether a host to listen on is reached from this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def split_names(value: object) -> object:
    """Split a text at commas and spaces; in a TOML file a list is one already."""
    if isinstance(value, str):
        return tuple(value.replace(",", " ").split())
    return tuple(value) if isinstance(value, list) else value


def check_proxies(values: tuple[str, ...]) -> None:
    """Check that each is an address, a network, or ``unix``."""
    for value in values:
        try:
            if value != "unix":
                ip_network(value)
        except ValueError:
            raise ValueError(
                f"{value!r} is not an address: expected 10.0.0.1, 10.0.0.0/8, ::1 or unix"
            ) from None


def check_hosts(values: tuple[str, ...]) -> None:
    """Check that each is the name of a host, or an address, without a port."""
    for value in values:
        if not _HOST.fullmatch(value):
            raise ValueError(
                f"{value!r} is not a host: expected names without a port, such as "
                "usage.example.org, or addresses, such as 192.0.2.1 or [2001:db8::1]"
            )


def check_root_path(value: str) -> None:
    """Check that a text is the path below which a proxy shows the pages; empty for none."""
    if value and not _ROOT_PATH.fullmatch(value):
        raise ValueError("expected a path such as /turn: it begins with / and does not end so")


def check_source_name(name: str) -> str:
    """Check the name of a source, and return it."""
    if not 1 <= len(name) <= 63 or not name.isprintable() or "/" in name:
        raise ValueError("expected 1 to 63 printable characters without '/'")
    return name


def mask_url(url: str) -> str:
    """The URL with its passwords replaced by `***`, for logs and terminals."""
    parts = urlsplit(url)
    user, colon, _ = parts.netloc.rpartition("@")[0].partition(":")
    host = parts.netloc.rpartition("@")[2]
    netloc = (f"{user}{':***' if colon else ''}@" if "@" in parts.netloc else "") + host
    query = [
        (name, "***" if "password" in name.lower() else value)
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
    ]
    masked = urlencode(query, safe="*/", quote_via=quote)
    return urlunsplit((parts.scheme, netloc, parts.path, masked, ""))
