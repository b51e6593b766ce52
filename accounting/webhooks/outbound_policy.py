"""Where requests may go: which URLs, and which addresses behind a name.

No error contains a URL's path or query, which may be a secret.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from accounting.errors import UsageError
from accounting.webhooks.message import SendFailed
from accounting.webhooks.target_url import Target, split_url

CONNECT_SECONDS: Final = 10.0
"""For resolving the name, connecting and TLS."""
TOTAL_SECONDS: Final = 15.0
"""For all of a request, to the last byte of its answer."""

_SPECIAL_V4: Final[Sequence[tuple[IPv4Network, str]]] = [
    (IPv4Network(network), kind)
    for network, kind in (
        ("0.0.0.0/8", "reserved"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "private"),  # carriers' NAT
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),  # has the metadata service of most clouds
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "reserved"),
        ("192.88.99.0/24", "reserved"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "private"),
        ("198.51.100.0/24", "reserved"),
        ("203.0.113.0/24", "reserved"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
]
"""IANA's registry. The properties of :mod:`ipaddress` differ between versions of Python."""
_SPECIAL_V6: Final[Sequence[tuple[IPv6Network, str]]] = [
    (IPv6Network(network), kind)
    for network, kind in (
        ("::1/128", "loopback"),
        ("64:ff9b:1::/48", "private"),  # NAT64 of a local network
        ("2001::/23", "reserved"),  # has Teredo
        ("2001:db8::/32", "reserved"),
        ("3fff::/20", "reserved"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "private"),
        ("ff00::/8", "multicast"),
    )
]
_PUBLIC_V6: Final = IPv6Network("2000::/3")
"""The only part of IPv6 whose addresses IANA allots to networks."""
_EMBEDDING_V6: Final[Sequence[tuple[IPv6Network, int]]] = [
    (IPv6Network("::ffff:0:0/96"), 0),  # mapped
    (IPv6Network("64:ff9b::/96"), 0),  # NAT64
    (IPv6Network("2002::/16"), 80),  # 6to4
]
"""Networks whose addresses contain one of IPv4, which they reach; and the bits after it."""

SocketAddress = tuple[str, int] | tuple[str, int, int, int]


def special_kind(address: IPv4Address | IPv6Address) -> str | None:
    """What an address is, in a word, unless it is a public one."""
    if isinstance(address, IPv6Address):
        for network, shift in _EMBEDDING_V6:
            if address in network:
                return special_kind(IPv4Address(int(address) >> shift & 0xFFFFFFFF))
        kinds = (kind for network, kind in _SPECIAL_V6 if address in network)
        return next(kinds, None if address in _PUBLIC_V6 else "reserved")
    return next((kind for network, kind in _SPECIAL_V4 if address in network), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundPolicy:
    """Where requests may go.

    Without ``private_addresses``, to public addresses by https only. With it also to private,
    link-local and loopback addresses, and to those by http too. Never to other special addresses.
    """

    private_addresses: bool = False
    connect_seconds: float = field(default_factory=lambda: CONNECT_SECONDS)
    total_seconds: float = field(default_factory=lambda: TOTAL_SECONDS)

    def check_url(self, url: str) -> None:
        """Check what can be checked of a URL without resolving its name. Raises UsageError."""
        try:
            target = split_url(url)
        except ValueError as error:
            raise UsageError(f"the URL has {error}") from None
        if (refusal := self._target_refusal(target)) is not None:
            raise UsageError(refusal)

    def target(self, url: str) -> Target:
        """The parts of a URL that a request may be sent to, by what is known without its address.

        Raises SendFailed.
        """
        try:
            target = split_url(url)
        except ValueError as error:
            raise SendFailed(f"the URL has {error}", "url") from None
        if (refusal := self._target_refusal(target)) is not None:
            raise SendFailed(refusal, "address")
        return target

    def _target_refusal(self, target: Target) -> str | None:
        if target.scheme == "http" and not self.private_addresses:
            return "http is only for a private address, with --allow-private: expected https"
        try:
            address = ip_address(target.host)
        except ValueError:
            return None
        return self._refusal(address, target.scheme)

    def _refusal(self, address: IPv4Address | IPv6Address, scheme: str) -> str | None:
        """Why no connection is made to an address."""
        match special_kind(address):
            case None:
                if scheme == "https":
                    return None
                return f"http to {address}, a public address: expected https"
            case "private" | "link-local" | "loopback" as kind:
                if self.private_addresses:
                    return None
                return f"{address} is a {kind} address: expected a public one, or --allow-private"
            case kind:
                return f"{address} is a {kind} address: expected a public one"

    def allowed(
        self, target: Target, addresses: Sequence[SocketAddress]
    ) -> Sequence[SocketAddress]:
        """Those addresses of a host to which connections may be made. Raises SendFailed."""
        refusals = {each: self._refusal(ip_address(each[0]), target.scheme) for each in addresses}
        allowed = [each for each in addresses if refusals[each] is None]
        if not allowed:
            refusal = next(iter(refusals.values()), None) or "it has no address"
            raise SendFailed(f"{target.host}: {refusal}", "address")
        return allowed
