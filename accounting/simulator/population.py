"""The users of the fleet: realms, usernames, and the user to bill for each."""

from typing import Final, NamedTuple

from accounting.simulator.scenario import Scenario

HOSTILE_USERNAMES: Final = (
    b"x/allocation/000000000000000009/status",
    b"a*b?[x]",
    b"k=v,rcvb=9",
    b"\xff\xfe",
    b"a\x01\x07b",
    b"x" * 490,
    b"line\r\nbreak\ttab",
    b'quote"back\\slash',
    b"\\x41",
    b"\\",
    b"new lifetime=600, type=UDP",
    "zoë €".encode(),
    b"a:b",
    b":",
    b" ",
    b"\x80/\xc0",
    b"deleted",
)
"""Usernames that coturn publishes unchanged (docs/coturn.md#hostile-usernames). None contains
``/user/``, which makes a channel ambiguous; none is all digits, for which the realm's rule matters;
none is empty, because unauthenticated traffic of all servers has the empty username."""

REST_TIMESTAMPS: Final = tuple(1_999_999_999 + 3600 * hour for hour in range(4))


class SimulatedUser(NamedTuple):
    """A realm, a username as on the wire, and the user to bill for it."""

    realm: bytes
    username: bytes
    user_id: bytes


def population(scenario: Scenario) -> list[tuple[SimulatedUser, ...]]:
    """All users, each with the identities that it uses in turn (several only with TURN REST)."""
    identities = []
    for index in range(scenario.users):
        user_index, realm_index = divmod(index, len(scenario.realms))
        realm = scenario.realms[realm_index].encode()
        name = _name(user_index, hostile=scenario.hostile_usernames)
        if scenario.rest_usernames:
            identities.append(
                tuple(SimulatedUser(realm, b"%d:%b" % (t, name), name) for t in REST_TIMESTAMPS)
            )
        else:
            identities.append((SimulatedUser(realm, name, name),))
    return identities


def shared_key_user(scenario: Scenario) -> SimulatedUser:
    """The user of the ``same_key`` sessions, who has no other sessions."""
    return SimulatedUser(scenario.realms[0].encode(), b"roaming", b"roaming")


def unauthenticated_user(scenario: Scenario, index: int) -> SimulatedUser:
    """The empty user of requests that never authenticated."""
    return SimulatedUser(scenario.realms[index % len(scenario.realms)].encode(), b"", b"")


def _name(index: int, *, hostile: bool) -> bytes:
    if not hostile:
        return b"user%04d" % index
    repetition, position = divmod(index, len(HOSTILE_USERNAMES))
    return HOSTILE_USERNAMES[position] + (b"~%d" % repetition if repetition else b"")
