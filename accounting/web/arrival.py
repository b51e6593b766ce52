"""Where a request comes from: the client's address, the scheme and the host that it was sent to.

Behind a proxy these are in X-Forwarded-For, -Proto and -Host, which anybody can send. They count
only if the request comes from the address of a proxy that the settings name. Most proxies that are
not named show themselves: see :func:`seems_forwarded`.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

UNIX: Final = "unix"
"""What the client of a Unix socket is called, and what names it as a proxy."""
FORWARDING_HEADERS: Final = frozenset(
    {
        "forwarded",
        "via",
        "cdn-loop",
        "cf-connecting-ip",
        "true-client-ip",
        "x-client-ip",
        "x-cluster-client-ip",
        "x-envoy-external-address",
        "x-original-forwarded-for",
        "x-original-host",
        "x-real-ip",
    }
)
_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?)(?::[0-9]{1,5})?")
_PORT: Final = re.compile(r"(?<=[\]0-9]):[0-9]{1,5}$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxies:
    """The proxies that are believed: their networks, and whether clients of a Unix socket are."""

    networks: tuple[Network, ...] = ()
    unix: bool = False

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Proxies":
        """From addresses, networks and ``unix``, as the setting has them."""
        texts = tuple(texts)
        return cls(
            networks=tuple(ip_network(text) for text in texts if text != UNIX), unix=UNIX in texts
        )

    def __bool__(self) -> bool:
        return bool(self.networks) or self.unix

    def include(self, address: Address | None) -> bool:
        """Whether an address is a proxy's; None: a Unix socket."""
        if address is None:
            return self.unix
        return any(address in network for network in self.networks)

    def include_text(self, address: str) -> bool:
        """Whether an address is a proxy's."""
        return (parsed := _address(address)) is not None and self.include(parsed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """``host``: as in the Host header, in lower case."""

    client: str
    scheme: str
    host: str

    @property
    def name(self) -> str:
        """The host without its port; empty for a text that is no host."""
        match = _HOST.fullmatch(self.host)
        return match[1] if match else ""

    @property
    def origin(self) -> str:
        """What a browser calls this server."""
        return f"{self.scheme}://{self.host}"


def arrival_of(scope: Scope, proxies: Proxies) -> Arrival:
    """Where a request comes from, as far as it can be believed."""
    headers = Headers(scope=scope)
    peer = _peer(scope)
    scheme, host = scope["scheme"], headers.get("host", "")
    client = peer
    if proxies.include(peer):
        client = _client(headers.getlist("x-forwarded-for"), peer, proxies)
        last_scheme = _last(headers.getlist("x-forwarded-proto")).lower()
        scheme = last_scheme if last_scheme in {"http", "https"} else scheme
        host = _last(headers.getlist("x-forwarded-host")) or host
    return Arrival(
        client=UNIX if client is None else str(client),
        scheme=scheme,
        host=host.lower(),
    )


def seems_forwarded(scope: Scope, own_names: Collection[str]) -> bool:
    """Whether a request shows that it came through a proxy. ``own_names``: of this server.

    A proxy adds headers, or speaks HTTP/1.0 (nginx unless it is set otherwise), or is known to
    browsers by another name, which they send as Origin and Referer. One that does nothing of it
    can't be seen.
    """
    headers = Headers(scope=scope)
    if scope.get("http_version") == "1.0":
        return True
    if any(name in FORWARDING_HEADERS or name.startswith("x-forwarded-") for name in headers):
        return True
    if headers.get("sec-fetch-site") in {"cross-site", "same-site"}:
        return False  # a link on a page of another site, such as a wiki
    pages = [*headers.getlist("origin"), *headers.getlist("referer")]
    return any(page != "null" and _host_of_url(page) not in own_names for page in pages)


def _host_of_url(url: str) -> str:
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return ""
    return f"[{host}]" if ":" in host else host


def server_address(scope: Scope) -> Address | None:
    """The address of this machine at which a request arrived; None for a Unix socket."""
    host, port = scope.get("server") or ("", None)
    return None if port is None else _address(host)


def is_address(name: str, address: Address | None) -> bool:
    """Whether a host, without its port, is this very address."""
    return address is not None and _address(name.strip("[]")) == address


def network_of(client: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 network of an IPv6 address."""
    address = _address(client)
    if isinstance(address, IPv6Address):
        return str(IPv6Address(int(address) >> 64 << 64))
    return client if address is None else str(address)


def _peer(scope: Scope) -> Address | None:
    client = scope.get("client")
    return None if client is None else _address(client[0])


def _address(text: str) -> Address | None:
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _client(lines: Sequence[str], peer: Address | None, proxies: Proxies) -> Address | None:
    """The last address that is not a proxy's: those before it are whatever the client wrote."""
    client = peer
    for text in reversed(",".join(lines).split(",")):
        address = _address(_PORT.sub("", text.strip()).strip("[]"))
        if address is None:
            break
        client = address
        if not proxies.include(address):
            break
    return client


def _last(lines: Sequence[str]) -> str:
    return ",".join(lines).rpartition(",")[2].strip()
