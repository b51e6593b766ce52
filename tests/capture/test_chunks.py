"""Chunks: whatever is encoded is decoded, and whatever is damaged is found."""

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounting.capture.spool.chunks import (
    CHUNK_MESSAGES,
    Chunk,
    DamagedContent,
    decode,
    encode_rows,
)
from accounting.capture.spool.records import SpooledRow

EPOCH = 7
EVERY_BYTE = bytes(range(256))

TEXTS = st.binary(max_size=20) | st.just(EVERY_BYTE) | st.sampled_from([b"", b"\n", b"\0\n"])


@st.composite
def rows(draw: st.DrawFn) -> list[SpooledRow]:
    """Messages of one epoch, in order, as a spool yields them."""
    count = draw(st.integers(1, 12))
    steps = st.lists(st.integers(1, 1 << 40), min_size=count, max_size=count)
    times = st.lists(st.integers(0, 1 << 40), min_size=count, max_size=count)
    return [
        (EPOCH << 35 | draw(st.integers(0, 3)), position, received_at, draw(TEXTS), draw(TEXTS))
        for position, received_at in zip(
            accumulate(draw(steps)), accumulate(draw(times)), strict=True
        )
    ]


@given(rows())
def test_any_messages_are_decoded_as_they_were_encoded(messages: list[SpooledRow]) -> None:
    chunks = list(encode_rows(messages))
    assert [row for chunk in chunks for row in decode(chunk)] == messages
    assert sum(chunk.messages for chunk in chunks) == len(messages)
    assert sum(chunk.size for chunk in chunks) == sum(len(row[3] + row[4]) for row in messages)
    for chunk in chunks:
        first, *_, last = [*decode(chunk)[:1], *decode(chunk)]
        assert first[1:3] == (chunk.first_position, chunk.first_received_at)
        assert last[1:3] == (chunk.last_position, chunk.last_received_at)
    assert all(a.last_position < b.first_position for a, b in pairwise(chunks))


def test_messages_without_every_byte_are_one_chunk() -> None:
    origin = EPOCH << 35
    full = [(origin, n, n, b"c\n", b"\0p") for n in range(1, CHUNK_MESSAGES + 1)]
    assert len(list(encode_rows(full))) == 1
    assert (
        len(list(encode_rows([*full[:-1], (origin, CHUNK_MESSAGES, 500, b"c", EVERY_BYTE)]))) < 12
    )


@given(rows(), st.data())
def test_a_change_of_any_value_is_found(messages: list[SpooledRow], data: st.DataObject) -> None:
    (chunk, *_) = encode_rows(messages)
    assert decode(chunk)
    name = data.draw(st.sampled_from(Chunk._fields[1:]))
    value = getattr(chunk, name)
    if isinstance(value, bytes):
        bit = data.draw(st.integers(0, 8 * len(value) - 1))
        changed = bytearray(value)
        changed[bit // 8] ^= 1 << bit % 8
        value = data.draw(st.sampled_from([bytes(changed), value[: bit // 8], value + b"\0", b""]))
    else:
        value ^= 1 << data.draw(st.integers(0, 31))
    with pytest.raises(DamagedContent):
        decode(chunk._replace(**{name: value}))
