"""How the simulated coturn versions differ on the wire.

See docs/coturn.md#channels and docs/coturn.md#traps.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What a coturn release publishes."""

    name: str
    peer_traffic: bool
    """``traffic/peer`` and ``total_traffic/peer`` are published (since 4.5.1.2)."""
    modulus: int
    """The sum of packet counters that causes an interim: of four, before 4.5.1.2 of two."""
    status_addresses: bool
    """A status contains type, local and remote address, ssl and cipher (since 4.6.0)."""
    keepalives: bool
    """``__XXX__`` every five seconds on each connection of the server (up to 4.6.1)."""
    stun_traffic: bool
    """A plain STUN binding publishes traffic under the empty user (before 4.17)."""
    channel_header_in_peer_sent: bool
    """Peer ``sentb`` counts the four bytes of the ChannelData header too (since 4.11.0)."""


_RELEASES: Final = (
    Version(
        name="4.5.0",  # 4.5.0.7 to 4.5.1.1: totals, but no peer side yet
        peer_traffic=False,
        modulus=2048,
        status_addresses=False,
        keepalives=True,
        stun_traffic=True,
        channel_header_in_peer_sent=False,
    ),
    Version(
        name="4.5",  # 4.5.1.2 to 4.5.2
        peer_traffic=True,
        modulus=4096,
        status_addresses=False,
        keepalives=True,
        stun_traffic=True,
        channel_header_in_peer_sent=False,
    ),
    Version(
        name="4.6",  # as 4.6.1
        peer_traffic=True,
        modulus=4096,
        status_addresses=True,
        keepalives=True,
        stun_traffic=True,
        channel_header_in_peer_sent=False,
    ),
    Version(
        name="4.17",  # as 4.17.1
        peer_traffic=True,
        modulus=4096,
        status_addresses=True,
        keepalives=False,
        stun_traffic=False,
        channel_header_in_peer_sent=True,
    ),
)

VERSIONS: Final = {release.name: release for release in _RELEASES}
"""The versions to choose from, by name."""
