"""Parses what coturn publishes: a channel and its payload in, a message out.

Only this module contains coturn's terms. It works on bytes, because clients choose usernames and
can put any bytes into them (docs/coturn.md#hostile-usernames).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

MAX_COUNTER: Final = 2**53 - 1
"""9 PB: more than an allocation can relay, and too little for a sum to reach 63 bits."""
LARGE_COUNTER: Final = 2**30 - 1
"""Smaller counters are not checked: the 4096 packets of an interim have a quarter of this, and a
sum reaches 63 bits only after eight thousand million such reports."""
MAX_LIFETIME_SECONDS: Final = 2**31 - 1
MAX_CHANNEL_BYTES: Final = 1024
"""coturn's longest has some 700: a realm of 127 and a username of 512
(docs/coturn.md#hostile-usernames). Parsing a longer one could take time quadratic in its length."""
MAX_ADDRESS_CHARACTERS: Final = 128
"""An IPv6 address with its scope and port has some 70. Keys of tables contain addresses."""


class ReportKind(IntEnum):
    """The kind of a report. The numbers are stored in ``reports``."""

    NEW = 1
    REFRESHED = 2
    DELETED = 3
    INTERIM = 4
    TOTAL = 5


class Side(IntEnum):
    """Which traffic a report counts: between client and server, or between server and peers."""

    CLIENT = 0
    PEER = 1


class MessageRejected(ValueError):
    """A message that coturn would not publish; the text is stored with it as the reason."""


class CoturnMessage(NamedTuple):
    """One message of coturn. A tuple, which is made faster than a dataclass.

    ``lifetime``: in seconds, of new and refreshed. The addresses are ``ip:port`` as published,
    None before coturn 4.6. An interim (a delta) and a total have the four counters.
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
"""(kind, lifetime, transport, server address, client address) in the payload of a status."""

_KINDS: Final = {b"new": ReportKind.NEW, b"refreshed": ReportKind.REFRESHED}
_DELETED: Final[Status] = ReportKind.DELETED, None, None, None, None


@dataclass(frozen=True, slots=True, eq=False)
class TrafficKind:
    """The kind and side of a traffic channel. Its four instances are compared by identity."""

    kind: ReportKind
    side: Side


INTERIM: Final = TrafficKind(ReportKind.INTERIM, Side.CLIENT)
PEER_INTERIM: Final = TrafficKind(ReportKind.INTERIM, Side.PEER)
TOTAL: Final = TrafficKind(ReportKind.TOTAL, Side.CLIENT)
PEER_TOTAL: Final = TrafficKind(ReportKind.TOTAL, Side.PEER)

# The operator chooses the realm, the client the username: the realm ends at the first "/user/".
_CHANNEL_PREFIX = re.compile(rb"turn/(?:realm/(.*?)/)?user/(.*)", re.DOTALL)
_ID_DIGITS: Final = 18
_ID_END: Final = len(b"/allocation/") + _ID_DIGITS
_REMOTE: Final = b", remote="
_TRAFFIC = re.compile(
    rb"rcvp=([0-9]{1,20}), rcvb=([0-9]{1,20}), sentp=([0-9]{1,20}), sentb=([0-9]{1,20})"
)
_ADDRESS: Final = rb"([^,\x00-\x1f\x7f-\xff]{0,%d})" % MAX_ADDRESS_CHARACTERS
_LIFETIME: Final = rb"(new|refreshed) lifetime=([0-9]{1,20})"
_STATUS = re.compile(
    _LIFETIME + rb"(?:, type=%b, local=%b, remote=%b(?:,.*)?)?" % ((_ADDRESS,) * 3), re.DOTALL
)
_IS_ADDRESS: Final = re.compile(_ADDRESS).fullmatch
# The same with any text as an address, to tell a wrong address from another kind of payload.
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
UNKNOWN_SUFFIX: Final = TrafficKind(ReportKind.TOTAL, Side.PEER)
_LIFETIME_OUT_OF_RANGE: Final = "a lifetime is beyond 31 bits"
_NOT_AN_ALLOCATION_CHANNEL: Final = "not a channel of an allocation"


def parse(channel: bytes, payload: bytes) -> CoturnMessage:
    """Parse one published message.

    Any bytes either parse or raise :class:`MessageRejected`. The formats are those observed in
    coturn 4.5 to 4.17 (docs/coturn.md#channels). The loader, which parses millions of messages,
    calls the functions below directly.
    """
    channel_prefix, allocation_id, traffic_kind = split_channel(channel)
    realm, username = parse_channel_prefix(channel_prefix)
    if traffic_kind is None:
        kind, lifetime, transport, server, client = parse_status(payload)
        return CoturnMessage(
            realm,
            username,
            allocation_id,
            kind,
            None,
            lifetime,
            _decoded(transport),
            _decoded(server),
            _decoded(client or None),
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


def _decoded(text: bytes | None) -> str | None:
    return None if text is None else text.decode()


def split_channel(channel: bytes) -> tuple[bytes, int, TrafficKind | None]:
    """Split a channel into prefix (see :func:`parse_channel_prefix`), allocation id and kind.

    The kind is None for a status channel. The search starts at the right, because a username may
    itself look like the rest of a channel.
    """
    channel_prefix, _, rest = channel.rpartition(b"/allocation/")
    digits = rest[:_ID_DIGITS]
    traffic_kind = _TRAFFIC_KINDS.get(rest[_ID_DIGITS:], UNKNOWN_SUFFIX)
    if traffic_kind is UNKNOWN_SUFFIX or not digits.isdigit() or len(channel) > MAX_CHANNEL_BYTES:
        raise MessageRejected(_NOT_AN_ALLOCATION_CHANNEL)
    return channel_prefix, int(digits), traffic_kind


def split_suffix(channel: bytes) -> tuple[bytes, TrafficKind | None]:
    """Split a channel into what the channels of an allocation have in common, and its kind.

    Checks neither: the first part is to be looked up among those of channels that
    :func:`split_channel` accepted, and the second may be UNKNOWN_SUFFIX.
    """
    end = channel.rfind(b"/allocation/") + _ID_END
    return channel[:end], _TRAFFIC_KINDS.get(channel[end:], UNKNOWN_SUFFIX)


def parse_channel_prefix(channel_prefix: bytes) -> tuple[bytes, bytes]:
    """The realm and username in a prefix that :func:`split_channel` returned."""
    names = _CHANNEL_PREFIX.fullmatch(channel_prefix)
    if names is None:
        raise MessageRejected(_NOT_AN_ALLOCATION_CHANNEL)
    return names[1] or b"", names[2]


def check_counter_range(magnitude: int) -> None:
    """Reject counters that no allocation reaches."""
    if magnitude > MAX_COUNTER:
        raise MessageRejected("a traffic counter is beyond 53 bits")


def parse_counters(
    payload: bytes, check: Callable[[int], None] = check_counter_range
) -> tuple[int, int, int, int]:
    """Received packets and bytes, sent packets and bytes, in a traffic payload.

    If one is larger than LARGE_COUNTER, ``check`` is called with the bitwise OR of all four, which
    is at least the largest and less than twice that. It raises :class:`MessageRejected`, or not.
    """
    match = _TRAFFIC.fullmatch(payload)
    if match is None:
        raise MessageRejected("not four traffic counters")
    digits = match.groups()
    received_packets, received_bytes = int(digits[0]), int(digits[1])
    sent_packets, sent_bytes = int(digits[2]), int(digits[3])
    # In binary the limits are all ones, so the OR is above a limit only if a counter is.
    magnitude = received_packets | received_bytes | sent_packets | sent_bytes
    if magnitude > LARGE_COUNTER:
        check(magnitude)
    return received_packets, received_bytes, sent_packets, sent_bytes


def parse_status(payload: bytes) -> Status:
    """Parse the payload of a status."""
    if payload == b"deleted":
        return _DELETED
    status = _STATUS.fullmatch(payload)
    if status is None:
        raise MessageRejected(_status_error(payload))
    kind, digits, transport, server_address, client_address = status.groups()
    lifetime = int(digits)
    if lifetime > MAX_LIFETIME_SECONDS:
        raise MessageRejected(_LIFETIME_OUT_OF_RANGE)
    return _KINDS[kind], lifetime, transport, server_address, client_address


def split_status(payload: bytes) -> tuple[bytes, bytes | None]:
    """Split the payload of a status into what many of them share, and the client's address.

    Of two payloads with the same first part, :func:`parse_status` accepts both or none, and only
    the client's address differs. The address is None where there is none.
    """
    start = payload.find(_REMOTE)
    if start < 0:
        return payload, None
    start += len(_REMOTE)
    client = payload[start:].partition(b",")[0]
    return (payload[:start], client) if _IS_ADDRESS(client) else (payload, None)


def _status_error(payload: bytes) -> str:
    status = _ANY_STATUS.fullmatch(payload)
    if status is None:
        return "not an allocation status"
    if int(status[2]) > MAX_LIFETIME_SECONDS:
        return _LIFETIME_OUT_OF_RANGE
    address = next(text for text in status.groups()[2:] if not _IS_ADDRESS(text))
    if not address.isascii():
        return "an address is not ASCII"
    if len(address) > MAX_ADDRESS_CHARACTERS:
        return "an address is too long"
    return "an address holds control characters"


def parse_status_key(key: bytes) -> tuple[bytes, int] | None:
    """The channel prefix and allocation id in the name of a status key; None for another key.

    A status key has the name of its status channel.
    """
    try:
        channel_prefix, allocation_id, traffic_kind = split_channel(key)
        parse_channel_prefix(channel_prefix)
    except MessageRejected:
        return None
    return (channel_prefix, allocation_id) if traffic_kind is None else None
