"""How much of a client's address is stored: all of it, its network, or nothing.

The collector applies the setting to messages before they reach the disk, and the loader applies it
together with the rule of the realm. What a message means never depends on it: it parses to the same
event, or is rejected for the same reason.
"""

import re
from enum import StrEnum
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final

from accounting.domain.coturn_messages import MessageRejected, parse_status, split_status

IPV4_PREFIX: Final = 24
IPV6_PREFIX: Final = 48

_TOKEN: Final = re.compile(rb"[0-9A-Fa-f:.\[\]]+")


class ClientAddresses(StrEnum):
    """What is kept of the address and port of a client, from all of it to nothing."""

    KEEP = "keep"
    NETWORK = "network"
    DROP = "drop"


_STRICTNESS: Final = {choice: place for place, choice in enumerate(ClientAddresses)}


def stricter(*choices: ClientAddresses) -> ClientAddresses:
    """The choice that keeps least."""
    return max(choices, key=_STRICTNESS.__getitem__)


def reduced_address(address: bytes, choice: ClientAddresses) -> bytes | None:
    """What is kept of ``ip:port``: for NETWORK the /24 of an IPv4 address, the /48 of an IPv6 one.

    An IPv4 address that is mapped into IPv6 counts as IPv4, and so does that of a client of 6to4,
    whose /48 would be all of it. None: nothing, also where a network was wanted of what isn't an
    address. A network stays what it is. The database's function ``accounting.reduced_address`` does
    the same.
    """
    if choice is ClientAddresses.KEEP:
        return address
    if choice is ClientAddresses.DROP:
        return None
    text = address.decode("latin-1")
    if text.startswith("["):
        host = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        host = text.partition(":")[0]
    else:
        host = text.partition("/")[0]
    try:
        ip = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(ip, IPv6Address):
        ip = ip.ipv4_mapped or ip.sixtofour or ip
    prefix = IPV4_PREFIX if ip.version == 4 else IPV6_PREFIX
    return str(ip_network((ip, prefix), strict=False)).encode()


def reduced_payload(payload: bytes, choice: ClientAddresses) -> bytes:
    """A payload with no more of the client's address than ``choice`` keeps.

    It parses as before. In a payload that can't be parsed, nobody knows what an address is of:
    ``x`` then replaces each character of whatever looks like one.
    """
    # No address is written without one of these; most payloads are traffic, and have neither.
    if choice is ClientAddresses.KEEP or (b":" not in payload and b"." not in payload):
        return payload
    try:
        parse_status(payload)
    except MessageRejected:
        return _masked(payload)
    shared, client = split_status(payload)
    if client is None:
        return payload
    rest = payload[len(shared) + len(client) :]
    return shared + (reduced_address(client, choice) or b"") + _masked(rest)


def _masked(text: bytes) -> bytes:
    return _TOKEN.sub(_masked_token, text)


def _masked_token(token: re.Match[bytes]) -> bytes:
    """``x`` for each character of an address; of the same length, so that it is as long as before.

    IPv6 addresses have two colons, IPv4 addresses three dots.
    """
    word = token[0]
    return b"x" * len(word) if word.count(b":") > 1 or word.count(b".") > 2 else word
