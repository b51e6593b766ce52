"""What coturn publishes, parsed: one channel and payload in, one event out.

Owns coturn's words and translates them once; nothing downstream knows them. Works on bytes,
because realms and usernames are hostile bytes (docs/coturn.md#hostile-usernames).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

MAX_COUNTER: Final = 2**53 - 1
"""9 PB: beyond what an allocation can relay, and so far below 63 bits that no sum reaches them."""
LARGE_COUNTER: Final = 2**30 - 1
"""An interim speaks of 4096 packets, a quarter of this; it takes eight thousand million reports
that are not larger to reach 63 bits."""
MAX_LIFETIME_SECONDS: Final = 2**31 - 1
MAX_CHANNEL_BYTES: Final = 1024
"""coturn's longest has some 700: a realm of 127 and a username of 512
(docs/coturn.md#hostile-usernames). A longer one could cost the parser the square of its length."""
MAX_ADDRESS_CHARACTERS: Final = 128
"""An address of IPv6 with its scope and port has some 70. The tables have addresses in keys."""


class ReportKind(IntEnum):
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


class CoturnMessage(NamedTuple):
    """One message of coturn. A tuple, not a dataclass: a million of them are made in seconds.

    ``lifetime`` in seconds, for new and refreshed. The addresses are ``ip:port`` as published,
    None before coturn 4.6. The four counters are for interim (a delta) and total.
    """

    realm: bytes
    username: bytes
    allocation_id: int
    kind: ReportKind
    side: Side | None = None
    lifetime: int | None = None
    transport: str | None = None
    server_address: str | None = None
    client_address: str | None = None
    received_packets: int = 0
    received_bytes: int = 0
    sent_packets: int = 0
    sent_bytes: int = 0


Status = tuple[ReportKind, int | None, bytes | None, bytes | None, bytes | None]
"""What a payload of a status says: kind, lifetime, transport, server and client address."""

_KINDS: Final = {b"new": ReportKind.NEW, b"refreshed": ReportKind.REFRESHED}
_DELETED: Final[Status] = ReportKind.DELETED, None, None, None, None


@dataclass(frozen=True, slots=True, eq=False)
class TrafficKind:
    """What traffic a channel tells of. There are four: equal is who is the same."""

    kind: ReportKind
    side: Side


INTERIM: Final = TrafficKind(ReportKind.INTERIM, Side.CLIENT)
PEER_INTERIM: Final = TrafficKind(ReportKind.INTERIM, Side.PEER)
TOTAL: Final = TrafficKind(ReportKind.TOTAL, Side.CLIENT)
PEER_TOTAL: Final = TrafficKind(ReportKind.TOTAL, Side.PEER)

# The realm is the server's choice, so it ends at the first "/user/".
_OWNER = re.compile(rb"turn/(?:realm/(.*?)/)?user/(.*)", re.DOTALL)
_ID_DIGITS: Final = 18
_TRAFFIC = re.compile(
    rb"rcvp=([0-9]{1,20}), rcvb=([0-9]{1,20}), sentp=([0-9]{1,20}), sentb=([0-9]{1,20})"
)
_ADDRESS: Final = rb"([^,\x00-\x1f\x7f-\xff]{0,%d})" % MAX_ADDRESS_CHARACTERS
_LIFETIME: Final = rb"(new|refreshed) lifetime=([0-9]{1,20})"
_STATUS = re.compile(
    _LIFETIME + rb"(?:, type=%b, local=%b, remote=%b(?:,.*)?)?" % ((_ADDRESS,) * 3), re.DOTALL
)
_IS_ADDRESS: Final = re.compile(_ADDRESS).fullmatch
# The same with anything for an address: what is neither is no status at all.
_ANY_STATUS = re.compile(
    _LIFETIME + rb"(?:, type=([^,]*), local=([^,]*), remote=([^,]*)(?:,.*)?)?", re.DOTALL
)
_TRAFFIC_KINDS: Final[dict[bytes, TrafficKind | None]] = {
    b"/status": None,
    b"/traffic": INTERIM,
    b"/traffic/peer": PEER_INTERIM,
    b"/total_traffic": TOTAL,
    b"/total_traffic/peer": PEER_TOTAL,
}
_UNKNOWN_SUFFIX: Final = TrafficKind(ReportKind.TOTAL, Side.PEER)
_LIFETIME_OUT_OF_RANGE: Final = "a lifetime is beyond 31 bits"
_NOT_AN_ALLOCATION_CHANNEL: Final = "not a channel of an allocation"


def parse(channel: bytes, payload: bytes) -> CoturnMessage:
    """Parse one published message.

    Any bytes either parse or raise :class:`WireError`, nothing else. Formats as observed in
    coturn 4.5 to 4.17 (docs/coturn.md#channels). It is made of the parts below,
    which where millions are parsed are called one by one.
    """
    channel_prefix, allocation_id, traffic_kind = split_channel(channel)
    realm, username = parse_channel_prefix(channel_prefix)
    if traffic_kind is None:
        kind, lifetime, *said = parse_status(payload)
        transport, server, client = (one if one is None else one.decode() for one in said)
        return CoturnMessage(
            realm, username, allocation_id, kind, None, lifetime, transport, server, client
        )
    counters = parse_counters(payload)
    return CoturnMessage(
        realm,
        username,
        allocation_id,
        traffic_kind.kind,
        traffic_kind.side,
        None,
        None,
        None,
        None,
        *counters,
    )


def split_channel(channel: bytes) -> tuple[bytes, int, TrafficKind | None]:
    """Split a channel into prefix (see :func:`parse_channel_prefix`), allocation id and kind.

    The kind is None for a status channel.

    What comes after the name has one form, so it is looked for from the right: a username may
    itself look like the rest of a channel.
    """
    channel_prefix, _, rest = channel.rpartition(b"/allocation/")
    digits = rest[:_ID_DIGITS]
    traffic_kind = _TRAFFIC_KINDS.get(rest[_ID_DIGITS:], _UNKNOWN_SUFFIX)
    if traffic_kind is _UNKNOWN_SUFFIX or not digits.isdigit() or len(channel) > MAX_CHANNEL_BYTES:
        raise WireError(_NOT_AN_ALLOCATION_CHANNEL)
    return channel_prefix, int(digits), traffic_kind


def parse_channel_prefix(channel_prefix: bytes) -> tuple[bytes, bytes]:
    """Realm and username, out of what :func:`split_channel` found."""
    names = _OWNER.fullmatch(channel_prefix)
    if names is None:
        raise WireError(_NOT_AN_ALLOCATION_CHANNEL)
    return names[1] or b"", names[2]


def check_counter_range(bits: int) -> None:
    """Refuse counters that no allocation reaches."""
    if bits > MAX_COUNTER:
        raise WireError("a traffic counter is beyond 53 bits")


def parse_counters(
    payload: bytes, check: Callable[[int], None] = check_counter_range
) -> tuple[int, int, int, int]:
    """Received packets and bytes, sent packets and bytes, out of a payload of traffic.

    Where one is larger than LARGE_COUNTER, ``allow`` gets all their bits in one number, at least as
    large as the largest and less than twice that, and raises :class:`WireError` to refuse them.
    """
    counts = _TRAFFIC.fullmatch(payload)
    if counts is None:
        raise WireError("not four traffic counters")
    received_packets, received_bytes, sent_packets, sent_bytes = map(int, counts.groups())
    # The limits are all ones: what lies beyond one has a bit that it hasn't.
    bits = received_packets | received_bytes | sent_packets | sent_bytes
    if bits > LARGE_COUNTER:
        check(bits)
    return received_packets, received_bytes, sent_packets, sent_bytes


def parse_status(payload: bytes) -> Status:
    """What a payload of a status says."""
    if payload == b"deleted":
        return _DELETED
    status = _STATUS.fullmatch(payload)
    if status is None:
        raise WireError(_status_error(payload))
    word, digits, transport, server_address, client_address = status.groups()
    lifetime = int(digits)
    if lifetime > MAX_LIFETIME_SECONDS:
        raise WireError(_LIFETIME_OUT_OF_RANGE)
    return _KINDS[word], lifetime, transport, server_address, client_address


def _status_error(payload: bytes) -> str:
    status = _ANY_STATUS.fullmatch(payload)
    if status is None:
        return "not an allocation status"
    if int(status[2]) > MAX_LIFETIME_SECONDS:
        return _LIFETIME_OUT_OF_RANGE
    address = next(one for one in status.groups()[2:] if not _IS_ADDRESS(one))
    if not address.isascii():
        return "an address is not ASCII"
    if len(address) > MAX_ADDRESS_CHARACTERS:
        return "an address is too long"
    return "an address holds control characters"


def parse_status_key(key: bytes) -> tuple[bytes, int] | None:
    """Owner and id of the allocation whose status stands under a Redis key; None for another key.

    Keys have the names of the status channels.
    """
    try:
        channel_prefix, allocation_id, traffic_kind = split_channel(key)
        parse_channel_prefix(channel_prefix)
    except WireError:
        return None
    return (channel_prefix, allocation_id) if traffic_kind is None else None
