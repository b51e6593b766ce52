"""Tokens and the secrets of browser sessions: random texts. The database has their digests."""

import re
from hashlib import sha256
from secrets import token_urlsafe
from typing import Final

RANDOM_BYTES: Final = 32
TOKEN: Final = re.compile(r"ta_[A-Za-z0-9_-]{43}")
SESSION: Final = re.compile(r"tas_[A-Za-z0-9_-]{43}")


def new_token() -> str:
    """A token. Its beginning says what it is, also to programs that search texts for secrets."""
    return f"ta_{token_urlsafe(RANDOM_BYTES)}"


def new_session() -> str:
    """The secret of a browser session, for a cookie. It is not valid as a token."""
    return f"tas_{token_urlsafe(RANDOM_BYTES)}"


def digest(text: str) -> bytes:
    """What is stored and looked up."""
    return sha256(text.encode()).digest()
