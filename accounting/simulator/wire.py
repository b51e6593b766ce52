"""Encodes coturn's commands, channels and payloads, as the recordings show them.

Shares no code with ``accounting.domain.coturn_messages``, which parses them, so that neither hides
an error of the other.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

STATUS_KEYS_PATTERN: Final = b"turn/*/allocation/*/status"
"""The pattern of KEYS when coturn starts; it deletes every key that matches."""

KEEPALIVE: Final = (b"__XXX__", b"__YYY__")
KEEPALIVE_SECONDS: Final = 5
DELETED: Final = b"deleted"


class Command(NamedTuple):
    """A command that a coturn server sends to Redis. A tuple, which is made faster than a class.

    ``at_us``: virtual microseconds since the run began. ``connection``: each thread of each server
    process has its own, numbered over the whole run. ``name`` is lower case, as coturn sends it:
    publish (channel, payload), set (key, value), del (key, ...) and keys (pattern).
    """

    at_us: int
    connection: int
    database: int
    name: bytes
    args: tuple[bytes, ...]


def channel_prefix(realm: bytes, username: bytes, allocation_id: int) -> bytes:
    """The prefix of all channels of an allocation. With an empty realm it has the short form."""
    if realm:
        return b"turn/realm/%b/user/%b/allocation/%018d/" % (realm, username, allocation_id)
    return b"turn/user/%b/allocation/%018d/" % (username, allocation_id)


def traffic_payload(
    received_packets: int, received_bytes: int, sent_packets: int, sent_bytes: int
) -> bytes:
    """The payload of every traffic message, interim or total, client side or peer side."""
    return b"rcvp=%d, rcvb=%d, sentp=%d, sentb=%d" % (
        received_packets,
        received_bytes,
        sent_packets,
        sent_bytes,
    )


def status_addresses(transport: str, server_address: str, client_address: str) -> bytes:
    """The part of a status payload that 4.6.0 added. ``transport``: UDP, TCP or TLS/TCP."""
    ssl, cipher = ("NONE", "NONE")
    if transport.startswith("TLS"):
        ssl, cipher = ("TLSv1.3", "TLS_AES_256_GCM_SHA384")
    return (
        f", type={transport}, local={server_address}, remote={client_address}"
        f", ssl={ssl}, cipher={cipher}"
    ).encode()


def encode_command(name: bytes, args: Sequence[bytes]) -> bytes:
    """A command in RESP."""
    if len(args) == 2:
        first, second = args
        return b"*3\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
            len(name),
            name,
            len(first),
            first,
            len(second),
            second,
        )
    parts = (name, *args)
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in parts)
