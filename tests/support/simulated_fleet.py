"""Scenarios of the simulator with each hard case, and their commands received as messages."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Final

from accounting.domain.counters import COUNTERS
from accounting.domain.text_escaping import escape
from accounting.simulator import VERSIONS, Command, Expected, Scenario
from tests.support.books import Books

HARD_CASES: Final = tuple(field.name for field in fields(Scenario) if field.type in {"bool", bool})
ALL_HARD_CASES: Final = Scenario(**dict.fromkeys(HARD_CASES, True))  # type: ignore[arg-type]


def hard_case_scenarios(version: str, sessions: int = 60) -> Iterator[tuple[str, Scenario]]:
    """Each hard case alone and all of them at once, as far as the version has them."""
    cases = {"none": {}, **{hard_case: {hard_case: True} for hard_case in HARD_CASES}}
    cases["all"] = dict.fromkeys(HARD_CASES, True)
    if not VERSIONS[version].status_addresses:
        del cases["same_key"]
        cases["all"]["same_key"] = False
    for seed, (name, switches) in enumerate(cases.items()):
        options: dict[str, Any] = {
            "version": version,
            "seed": seed,
            "sessions": sessions,
            **switches,
        }
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


def expected_figures(expected: Expected) -> dict[tuple[str, str], tuple[int, ...]]:
    """By realm and username: sessions, estimated ones and their bytes, disputed ones, usage, and
    unattributed usage.
    """
    return {
        (escape(user.realm), escape(user.username)): (
            user.sessions,
            user.sessions_estimated,
            user.estimated_bytes,
            user.sessions_disputed,
            *user.usage,
            *user.unattributed,
        )
        for user in expected.users
    }


def stored_figures(books: Books) -> dict[str, dict[tuple[str, str], tuple[int, ...]]]:
    """The same from the views, by source."""
    sums = defaultdict[tuple[str, str, str], list[int]](lambda: [0] * 20)
    for row in books.rows("sessions"):
        line = sums[row["source"], row["realm"], row["username"]]
        line[0] += 1
        line[1] += row["estimated"]
        line[2] += (row["received_bytes"] + row["sent_bytes"]) * row["estimated"]
        line[3] += row["disputed"]
        for place, name in enumerate(COUNTERS, start=4):
            line[place] += row[name]
    for row in books.rows("unattributed_usage"):
        line = sums[row["source"], row["realm"], row["username"]]
        for place, name in enumerate(COUNTERS, start=12):
            line[place] += int(row[name])
    stored = defaultdict[str, dict[tuple[str, str], tuple[int, ...]]](dict)
    for (source, realm, username), line in sums.items():
        stored[source][realm, username] = tuple(line)
    return stored
