"""The replication protocol as bytes, without a server."""

from contextlib import suppress
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounting.capture.redis.arguments import StreamError
from accounting.capture.replication.protocol import (
    MAX_KEEPALIVES,
    CommandStream,
    Continued,
    FullResync,
    PsyncError,
    PsyncReply,
)
from accounting.capture.spool.records import MAX_MESSAGE_BYTES, Message
from tests.support.wire import array, split_at

CHANNEL = b"turn/realm/r/user/u/allocation/001000000000000001/status"
HOSTILE_CHANNEL = b"turn/user/\r\n*3\r\n$7\r\nPUBLISH\r\n\x00\xff/allocation/1/status"


commands = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from([b"PUBLISH", b"publish", b"PubLish"]),
            st.sampled_from([CHANNEL, HOSTILE_CHANNEL, b"__XXX__", b"other", b"turn/secret", b""]),
            st.binary(max_size=20) | st.just(b"$5\r\nturn/\r\n"),
        ),
        st.tuples(st.sampled_from([b"SELECT", b"select"]), st.sampled_from([b"0", b"3", b"15"])),
        st.sampled_from([(b"PING",), (b"MULTI",), (b"EXEC",), (b"REPLCONF", b"GETACK", b"*")]),
        st.tuples(st.just(b"SET"), st.binary(max_size=9), st.binary(max_size=99)),
        st.sampled_from(
            [(b"SET", CHANNEL, b"new"), (b"set", HOSTILE_CHANNEL, HOSTILE_CHANNEL), (b"SET", b"k")]
        ),
        st.sampled_from([(b"DEL", CHANNEL), (b"del", HOSTILE_CHANNEL), (b"DEL", b"k", CHANNEL)]),
        st.lists(st.binary(max_size=80), min_size=1, max_size=6)
        .filter(lambda words: words[0].upper() not in (b"PUBLISH", b"SELECT"))
        .map(tuple),
    ),
    max_size=12,
)


def expected_messages(
    words: list[tuple[bytes, ...]], start: int
) -> tuple[list[Message], list[int], int]:
    """What a CommandStream must find, computed from whole commands."""
    messages, positions, database = [], [], 0
    ends = accumulate((len(array(*command_words)) for command_words in words), initial=start)
    next(ends)
    for command_words, end in zip(words, ends, strict=True):
        if command_words[0].upper() == b"SELECT":
            database = int(command_words[1])
        if (
            command_words[0].upper() == b"PUBLISH"
            and command_words[1].startswith(b"turn/")
            and b"/alloc" in command_words[1]
        ):
            messages.append((7, database, command_words[1], command_words[2]))
            positions.append(end)
    return messages, positions, database


@given(commands, st.lists(st.integers(0, 5000), max_size=9))
def test_any_split_of_the_bytes_gives_the_same_messages_at_the_same_offsets(
    words: list[tuple[bytes, ...]], cuts: list[int]
) -> None:
    data = b"".join(array(*command_words) for command_words in words)
    stream, messages, positions = CommandStream(100, None), list[Message](), list[int]()
    for piece in split_at(data, cuts):
        stream.feed(7, piece, messages, positions)
    assert (messages, positions, stream.database or 0) == expected_messages(words, 100)
    assert stream.offset == 100 + len(data)


@given(commands, st.integers(0, 5000))
def test_a_stream_resumes_from_any_offset_that_it_reports(
    words: list[tuple[bytes, ...]], cut: int
) -> None:
    data = b"".join(array(*command_words) for command_words in words)
    first, messages, positions = CommandStream(0, None), list[Message](), list[int]()
    first.feed(7, data[: cut % (len(data) + 1)], messages, positions)
    assert first.offset >= max(positions, default=0)
    second = CommandStream(first.offset, first.database)
    second.feed(7, data[first.offset :], messages, positions)
    assert (messages, positions, second.database or 0) == expected_messages(words, 0)


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_raise_stream_error(data: bytes) -> None:
    stream = CommandStream(0, None)
    with suppress(StreamError):
        stream.feed(7, data, [], [])
        assert 0 <= stream.offset <= len(data)


def test_a_large_value_of_another_program_is_skipped_without_buffering() -> None:
    stream, messages, positions = CommandStream(0, 0), list[Message](), list[int]()
    size = 300 << 20
    head, piece = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n" % size, b"x" * (1 << 20)
    stream.feed(7, head, messages, positions)
    for _ in range(size >> 20):
        stream.feed(7, piece, messages, positions)
        assert len(stream._unparsed) == 0
        assert stream.offset == 0, "a stream can't resume in the middle of a command"
    stream.feed(7, b"\r\n" + array(b"PUBLISH", CHANNEL, b"new"), messages, positions)
    assert [message[3] for message in messages] == [b"new"]
    assert stream.offset == positions[-1]


@pytest.mark.parametrize("part", ["channel", "payload"])
def test_a_publish_too_large_for_coturn_is_skipped(part: str) -> None:
    large = b"x" * (MAX_MESSAGE_BYTES + 1)
    words = (CHANNEL + large, b"p") if part == "channel" else (CHANNEL, large)
    data = array(b"PUBLISH", *words) + array(b"PUBLISH", CHANNEL, b"new")
    stream, messages, positions = CommandStream(0, 0), list[Message](), list[int]()
    for at in range(0, len(data), 99_991):
        stream.feed(7, data[at : at + 99_991], messages, positions)
        assert len(stream._unparsed) < 200_000
    assert [message[3] for message in messages] == [b"new"]
    assert stream.offset == len(data)


@pytest.mark.parametrize(
    ("header", "argument"),
    [
        (b"*2147483647\r\n$7\r\nPUBLISH\r\n", b"$99999\r\n" + b"x" * 99_999 + b"\r\n"),
        (b"*4\r\n$7\r\nPUBLISH\r\n$9999999999\r\n", b"x" * 100_000),
        (b"*3\r\n$7\r\nPUBLISH\r\n$9999999999\r\n", b"x" * 100_000),
        (b"*3\r\n$7\r\nPUBLISH\r\n$5\r\nturn/\r\n$9999999999\r\n", b"x" * 100_000),
        (b"*3\r\n$3\r\nSET\r\n$9999999999\r\n", b"x" * 100_000),
        (b"*1\r\n$9999999999\r\n", b"x" * 100_000),
        (b"*2147483647\r\n$4\r\nMSET\r\n", b"$0\r\n\r\n" * 10_000),
        (b"", array(b"PUBLISH", b"__XXX__", b"__YYY__") * 10_000),
        (b"", array(b"SELECT", b"2147483647") * 10_000),
    ],
)
def test_what_is_kept_of_a_stream_has_a_bound(header: bytes, argument: bytes) -> None:
    stream, messages = CommandStream(0, 0), list[Message]()
    stream.feed(7, header, messages, [])
    for _ in range(20):  # more than both bounds
        stream.feed(7, argument, messages, [])
        assert len(stream._unparsed) < 3 * MAX_MESSAGE_BYTES
        assert len(stream.keepalives) <= MAX_KEEPALIVES
    assert messages == []


@pytest.mark.parametrize(
    "wire",
    [
        b"*3\r\n$07\r\nPUBLISH\r\n" + b"$1\r\nx\r\n" * 9,
        b"*3\r\n$7\r\nPUBLISH\r\n$9x",
        b"*2\r\n$6\r\nSELECT\r\n$10\r\n99999",
        b"*2\r\n$6\r\nSELECT\r\n$10\r\n9999999999\r\n",
        b"*3\r\n$6\r\nSELECT\r\n$1\r\n1\r\n$1\r\n1\r\n",
        b"*0\r\n$4\r\nPING\r\n",
        b"*9999999999\r\n$4\r\nPING\r\n",
        b"*99999999999",
        b"$1\r\nx\r\n",
    ],
)
def test_an_impossible_length_count_or_form_ends_the_stream(wire: bytes) -> None:
    stream = CommandStream(0, 0)
    with pytest.raises(StreamError):
        stream.feed(7, wire + b"9" * 100, [], [])


def test_keepalives_give_offsets_and_no_messages() -> None:
    stream, messages = CommandStream(10, 0), list[Message]()
    command_words = array(b"PUBLISH", b"__XXX__", b"__YYY__")
    stream.feed(7, command_words + command_words, messages, [])
    assert (messages, stream.keepalives) == (
        [],
        [10 + len(command_words), 10 + 2 * len(command_words)],
    )


EOF_MARKER = b"0123456789abcdef" * 2 + b"01234567"
NEXT_COMMAND = array(b"PING")


@pytest.mark.parametrize(
    ("wire", "answer"),
    [
        (b"\n\n+CONTINUE\r\n" + NEXT_COMMAND, Continued(None)),
        (b"+CONTINUE 4f1644\r\n" + NEXT_COMMAND, Continued("4f1644")),
        (b"+FULLRESYNC 4f1644 17\r\n\n\n\n$5\r\nREDIS" + NEXT_COMMAND, FullResync("4f1644", 17)),
        (b"\n+FULLRESYNC 4f1644 0\r\n$0\r\n" + NEXT_COMMAND, FullResync("4f1644", 0)),
        (
            b"+FULLRESYNC 4f1644 17\r\n\n$EOF:"
            + EOF_MARKER
            + b"\r\nREDIS"
            + EOF_MARKER[:20]
            + EOF_MARKER
            + NEXT_COMMAND,
            FullResync("4f1644", 17),
        ),
        (
            b"-NOPERM this user has no permissions\r\n",
            PsyncError("NOPERM this user has no permissions"),
        ),
    ],
)
@given(cuts=st.lists(st.integers(0, 500), max_size=9))
def test_the_reply_ends_where_the_stream_begins_for_any_split(
    wire: bytes, answer: object, cuts: list[int]
) -> None:
    opening, rest = PsyncReply(), b""
    for piece in split_at(wire, cuts):
        rest += piece if opening.is_complete else opening.feed(piece)
    assert opening.outcome == answer
    assert opening.is_complete
    assert rest == (b"" if isinstance(answer, PsyncError) else NEXT_COMMAND)


@pytest.mark.parametrize(
    "wire",
    [
        b"+FULLRESYNC 4f1644 " + b"9" * 5000 + b"\r\n",
        b"+FULLRESYNC 4f1644 9999999999999999999\r\n",
        b"+FULLRESYNC " + b"a" * 65 + b" 1\r\n",
        b"+CONTINUE " + b"a" * 65 + b"\r\n",
        b"+FULLRESYNC 4f1644 1\r\n$" + b"9" * 5000 + b"\r\n",
        b"+FULLRESYNC 4f1644 1\r\n$9999999999999999999\r\n",
        b"-" + b"x" * 5000,
        b"-" + b"x" * 5000 + b"\r\n",
    ],
)
def test_a_psync_reply_with_an_impossible_number_is_a_stream_error(wire: bytes) -> None:
    opening = PsyncReply()
    with pytest.raises(StreamError):
        opening.feed(wire)


@given(st.binary(max_size=100))
def test_any_bytes_are_a_psync_reply_or_stream_error(data: bytes) -> None:
    opening = PsyncReply()
    with suppress(StreamError):
        opening.feed(data)


def test_a_snapshot_is_skipped_without_buffering() -> None:
    opening = PsyncReply()
    opening.feed(b"+FULLRESYNC 4f1644 17\r\n$EOF:" + EOF_MARKER + b"\r\n")
    for _ in range(200):
        assert opening.feed(b"x" * (1 << 20)) == b""
        assert len(opening._unparsed) < len(EOF_MARKER)
    assert opening.feed(EOF_MARKER + NEXT_COMMAND) == NEXT_COMMAND
