"""The replication protocol without a server: any cutting of the bytes gives the same events."""

from contextlib import suppress
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounting.capture.replication.protocol import (
    CommandStream,
    Continued,
    FullResync,
    PsyncError,
    PsyncReply,
    StreamError,
)
from accounting.capture.spool.records import MAX_MESSAGE_BYTES, Message

channel = b"turn/realm/r/user/u/allocation/001000000000000001/status"
hostile = b"turn/user/\r\n*3\r\n$7\r\nPUBLISH\r\n\x00\xff/allocation/1/status"


def command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)


commands = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from([b"PUBLISH", b"publish", b"PubLish"]),
            st.sampled_from([channel, hostile, b"__XXX__", b"other", b"turn/secret", b""]),
            st.binary(max_size=20) | st.just(b"$5\r\nturn/\r\n"),
        ),
        st.tuples(st.sampled_from([b"SELECT", b"select"]), st.sampled_from([b"0", b"3", b"15"])),
        st.sampled_from([(b"PING",), (b"MULTI",), (b"EXEC",), (b"REPLCONF", b"GETACK", b"*")]),
        st.tuples(st.just(b"SET"), st.binary(max_size=9), st.binary(max_size=99)),
        st.sampled_from([(b"SET", channel, b"new"), (b"set", hostile, hostile), (b"SET", b"k")]),
        st.sampled_from([(b"DEL", channel), (b"del", hostile), (b"DEL", b"k", channel)]),
        st.lists(st.binary(max_size=80), min_size=1, max_size=6)
        .filter(lambda words: words[0].upper() not in (b"PUBLISH", b"SELECT"))
        .map(tuple),
    ),
    max_size=12,
)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(places)]


def expected(words: list[tuple[bytes, ...]], start: int) -> tuple[list[Message], list[int], int]:
    """The same by reading commands that are cut already."""
    messages, positions, database = [], [], 0
    ends = accumulate((len(command(*one)) for one in words), initial=start)
    next(ends)
    for one, end in zip(words, ends, strict=True):
        if one[0].upper() == b"SELECT":
            database = int(one[1])
        if one[0].upper() == b"PUBLISH" and one[1].startswith(b"turn/") and b"/alloc" in one[1]:
            messages.append((7, database, one[1], one[2]))
            positions.append(end)
    return messages, positions, database


@given(commands, st.lists(st.integers(0, 5000), max_size=9))
def test_any_cutting_gives_the_same_messages_at_the_same_offsets(
    words: list[tuple[bytes, ...]], cuts: list[int]
) -> None:
    data = b"".join(command(*one) for one in words)
    stream, messages, positions = CommandStream(100, None), list[Message](), list[int]()
    for piece in pieces(data, cuts):
        stream.feed(7, piece, messages, positions)
    assert (messages, positions, stream.database or 0) == expected(words, 100)
    assert stream.offset == 100 + len(data)


@given(commands, st.integers(0, 5000))
def test_a_stream_goes_on_from_any_offset_that_it_tells(
    words: list[tuple[bytes, ...]], cut: int
) -> None:
    data = b"".join(command(*one) for one in words)
    first, messages, positions = CommandStream(0, None), list[Message](), list[int]()
    first.feed(7, data[: cut % (len(data) + 1)], messages, positions)
    assert first.offset >= max(positions, default=0)
    second = CommandStream(first.offset, first.database)
    second.feed(7, data[first.offset :], messages, positions)
    assert (messages, positions, second.database or 0) == expected(words, 0)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_stream_or_one_error(data: bytes) -> None:
    stream = CommandStream(0, None)
    with suppress(StreamError):
        stream.feed(7, data, [], [])
        assert 0 <= stream.offset <= len(data)


def test_a_large_value_of_somebody_else_is_stepped_over_and_never_held() -> None:
    stream, messages, positions = CommandStream(0, 0), list[Message](), list[int]()
    size = 300 << 20
    head, piece = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n" % size, b"x" * (1 << 20)
    stream.feed(7, head, messages, positions)
    for _ in range(size >> 20):
        stream.feed(7, piece, messages, positions)
        assert len(stream._unparsed) == 0
        assert stream.offset == 0  # a stream can't go on in the middle of a command
    stream.feed(7, b"\r\n" + command(b"PUBLISH", channel, b"new"), messages, positions)
    assert [message[3] for message in messages] == [b"new"]
    assert stream.offset == positions[-1]


@pytest.mark.parametrize("part", ["channel", "payload"])
def test_a_publish_too_large_to_be_coturns_is_stepped_over(part: str) -> None:
    large = b"x" * (MAX_MESSAGE_BYTES + 1)
    words = (channel + large, b"p") if part == "channel" else (channel, large)
    data = command(b"PUBLISH", *words) + command(b"PUBLISH", channel, b"new")
    stream, messages, positions = CommandStream(0, 0), list[Message](), list[int]()
    for at in range(0, len(data), 99_991):
        stream.feed(7, data[at : at + 99_991], messages, positions)
        assert len(stream._unparsed) < 200_000
    assert [message[3] for message in messages] == [b"new"]
    assert stream.offset == len(data)


def test_keepalives_are_counted_where_they_are_and_not_kept() -> None:
    stream, messages = CommandStream(10, 0), list[Message]()
    one = command(b"PUBLISH", b"__XXX__", b"__YYY__")
    stream.feed(7, one + one, messages, [])
    assert (messages, stream.keepalives) == ([], [10 + len(one), 10 + 2 * len(one)])


mark = b"0123456789abcdef" * 2 + b"01234567"
tail = command(b"PING")


@pytest.mark.parametrize(
    ("wire", "answer"),
    [
        (b"\n\n+CONTINUE\r\n" + tail, Continued(None)),
        (b"+CONTINUE 4f1644\r\n" + tail, Continued("4f1644")),
        (b"+FULLRESYNC 4f1644 17\r\n\n\n\n$5\r\nREDIS" + tail, FullResync("4f1644", 17)),
        (b"\n+FULLRESYNC 4f1644 0\r\n$0\r\n" + tail, FullResync("4f1644", 0)),
        (
            b"+FULLRESYNC 4f1644 17\r\n\n$EOF:" + mark + b"\r\nREDIS" + mark[:20] + mark + tail,
            FullResync("4f1644", 17),
        ),
        (
            b"-NOPERM this user has no permissions\r\n",
            PsyncError("NOPERM this user has no permissions"),
        ),
    ],
)
@given(cuts=st.lists(st.integers(0, 500), max_size=9))
def test_the_opening_ends_where_the_stream_begins_however_it_is_cut(
    wire: bytes, answer: object, cuts: list[int]
) -> None:
    opening, rest = PsyncReply(), b""
    for piece in pieces(wire, cuts):
        rest += piece if opening.is_complete else opening.feed(piece)
    assert opening.outcome == answer
    assert opening.is_complete
    assert rest == (b"" if isinstance(answer, PsyncError) else tail)


@given(st.binary(max_size=100))
def test_any_bytes_are_an_opening_or_one_error(data: bytes) -> None:
    opening = PsyncReply()
    with suppress(StreamError):
        opening.feed(data)


def test_a_snapshot_of_any_size_takes_no_memory() -> None:
    opening = PsyncReply()
    opening.feed(b"+FULLRESYNC 4f1644 17\r\n$EOF:" + mark + b"\r\n")
    for _ in range(200):
        assert opening.feed(b"x" * (1 << 20)) == b""
        assert len(opening._unparsed) < len(mark)
    assert opening.feed(mark + tail) == tail
