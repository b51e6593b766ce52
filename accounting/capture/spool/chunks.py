"""Chunks: some hundred messages as one row, compressed and with a checksum.

The columns of a chunk say which positions and times it covers, so that a lookup decodes only one.
Its content holds the messages column by column, which takes a few calls of C for all of them.
Before compression it has, in little-endian order:

- the header: number of runs, length of the joined channels, separator (one byte)
- runs of messages from the same database: database << 1 | estimated, number of messages
- all positions, then all receipt times
- the channels, joined by the separator, then the payloads, joined by it too

The separator is a byte that none of them contains; a chunk of one message needs none.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain, groupby, repeat, starmap
from struct import Struct
from typing import Final, NamedTuple

import lz4.block

from accounting.capture.spool.records import SpooledRow

CHUNK_MESSAGES: Final = 500
"""The most messages in a chunk: few enough for the processor's cache and for a loader's memory."""

CHUNKS_SCHEMA: Final = (
    """
    CREATE TABLE chunks (
        number INTEGER PRIMARY KEY,
        epoch INTEGER NOT NULL,
        first_position INTEGER NOT NULL,
        last_position INTEGER NOT NULL,
        first_received_at INTEGER NOT NULL,
        last_received_at INTEGER NOT NULL,
        messages INTEGER NOT NULL,
        size INTEGER NOT NULL,
        checksum INTEGER NOT NULL,
        content BLOB NOT NULL,
        UNIQUE (epoch, last_position)
    )
    """,
    "CREATE INDEX chunks_by_time ON chunks (epoch, first_received_at, last_position)",
)
INSERT_CHUNK: Final = """
INSERT INTO chunks (
    epoch, first_position, last_position, first_received_at, last_received_at, messages, size,
    checksum, content
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""

UPDATE_CHUNK: Final = """
UPDATE chunks SET
    epoch = ?, first_position = ?, last_position = ?, first_received_at = ?, last_received_at = ?,
    messages = ?, size = ?, checksum = ?, content = ?
WHERE number = ?
"""

PREFERRED_SEPARATOR: Final = b"\n"
ALL_BYTES: Final = bytes(range(256))

HEADER: Final = Struct("<IIc")
RUN: Final = Struct("<QI")
COLUMNS: Final = Struct("<7q")

ORIGIN_BITS: Final = 35
"""Below the epoch in the packed origin of a SpooledRow: the database and the flag of estimates."""


class DamagedContent(ValueError):
    """The bytes of a chunk are not those that were written."""


class Chunk(NamedTuple):
    """A row of the table ``chunks``. ``number`` is 0 for one that is not stored yet.

    ``size`` is the length of the channels and payloads.
    """

    number: int
    epoch: int
    first_position: int
    last_position: int
    first_received_at: int
    last_received_at: int
    messages: int
    size: int
    checksum: int
    content: bytes

    def is_intact(self) -> bool:
        """Whether all values are those that were written."""
        try:
            return self.checksum == _checksum(self[1:8], self.content)
        except (TypeError, struct.error):  # a damaged row has values of other types
            return False


def encode(
    epoch: int,
    origins: Sequence[int],
    positions: Sequence[int],
    received_at: Sequence[int],
    channels: Sequence[bytes],
    payloads: Sequence[bytes],
) -> Iterator[Chunk]:
    """Encode up to CHUNK_MESSAGES messages of one epoch, given by columns.

    ``origins`` are packed as in a SpooledRow, with or without the epoch. This is one chunk, unless
    the messages contain every byte: then these are smaller ones.
    """
    count = len(positions)
    separator = PREFERRED_SEPARATOR
    joined_channels, joined_payloads = separator.join(channels), separator.join(payloads)
    texts = joined_channels.count(separator) + joined_payloads.count(separator)
    if texts != 2 * (count - 1) and count > 1:
        unused = ALL_BYTES.translate(None, b"".join(chain(channels, payloads)))
        if not unused:
            for half in (slice(0, count // 2), slice(count // 2, count)):
                yield from encode(
                    epoch,
                    origins[half],
                    positions[half],
                    received_at[half],
                    channels[half],
                    payloads[half],
                )
            return
        separator = unused[:1]
        joined_channels, joined_payloads = separator.join(channels), separator.join(payloads)
    mask = (1 << ORIGIN_BITS) - 1
    if origins.count(origins[0]) == count:
        runs = [(origins[0] & mask, count)]
    else:
        runs = [(origin & mask, len(list(run))) for origin, run in groupby(origins)]
    raw = b"".join(
        (
            HEADER.pack(len(runs), len(joined_channels), separator),
            *starmap(RUN.pack, runs),
            struct.pack(f"<{2 * count}q", *positions, *received_at),
            joined_channels,
            joined_payloads,
        )
    )
    size = len(joined_channels) + len(joined_payloads) - 2 * (count - 1)
    columns = (epoch, positions[0], positions[-1], received_at[0], received_at[-1], count, size)
    content = lz4.block.compress(raw)
    yield Chunk(0, *columns, _checksum(columns, content), content)


def encode_rows(rows: Sequence[SpooledRow]) -> Iterator[Chunk]:
    """Encode messages of one epoch. A part of a chunk is one chunk again."""
    if rows:
        yield from encode(rows[0][0] >> ORIGIN_BITS, *zip(*rows, strict=True))


def decode(chunk: Chunk) -> list[SpooledRow]:
    """The messages of a chunk. Raises DamagedContent when it is damaged."""
    if not chunk.is_intact():
        raise DamagedContent
    count = chunk.messages
    raw = lz4.block.decompress(chunk.content)
    runs, channels_length, separator = HEADER.unpack_from(raw)
    positions_at = HEADER.size + runs * RUN.size
    base = chunk.epoch << ORIGIN_BITS
    origins = [
        repeat(base | origin, length)
        for origin, length in RUN.iter_unpack(raw[HEADER.size : positions_at])
    ]
    numbers = struct.unpack_from(f"<{2 * count}q", raw, positions_at)
    channels_at = positions_at + 16 * count
    payloads_at = channels_at + channels_length
    channels, payloads = raw[channels_at:payloads_at], raw[payloads_at:]
    return list(
        zip(
            chain.from_iterable(origins),
            numbers[:count],
            numbers[count:],
            channels.split(separator) if count > 1 else [channels],
            payloads.split(separator) if count > 1 else [payloads],
            strict=True,
        )
    )


def _checksum(columns: tuple[int, ...], content: bytes) -> int:
    return zlib.crc32(content, zlib.crc32(COLUMNS.pack(*columns)))
