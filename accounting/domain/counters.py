"""The eight counters of usage, in one order everywhere: client side, then peer side."""

from typing import Final

COUNTERS: Final = (
    "received_packets",
    "received_bytes",
    "sent_packets",
    "sent_bytes",
    "peer_received_packets",
    "peer_received_bytes",
    "peer_sent_packets",
    "peer_sent_bytes",
)
"""Column names of the eight counters (docs/session-rules.md#counters): *received* by the server
from the client, *sent* to the client, ``peer_*`` the same towards the peers. Packets and bytes,
counted in whole units."""

PEER_MODULUS: Final = 2**32
"""coturn keeps the peer side's totals in 32 bits: they wrap (docs/coturn.md#peer-total-wraps)."""

LARGEST_PACKET_BYTES: Final = 65_535
"""The largest IP packet. Counters with more bytes per packet can't be real traffic."""
