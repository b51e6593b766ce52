"""Scenarios of the simulator with each hard case, and their commands received as messages."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Final

from accounting.simulator import VERSIONS, Command, Scenario
from tests.support.books import Books

HARD_CASES: Final = tuple(field.name for field in fields(Scenario) if field.type in {"bool", bool})
ALL_HARD_CASES: Final = Scenario(**dict.fromkeys(HARD_CASES, True))  # type: ignore[arg-type]


def hard_case_scenarios(version: str) -> Iterator[tuple[str, Scenario]]:
    """Each hard case alone and all of them at once, as far as the version has them."""
    cases = {"none": {}, **{hard_case: {hard_case: True} for hard_case in HARD_CASES}}
    cases["all"] = dict.fromkeys(HARD_CASES, True)
    if not VERSIONS[version].status_addresses:
        del cases["same_key"]
        cases["all"]["same_key"] = False
    for seed, (name, switches) in enumerate(cases.items()):
        options: dict[str, Any] = {"version": version, "seed": seed, "sessions": 60, **switches}
        yield name, Scenario(packets_per_second=3000, **options)


def receive_commands(books: Books, source: str, commands: list[Command]) -> None:
    """Receive the published messages of allocations, as a subscriber does."""
    books.receive_all(
        [
            (books.micros_at(0) + command.at_us, command.database, command.args[0], command.args[1])
            for command in commands
            if command.name == b"publish" and command.args[0] != b"__XXX__"
        ],
        source=source,
    )
    books.advance_clock(10_000, source=source)
