r"""Answers of receivers as they may be quoted: a receiver may repeat what it was sent.

What it repeats may be written in another way, such as ``\/`` in JSON or ``%2F``. So an answer
that has a part of a secret in any of these forms is not quoted at all.
"""

import html
import json
import re
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import parse_qsl, unquote_to_bytes, urlsplit

PART_LENGTH: Final = 10
"""So long a part of a secret is not quoted; a shorter secret is not quoted as a whole."""
NOT_QUOTED: Final = b"(not quoted, because it repeats a secret)"
_ESCAPE: Final = re.compile(rb"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)


def quotable(body: bytes, secrets: Iterable[str]) -> bytes:
    """The answer, or NOT_QUOTED."""
    forms = tuple(_forms(body))
    for secret in secrets:
        data = secret.encode()
        for start in range(max(1, len(data) - PART_LENGTH + 1)):
            part = data[start : start + PART_LENGTH]
            if any(part in form for form in forms):
                return NOT_QUOTED
    return body


def secrets_of_url(url: str) -> list[str]:
    """The query of a URL and its longer values, which may be tokens."""
    query = urlsplit(url).query
    values = [value for _, value in parse_qsl(query, keep_blank_values=True)]
    return [text for text in (query, *values) if len(text) >= PART_LENGTH or text == query != ""]


def _forms(body: bytes) -> Iterator[bytes]:
    yield body
    unescaped = _ESCAPE.sub(_unescape, body)
    yield unescaped
    unquoted = unquote_to_bytes(unescaped)
    yield unquoted
    yield unquote_to_bytes(unquoted.replace(b"+", b" "))
    yield html.unescape(unquoted.decode(errors="replace")).encode()


def _unescape(match: re.Match[bytes]) -> bytes:
    try:
        text: str = json.loads(b'"' + match[0] + b'"')
        return text.encode(errors="replace")
    except ValueError:
        return match[1]
