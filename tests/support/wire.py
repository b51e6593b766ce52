"""Bytes of Redis' protocol for tests."""

from itertools import pairwise


def array(*words: bytes) -> bytes:
    """An array of bulk strings: a command, or a message."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)


def split_at(data: bytes, cuts: list[int]) -> list[bytes]:
    """The bytes in pieces, cut at some places."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(places)]
