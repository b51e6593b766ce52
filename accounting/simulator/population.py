"""Who uses the fleet: realms, usernames, whom to bill for each. Owns the names, nothing else."""

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
"""Usernames that coturn publishes as they are (docs/coturn.md#hostile-usernames). None holds
``/user/``, where channel readers may differ; none is all digits, which is billed by a rule of the
realm; none is empty, since strangers of all servers meet there."""

REST_TIMESTAMPS: Final = tuple(1_999_999_999 + 3600 * hour for hour in range(4))


class SimulatedUser(NamedTuple):
    """A realm, a username as on the wire, and the user to bill for it, known by construction."""

    realm: bytes
    username: bytes
    user_id: bytes


def population(scenario: Scenario) -> list[tuple[SimulatedUser, ...]]:
    """All users; for each the identities that it uses in turn (more than one only with REST)."""
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
    """The user of ``same_key``, who is nobody else's."""
    return SimulatedUser(scenario.realms[0].encode(), b"roaming", b"roaming")


def unauthenticated_user(scenario: Scenario, index: int) -> SimulatedUser:
    """The empty user of requests that never authenticated."""
    return SimulatedUser(scenario.realms[index % len(scenario.realms)].encode(), b"", b"")


def _name(index: int, *, hostile: bool) -> bytes:
    if not hostile:
        return b"user%04d" % index
    repetition, position = divmod(index, len(HOSTILE_USERNAMES))
    return HOSTILE_USERNAMES[position] + (b"~%d" % repetition if repetition else b"")
