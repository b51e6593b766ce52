"""What a subscribed connection receives, as bytes, without a server."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounting.capture.pubsub.protocol import (
    CHANNEL_PATTERNS,
    ErrorReply,
    Reply,
    SubscriptionParser,
)
from accounting.capture.redis.arguments import StreamError
from accounting.capture.spool.records import MAX_MESSAGE_BYTES, Message
from tests.support.collectors import HOSTILE_USERS
from tests.support.wire import array, split_at

CHANNEL = b"turn/user/u/allocation/001000000000000001/status"
PONG = array(b"pong", b"0123456789abcdef")


def pmessage(channel: bytes, payload: bytes, pattern: int = 0) -> bytes:
    return array(b"pmessage", CHANNEL_PATTERNS[pattern], channel, payload)


texts = st.one_of(
    st.binary(max_size=40), st.sampled_from(HOSTILE_USERS), st.just(b"\r\n*4\r\n$8\r\npmessage\r\n")
)
pieces = st.one_of(
    st.tuples(texts, texts, st.integers(0, 1)),
    st.sampled_from([b"pong", b"psubscribe", b"error"]),
)


@given(st.lists(pieces, max_size=12), st.lists(st.integers(0, 5000), max_size=9))
def test_any_split_of_the_bytes_gives_the_same_messages_and_replies(
    parts: list[tuple[bytes, bytes, int] | bytes], cuts: list[int]
) -> None:
    data, expected, expected_replies = b"", list[Message](), list[Reply]()
    for part in parts:
        match part:
            case (channel, payload, pattern):
                data += pmessage(channel, payload, pattern)
                expected.append((7, 0, channel, payload))
            case b"pong":
                data += PONG
                expected_replies.append([b"pong", b"0123456789abcdef"])
            case b"psubscribe":
                data += b"*3\r\n$10\r\npsubscribe\r\n$1\r\nx\r\n:1\r\n"
                expected_replies.append([b"psubscribe", b"x", 1])
            case _:
                data += b"-NOPERM no\r\n"
                expected_replies.append(ErrorReply("NOPERM no"))
    parser, messages, replies = SubscriptionParser(), list[Message](), list[Reply]()
    for piece in split_at(data, cuts):
        replies += parser.feed(7, piece, messages)
    assert (messages, replies) == (expected, expected_replies)


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_raise_stream_error(data: bytes) -> None:
    with suppress(StreamError):
        SubscriptionParser().feed(7, data, [])


@pytest.mark.parametrize("part", ["channel", "payload"])
@pytest.mark.parametrize("size", [MAX_MESSAGE_BYTES + 1, 300_000])
def test_a_message_too_large_for_coturn_is_skipped(part: str, size: int) -> None:
    words = (CHANNEL, b"x" * size) if part == "payload" else (b"x" * size, b"p")
    data = pmessage(*words) + pmessage(CHANNEL, b"new") + PONG
    parser, messages, replies = SubscriptionParser(), list[Message](), list[Reply]()
    for at in range(0, len(data), 9_991):
        replies += parser.feed(7, data[at : at + 9_991], messages)
        assert len(parser._unparsed) < 2 * MAX_MESSAGE_BYTES
    assert [message[3] for message in messages] == [b"new"]
    assert replies == [[b"pong", b"0123456789abcdef"]]


HEADER = pmessage(b"", b"").removesuffix(b"$0\r\n\r\n$0\r\n\r\n")


@pytest.mark.parametrize(
    "wire",
    [
        b"*4294967295\r\n",
        b"*5\r\n$1\r\nx\r\n",
        b"*2\r\n$9999999999\r\n",
        b"*2\r\n*2\r\n",
        b"*0\r\n",
        b"-" + b"x" * 2000,
        b"+" + b"x" * 2000,
        b"*3\r\n$10\r\npsubscribe\r\n$999\r\n" + b"x" * 2000,
        b"*4\r\n$8\r\npmessage\r\n$5\r\nother\r\n" + b"x" * 2000,
        HEADER + b"$5\r\nturn/" + b"x" * 2000,
        HEADER + b"$5\r\nturn/\r\n$99999999999\r\n",
        HEADER + b"$99999999999\r\n" + b"x" * 2000,
        b"%1\r\n",
        b"$5\r\nhello\r\n",
    ],
)
def test_an_impossible_length_count_or_form_is_a_stream_error(wire: bytes) -> None:
    parser = SubscriptionParser()
    with pytest.raises(StreamError):
        parser.feed(7, wire + b"9" * 3000, [])


@pytest.mark.parametrize(
    "wire", [HEADER + b"$9999999999\r\n", HEADER + b"$5\r\nturn/\r\n$9999999999\r\n"]
)
def test_a_message_without_end_is_not_kept(wire: bytes) -> None:
    parser, messages = SubscriptionParser(), list[Message]()
    parser.feed(7, wire, messages)
    for _ in range(100):
        parser.feed(7, b"x" * 100_000, messages)
        assert parser._unparsed == b""
    assert messages == []
