"""What coturn publishes, parsed: one channel and payload in, one event out.

Owns coturn's words and translates them once; nothing downstream knows them. Works on bytes,
because realms and usernames are hostile bytes (COTURN, 7).
"""

import re
from enum import IntEnum
from typing import Final, NamedTuple

MAX_COUNTER: Final = 2**53 - 1
"""9 PB: beyond what an allocation can relay, and so far below 63 bits that no sum reaches them."""
MAX_LIFETIME_SECONDS: Final = 2**31 - 1
MAX_CHANNEL_BYTES: Final = 1024
"""coturn's longest has some 700: a realm of 127 and a username of 512 (COTURN, 7). A longer one
could cost the parser the square of its length."""
MAX_ADDRESS_CHARACTERS: Final = 128
"""An address of IPv6 with its scope and port has some 70. The tables have addresses in keys."""


class Kind(IntEnum):
    """What a report says. The numbers stand in the table ``reports``."""

    NEW = 1
    REFRESHED = 2
    DELETED = 3
    INTERIM = 4
    TOTAL = 5


class Side(IntEnum):
    """Whose traffic a report counts: between client and server, or between server and peers."""

    CLIENT = 0
    PEER = 1


class WireError(ValueError):
    """A message that coturn would not have published; the text is the reason kept with it."""


class Event(NamedTuple):
    """One message of coturn. A tuple, not a dataclass: a million of them are made in seconds.

    ``lifetime`` in seconds, for new and refreshed. The addresses are ``ip:port`` as published,
    None before coturn 4.6. The four counters are for interim (a delta) and total.
    """

    realm: bytes
    username: bytes
    allocation_id: int
    kind: Kind
    side: Side | None = None
    lifetime: int | None = None
    transport: str | None = None
    server_address: str | None = None
    client_address: str | None = None
    received_packets: int = 0
    received_bytes: int = 0
    sent_packets: int = 0
    sent_bytes: int = 0


# The suffix is matched from the right: a username may itself look like the rest of a channel.
# The realm is the server's choice, so it ends at the first "/user/".
_CHANNEL = re.compile(
    rb"turn/(?:realm/(.*?)/)?user/(.*)/allocation/([0-9]{18})/"
    rb"(status|traffic|traffic/peer|total_traffic|total_traffic/peer)",
    re.DOTALL,
)
_TRAFFIC = re.compile(
    rb"rcvp=([0-9]{1,20}), rcvb=([0-9]{1,20}), sentp=([0-9]{1,20}), sentb=([0-9]{1,20})"
)
_STATUS = re.compile(
    rb"(new|refreshed) lifetime=([0-9]{1,20})"
    rb"(?:, type=([^,]*), local=([^,]*), remote=([^,]*)(?:,.*)?)?",
    re.DOTALL,
)
_TRAFFIC_KINDS: Final = {
    b"traffic": (Kind.INTERIM, Side.CLIENT),
    b"traffic/peer": (Kind.INTERIM, Side.PEER),
    b"total_traffic": (Kind.TOTAL, Side.CLIENT),
    b"total_traffic/peer": (Kind.TOTAL, Side.PEER),
}


def parse(channel: bytes, payload: bytes) -> Event:
    """Parse one published message.

    Any bytes either parse or raise :class:`WireError`, nothing else. Formats as observed in
    coturn 4.5 to 4.17 (COTURN, "Channels, keys and payloads").
    """
    address = _CHANNEL.fullmatch(channel) if len(channel) <= MAX_CHANNEL_BYTES else None
    if address is None:
        raise WireError("not a channel of an allocation")
    realm, username, allocation, suffix = address.groups()
    if suffix == b"status":
        return _parse_status(realm or b"", username, int(allocation), payload)
    counts = _TRAFFIC.fullmatch(payload)
    if counts is None:
        raise WireError("not four traffic counters")
    kind, side = _TRAFFIC_KINDS[suffix]
    received_packets, received_bytes, sent_packets, sent_bytes = map(int, counts.groups())
    if max(received_packets, received_bytes, sent_packets, sent_bytes) > MAX_COUNTER:
        raise WireError("a traffic counter is beyond 53 bits")
    return Event(
        realm or b"",
        username,
        int(allocation),
        kind,
        side,
        None,
        None,
        None,
        None,
        received_packets,
        received_bytes,
        sent_packets,
        sent_bytes,
    )


def parse_status_key(key: bytes) -> Event | None:
    """The allocation whose status stands under a Redis key, as an event; None for another key.

    Keys have the names of the status channels. The event is an empty ``deleted``: only whose it is
    counts.
    """
    try:
        event = parse(key, b"deleted")
    except WireError:
        return None
    return event if event.kind is Kind.DELETED else None


def _parse_status(realm: bytes, username: bytes, allocation_id: int, payload: bytes) -> Event:
    if payload == b"deleted":
        return Event(realm, username, allocation_id, Kind.DELETED)
    status = _STATUS.fullmatch(payload)
    if status is None:
        raise WireError("not an allocation status")
    word, lifetime, *addresses = status.groups()
    if int(lifetime) > MAX_LIFETIME_SECONDS:
        raise WireError("a lifetime is beyond 31 bits")
    try:
        transport, server_address, client_address = (
            None if value is None else _printable(value) for value in addresses
        )
    except UnicodeDecodeError:
        raise WireError("an address is not ASCII") from None
    return Event(
        realm,
        username,
        allocation_id,
        Kind.NEW if word == b"new" else Kind.REFRESHED,
        None,
        int(lifetime),
        transport,
        server_address,
        client_address,
    )


def _printable(value: bytes) -> str:
    text = value.decode("ascii")
    if len(text) > MAX_ADDRESS_CHARACTERS:
        raise WireError("an address is too long")
    if not text.isprintable():
        raise WireError("an address holds control characters")
    return text
