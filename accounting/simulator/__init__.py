"""Simulates a fleet of coturn servers: publishes its messages and computes the exact totals.

In: a scenario. Out: commands to Redis, and the totals that the books must show.
Invariant: the same scenario gives the same commands, byte for byte.

- ``scenario``: what to simulate; ``version``: how coturn releases differ.
- ``population``: the users; ``wire``: encodes commands, channels and payloads.
- ``fleet``, ``process``, ``allocation``, ``shared_key``: the simulation, without I/O or clock.
- ``oracle``: computes what the books must show.
- ``publisher``: sends the commands to Redis, at the chosen pace; imported only where it is used.

It shares no code with what it tests, except the names of the counters, the escapes of text and the
errors.
"""

from collections.abc import Iterator

from accounting.simulator.fleet import Burst, Fleet
from accounting.simulator.oracle import Expected, ExpectedUser
from accounting.simulator.scenario import Scenario
from accounting.simulator.version import VERSIONS, Version
from accounting.simulator.wire import Command

__all__ = [
    "VERSIONS",
    "Burst",
    "Command",
    "Expected",
    "ExpectedUser",
    "Fleet",
    "Scenario",
    "Version",
    "events",
    "play",
]


def events(scenario: Scenario) -> Iterator[Command]:
    """Every command of a scenario in order of virtual time, without Redis."""
    for burst in Fleet(scenario).run():
        yield from burst.commands


def play(scenario: Scenario) -> tuple[list[Command], Expected]:
    """All commands of a scenario and the totals that the books must show, without Redis."""
    fleet = Fleet(scenario)
    commands = [command for burst in fleet.run() for command in burst.commands]
    return commands, fleet.expected()
