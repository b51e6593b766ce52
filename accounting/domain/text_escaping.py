"""How wire bytes become database text.

coturn's realms and usernames are bytes that a client chose; Postgres' text takes neither NUL nor
invalid UTF-8. This module owns the one spelling used in every table and view, and nothing else.
"""

import re

_ESCAPE_LOOKALIKE = re.compile(r"\\(?=x[0-9a-fA-F]{2})")

_ESCAPE = re.compile(rb"(\\)?\\x([0-9a-fA-F]{2})")


def escape(raw: bytes) -> str:
    r"""Spell wire bytes as text: valid UTF-8 as it is, ``\xNN`` for any other byte and for NUL.

    A backslash is doubled only before ``x`` and two hex digits, so that text which merely looks
    like an escape is told from one (docs/session-rules.md#text-escapes).
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        # Invalid bytes arrive as lone surrogates U+DC80..U+DCFF; valid text has none.
        text = raw.decode(errors="surrogateescape")
    else:
        if "\\" not in text and "\0" not in text:
            return text
    text = _ESCAPE_LOOKALIKE.sub(r"\\\\", text)
    return "".join(
        f"\\x{ord(char) & 0xFF:02x}" if char == "\0" or "\udc80" <= char <= "\udcff" else char
        for char in text
    )


def unescape(text: str) -> bytes:
    r"""The wire bytes that :func:`escape` spells as ``text``.

    A backslash before an escaped byte is spelled like a doubled one, and is taken for that.
    """
    raw = text.encode()
    return _ESCAPE.sub(lambda match: match[0][1:] if match[1] else bytes([int(match[2], 16)]), raw)
