"""Converts wire bytes to database text and back.

coturn's realms and usernames can be any bytes; Postgres' text takes neither NUL nor invalid UTF-8.
Every table and view uses the escapes of this module.
"""

import re

_ESCAPE_LOOKALIKE = re.compile(r"\\(?=x[0-9a-fA-F]{2})")

_ESCAPE = re.compile(rb"(\\)?\\x([0-9a-fA-F]{2})")


def escape(raw: bytes) -> str:
    r"""Wire bytes as text: valid UTF-8 unchanged, ``\xNN`` for any other byte and for NUL.

    A backslash is doubled only before ``x`` and two hex digits, so that text that merely looks like
    an escape differs from one (docs/session-rules.md#text-escapes).
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
    r"""The wire bytes that :func:`escape` converts to ``text``.

    A backslash before an escaped byte looks like a doubled backslash, and is read as one.
    """
    raw = text.encode()
    return _ESCAPE.sub(lambda match: match[0][1:] if match[1] else bytes([int(match[2], 16)]), raw)
