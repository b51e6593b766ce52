"""A payload parses to the same with less of the client's address in it."""

from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from accounting.domain.client_addresses import (
    ClientAddresses,
    reduced_address,
    reduced_payload,
    stricter,
)
from accounting.domain.coturn_messages import MessageRejected, parse
from tests.support.client_addresses import NETWORKS
from tests.support.message_lines import MESSAGE_LINES, unescaped

KEEP, NETWORK, DROP = ClientAddresses
CHANNEL: Final = b"turn/realm/r/user/u/allocation/000000000000000007/"


def outcome(suffix: bytes, payload: bytes) -> object:
    """The event without its client's address, or the reason why there is none."""
    try:
        return parse(CHANNEL + suffix, payload)._replace(client_address=None)
    except MessageRejected as rejected:
        return str(rejected)


@pytest.mark.parametrize(("address", "network"), NETWORKS.items())
def test_a_network_has_neither_the_host_nor_the_port(address: str, network: str | None) -> None:
    expected = None if network is None else network.encode()
    assert reduced_address(address.encode(), NETWORK) == expected
    assert reduced_address(address.encode(), DROP) is None
    assert reduced_address(address.encode(), KEEP) == address.encode()
    if expected is not None:
        assert reduced_address(expected, NETWORK) == expected


def test_the_stricter_of_two_choices_keeps_less() -> None:
    assert [stricter(KEEP, NETWORK), stricter(DROP, NETWORK), stricter(KEEP)] == [
        NETWORK,
        DROP,
        KEEP,
    ]


PAYLOADS: Final = st.lists(
    st.sampled_from(
        [
            b"new lifetime=600",
            b"refreshed lifetime=2147483648",
            b", type=UDP",
            b", local=192.0.2.1:3478",
            b", local=" + b"1:" * 80,
            b", remote=198.51.100.7:50000",
            b", remote=[2001:db8::2]:50000",
            b", remote=" + b"2001:" * 40,
            b", remote=\xff",
            b", remote=",
            b", ssl=TLSv1.3, cipher=TLS_AES_256_GCM_SHA384",
            b", from=198.51.100.7",
            b"rcvp=1, rcvb=2, sentp=3, sentb=4",
            b"deleted",
            b"\x00",
        ]
    )
    | st.binary(max_size=8),
    max_size=8,
).map(b"".join)


@pytest.mark.parametrize("choice", [NETWORK, DROP])
@given(payload=PAYLOADS)
@example(payload=b"new lifetime=600, type=UDP, local=::1, remote=198.51.100.7:5, x=198.51.100.7:9")
def test_a_payload_parses_as_before_and_has_no_address(
    choice: ClientAddresses, payload: bytes
) -> None:
    reduced = reduced_payload(payload, choice)
    for suffix in (b"status", b"traffic"):
        assert outcome(suffix, reduced) == outcome(suffix, payload)
    for address in (b"198.51.100.7", b"2001:db8::2"):
        assert address not in reduced
    assert reduced_payload(reduced, choice) == reduced
    assert reduced_payload(payload, KEEP) == payload


@pytest.mark.parametrize(("channel", "payload", "expected"), MESSAGE_LINES)
def test_coturns_own_payloads_lose_only_the_client(
    channel: str, payload: str, expected: str
) -> None:
    whole = unescaped(payload)
    if expected.startswith("refused: "):
        return
    event = parse(unescaped(channel), whole)
    dropped = parse(unescaped(channel), reduced_payload(whole, DROP))
    assert dropped == event._replace(client_address=None)
