"""The replication protocol as bytes, without a server."""

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

CHANNEL = b"turn/realm/r/user/u/allocation/001000000000000001/status"
HOSTILE_CHANNEL = b"turn/user/\r\n*3\r\n$7\r\nPUBLISH\r\n\x00\xff/allocation/1/status"


def command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)


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


def split_at(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(places)]


def expected_messages(
    words: list[tuple[bytes, ...]], start: int
) -> tuple[list[Message], list[int], int]:
    """What a CommandStream must find, computed from whole commands."""
    messages, positions, database = [], [], 0
    ends = accumulate((len(command(*command_words)) for command_words in words), initial=start)
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
    data = b"".join(command(*command_words) for command_words in words)
    stream, messages, positions = CommandStream(100, None), list[Message](), list[int]()
    for piece in split_at(data, cuts):
        stream.feed(7, piece, messages, positions)
    assert (messages, positions, stream.database or 0) == expected_messages(words, 100)
    assert stream.offset == 100 + len(data)


@given(commands, st.integers(0, 5000))
def test_a_stream_resumes_from_any_offset_that_it_reports(
    words: list[tuple[bytes, ...]], cut: int
) -> None:
    data = b"".join(command(*command_words) for command_words in words)
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
    stream.feed(7, b"\r\n" + command(b"PUBLISH", CHANNEL, b"new"), messages, positions)
    assert [message[3] for message in messages] == [b"new"]
    assert stream.offset == positions[-1]


@pytest.mark.parametrize("part", ["channel", "payload"])
def test_a_publish_too_large_for_coturn_is_skipped(part: str) -> None:
    large = b"x" * (MAX_MESSAGE_BYTES + 1)
    words = (CHANNEL + large, b"p") if part == "channel" else (CHANNEL, large)
    data = command(b"PUBLISH", *words) + command(b"PUBLISH", CHANNEL, b"new")
    stream, messages, positions = CommandStream(0, 0), list[Message](), list[int]()
    for at in range(0, len(data), 99_991):
        stream.feed(7, data[at : at + 99_991], messages, positions)
        assert len(stream._unparsed) < 200_000
    assert [message[3] for message in messages] == [b"new"]
    assert stream.offset == len(data)


def test_keepalives_give_offsets_and_no_messages() -> None:
    stream, messages = CommandStream(10, 0), list[Message]()
    command_words = command(b"PUBLISH", b"__XXX__", b"__YYY__")
    stream.feed(7, command_words + command_words, messages, [])
    assert (messages, stream.keepalives) == (
        [],
        [10 + len(command_words), 10 + 2 * len(command_words)],
    )


EOF_MARKER = b"0123456789abcdef" * 2 + b"01234567"
NEXT_COMMAND = command(b"PING")


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
