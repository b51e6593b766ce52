"""Whom to bill: from the username on the wire to the user id, and the opaque keys of both.

TURN REST usernames are ephemeral, ``<unix time>:<user>`` or ``<user>:<unix time>``
(docs/coturn.md#rest-usernames).
Owns that rule and the digests; knows nothing of where rules or keys are kept.
"""

from enum import StrEnum
from hashlib import blake2b


class UsernameRule(StrEnum):
    """How a realm's usernames name users.

    ``auto``: when exactly one side of the first separator is all digits, the user is the other
    side, else the whole username. ``rest``: the same, and a username that is all digits is a
    timestamp with no user (``''``). ``plain``: always the whole username.
    """

    AUTO = "auto"
    REST = "rest"
    PLAIN = "plain"


def billed_user(username: bytes, rule: UsernameRule, separator: bytes) -> bytes:
    """The user to bill for ``username``. Only ASCII digits are digits."""
    if rule is UsernameRule.PLAIN:
        return username
    if rule is UsernameRule.REST and username.isdigit():
        return b""
    before, found, after = username.partition(separator)
    if found and before.isdigit() != after.isdigit():
        return after if before.isdigit() else before
    return username


def pseudonym(identity_key: bytes, realm: bytes, name: bytes) -> bytes:
    """16 bytes that stand for a name within a realm and tell nothing of it without the key.

    Keyed, so that nobody can test a guessed name against the tables once the name is erased.
    """
    digest = blake2b(len(realm).to_bytes(4), digest_size=16, key=identity_key)
    digest.update(realm)
    digest.update(name)
    return digest.digest()


def user_key(identity_key: bytes, realm: bytes, user: bytes) -> bytes:
    """The key of a user: what sessions, usage and statements know of whom to bill."""
    return pseudonym(identity_key, realm, b"user\0" + user)
