"""coturn's messages parse to the expected events; anything else raises one error.

`lines.txt` holds channel, payload and the expected event or reason, a line each.
"""

import ast
import re
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from accounting.domain.coturn_messages import (
    MAX_COUNTER,
    MAX_LIFETIME_SECONDS,
    CoturnMessage,
    MessageRejected,
    ReportKind,
    Side,
    parse,
)
from tests.support.message_lines import MESSAGE_LINES, unescaped

ID: Final = b"000000000000000007"
TRAFFIC: Final = {
    b"traffic": (ReportKind.INTERIM, Side.CLIENT),
    b"traffic/peer": (ReportKind.INTERIM, Side.PEER),
    b"total_traffic": (ReportKind.TOTAL, Side.CLIENT),
    b"total_traffic/peer": (ReportKind.TOTAL, Side.PEER),
}
COUNTS: Final = st.tuples(*[st.integers(0, MAX_COUNTER)] * 4)
REALMS: Final = st.binary(max_size=127).filter(lambda realm: b"/user/" not in realm)
USERS: Final = st.one_of(
    st.binary(max_size=512),
    st.lists(
        st.sampled_from([b"/", b"user", b"allocation", ID, b"status", b"turn/user/", b"traffic"]),
        max_size=28,
    ).map(b"".join),
)


def expected_message(line: str) -> CoturnMessage:
    """The event of a line of the table."""
    kind, _, rest = line.partition(" ")
    fields = dict(re.findall(r"(\w+)=(b\"(?:[^\"\\]|\\.)*\"|'[^']*'|\w+)", rest))
    side = {"client": Side.CLIENT, "peer": Side.PEER, None: None}[fields.pop("side", None)]
    values = {name: ast.literal_eval(value) for name, value in fields.items()}
    return CoturnMessage(kind=ReportKind[kind], side=side, **values)


@pytest.mark.parametrize(("channel", "payload", "outcome"), MESSAGE_LINES)
def test_a_line_parses_to_the_expected_message(channel: str, payload: str, outcome: str) -> None:
    if outcome.startswith("refused: "):
        with pytest.raises(MessageRejected, match=f"^{re.escape(outcome[9:])}$"):
            parse(unescaped(channel), unescaped(payload))
    else:
        assert parse(unescaped(channel), unescaped(payload)) == expected_message(outcome)


PIECES: Final = st.lists(
    st.one_of(
        st.binary(max_size=6),
        st.sampled_from(
            [
                b"turn/",
                b"realm/",
                b"/user/",
                b"user/",
                b"/allocation/",
                ID,
                b"/status",
                b"/traffic",
                b"/total_traffic/peer",
                b"new",
                b"refreshed",
                b" lifetime=",
                b", type=",
                b", local=",
                b", remote=",
                b"rcvp=",
                b", rcvb=",
                b", sentp=",
                b", sentb=",
                b"9" * 20,
                b"deleted",
            ]
        ),
    )
).map(b"".join)
CHANNELS: Final = st.one_of(
    PIECES,
    st.sampled_from([b"status", *TRAFFIC]).map(
        lambda end: b"turn/user/a/allocation/%b/" % ID + end
    ),
)


@given(CHANNELS, PIECES)
@example(b"", b"")
@example(b"turn/realm/" + b"/user/" * 200_000, b"")
@example(b"turn/user/a/allocation/%b/status" % ID, b"new lifetime=1, type=\x7f, local=, remote=")
def test_any_bytes_parse_or_raise_one_error(channel: bytes, payload: bytes) -> None:
    try:
        event = parse(channel, payload)
    except MessageRejected:
        return
    assert all(0 <= count <= MAX_COUNTER for count in event[-4:])
    assert 0 <= event.allocation_id < 10**18
    assert 0 <= (event.lifetime or 0) <= MAX_LIFETIME_SECONDS


@given(REALMS, USERS, st.integers(0, 10**18 - 1), st.sampled_from(list(TRAFFIC)), COUNTS)
def test_traffic_in_coturns_format_is_parsed_back(
    realm: bytes, user: bytes, allocation: int, suffix: bytes, counts: tuple[int, int, int, int]
) -> None:
    prefix = b"turn/realm/%b" % realm if realm else b"turn"
    channel = b"%b/user/%b/allocation/%018d/%b" % (prefix, user, allocation, suffix)
    kind, side = TRAFFIC[suffix]
    event = parse(channel, b"rcvp=%d, rcvb=%d, sentp=%d, sentb=%d" % counts)
    assert event == CoturnMessage(
        realm, user, allocation, kind, side, None, None, None, None, *counts
    )


@given(REALMS, USERS, st.booleans(), st.integers(0, MAX_LIFETIME_SECONDS), st.booleans())
def test_a_status_in_coturns_format_is_parsed_back(
    realm: bytes, user: bytes, new: bool, lifetime: int, addresses: bool
) -> None:
    """With addresses since 4.6.0, without them before."""
    prefix = b"turn/realm/%b" % realm if realm else b"turn"
    channel = b"%b/user/%b/allocation/%b/status" % (prefix, user, ID)
    payload = b"%b lifetime=%d" % (b"new" if new else b"refreshed", lifetime)
    kind = ReportKind.NEW if new else ReportKind.REFRESHED
    said = CoturnMessage(realm, user, 7, kind, lifetime=lifetime)
    if addresses:
        payload += b", type=TCP, local=192.0.2.1:3478, remote=198.51.100.7:5, ssl=NONE, cipher=NONE"
        said = said._replace(
            transport="TCP", server_address="192.0.2.1:3478", client_address="198.51.100.7:5"
        )
    assert parse(channel, payload) == said
