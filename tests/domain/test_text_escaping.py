r"""Bytes from the wire become text: valid UTF-8, or ``\xNN`` escapes."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from accounting.domain.text_escaping import escape


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", ""),
        (b"alice", "alice"),
        ("zürich 東京 🙂".encode(), "zürich 東京 🙂"),
        (b"\xff\xfe", r"\xff\xfe"),
        (b"a\0b", r"a\x00b"),
        (b"caf\xe9", r"caf\xe9"),
        (b"\xc3", r"\xc3"),  # a sequence cut short
        (b"\xc0\x80", r"\xc0\x80"),  # an overlong NUL
        (b"\xed\xa0\x80", r"\xed\xa0\x80"),  # a surrogate
        (b"\xf4\x90\x80\x80", r"\xf4\x90\x80\x80"),  # beyond U+10FFFF
        (
            b"\x01\x07\x1b[31m",
            "\x01\x07\x1b[31m",
        ),  # valid UTF-8: printing it safely is the reader's task
    ],
)
def test_valid_utf_8_stays_and_every_other_byte_and_nul_is_escaped(raw: bytes, text: str) -> None:
    assert escape(raw) == text


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (rb"\xff", r"\\xff"),  # looks like an escape, and must differ from one
        (rb"\xFF", r"\\xFF"),
        (rb"\\xff", r"\\\xff"),
        (rb"\x4", r"\x4"),
        (rb"\xg0", r"\xg0"),
        (rb"\n \ \\ c:\x", r"\n \ \\ c:\x"),
        (b"\\x4\xff", r"\x4\xff"),
        (b"\0\\x00", r"\x00\\x00"),
    ],
)
def test_a_backslash_is_doubled_only_before_x_and_two_hex_digits(raw: bytes, text: str) -> None:
    assert escape(raw) == text


@given(st.binary(max_size=600))
@example(b"\xff" * 512)
def test_any_bytes_become_text_that_postgres_accepts(raw: bytes) -> None:
    text = escape(raw)
    assert "\0" not in text
    text.encode()


@given(st.binary(max_size=40).filter(lambda raw: not re.search(rb"\\[\x00\x80-\xff]", raw)))
def test_escaped_text_can_be_unescaped(raw: bytes) -> None:
    r"""Except a backslash right before an escaped byte: `\` + FF and `\xff` escape alike."""

    def unescape(match: re.Match[str]) -> bytes:
        if match[0].startswith("\\\\"):
            return b"\\x" + match[1].encode()
        return bytes([int(match[1], 16)])

    text, back, at = escape(raw), b"", 0
    for match in re.finditer(r"\\\\?x([0-9a-fA-F]{2})", text):
        back += text[at : match.start()].encode() + unescape(match)
        at = match.end()
    assert back + text[at:].encode() == raw
