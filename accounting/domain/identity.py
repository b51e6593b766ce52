"""Finds the user to bill for a username, and derives the opaque keys of both.

TURN REST usernames are ephemeral, ``<unix time>:<user>`` or ``<user>:<unix time>``
(docs/coturn.md#rest-usernames).
"""

from enum import StrEnum
from hashlib import blake2b


class UsernameRule(StrEnum):
    """How to find the user in a realm's usernames.

    ``auto``: if exactly one side of the first separator is all digits, the user is the other side,
    else the whole username. ``rest``: the same, but a username that is all digits is a timestamp
    without a user (``''``). ``plain``: always the whole username.
    """

    AUTO = "auto"
    REST = "rest"
    PLAIN = "plain"


class RadacctUsername(StrEnum):
    """The form of ``username`` in the view ``radacct``."""

    USER = "user"
    USER_AT_REALM = "user@realm"


def billed_user(username: bytes, rule: UsernameRule, separator: bytes) -> bytes:
    """The user to bill for ``username``. Only ASCII digits are digits."""
    if rule is UsernameRule.PLAIN:
        return username
    if rule is UsernameRule.REST and username.isdigit():
        return b""
    before, has_separator, after = username.partition(separator)
    if has_separator and before.isdigit() != after.isdigit():
        return after if before.isdigit() else before
    return username


def pseudonym(identity_key: bytes, realm: bytes, name: bytes) -> bytes:
    """16 bytes that identify a name within a realm and don't reveal it without the key.

    Keyed, so that nobody can test a guessed name against the tables once the name is erased.
    """
    digest = blake2b(len(realm).to_bytes(4), digest_size=16, key=identity_key)
    digest.update(realm)
    digest.update(name)
    return digest.digest()


def user_key(identity_key: bytes, realm: bytes, user: bytes) -> bytes:
    """The key that identifies a user in sessions, usage and statements."""
    return pseudonym(identity_key, realm, b"user\0" + user)


def username_key(identity_key: bytes, realm: bytes, username: bytes) -> bytes:
    """The key of a username; never that of a user, even if the username is the user's id."""
    return pseudonym(identity_key, realm, b"username\0" + username)
