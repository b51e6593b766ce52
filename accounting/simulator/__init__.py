"""A coturn fleet that isn't there: publishes what coturn publishes and knows the exact totals.

    scenario  what to simulate            version     how coturn releases differ
    population  who uses it               wire        commands, channels and payloads, written
    fleet -> process, allocation, pair    the pure core: seed in, timed commands out
    oracle    what the books must show    publisher   the I/O shell: pace and Redis

It must share nothing with what it tests: of this package's other modules only the names of the
counters, the spelling of text and the errors.
"""

from collections.abc import Iterator

from accounting.simulator.fleet import Burst, Fleet
from accounting.simulator.oracle import Expected, ExpectedUser
from accounting.simulator.publisher import SimulationProgress, run
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
    "SimulationProgress",
    "Version",
    "events",
    "play",
    "run",
]


def events(scenario: Scenario) -> Iterator[Command]:
    """Every command of a scenario in order of virtual time, without Redis."""
    for burst in Fleet(scenario).run():
        yield from burst.commands


def play(scenario: Scenario) -> tuple[list[Command], Expected]:
    """All commands of a scenario and what the books must come to, without Redis."""
    fleet = Fleet(scenario)
    commands = [command for burst in fleet.run() for command in burst.commands]
    return commands, fleet.expected()
