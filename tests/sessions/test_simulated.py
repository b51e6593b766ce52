"""A simulated fleet's own totals are what the books come to, for every version and hard case."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Final

import pytest

from accounting.domain.counters import COUNTERS
from accounting.domain.text_escaping import escape
from accounting.simulator import VERSIONS, Command, Expected, Scenario, play
from tests.support.books import Books

SWITCHES: Final = tuple(field.name for field in fields(Scenario) if field.type in {"bool", bool})


def scenarios(version: str) -> Iterator[tuple[str, Scenario]]:
    """Each hard case alone and all of them at once, as far as the version has them."""
    cases = {"none": {}, **{switch: {switch: True} for switch in SWITCHES}}
    cases["all"] = dict.fromkeys(SWITCHES, True)
    if not VERSIONS[version].status_addresses:
        del cases["same_key"]
        cases["all"]["same_key"] = False
    for seed, (name, switches) in enumerate(cases.items()):
        options: dict[str, Any] = {"version": version, "seed": seed, "sessions": 60, **switches}
        yield name, Scenario(packets_per_second=3000, **options)


def hear(books: Books, source: str, commands: list[Command]) -> None:
    """What a subscriber would receive."""
    books.receive_all(
        [
            (books.micros_at(0) + command.at_us, command.database, command.args[0], command.args[1])
            for command in commands
            if command.name == b"publish" and command.args[0] != b"__XXX__"
        ],
        source=source,
    )
    books.advance_clock(10_000, source=source)


def figures(expected: Expected) -> dict[tuple[str, str], tuple[int, ...]]:
    """By realm and username: sessions, those estimated, their bytes, disputed, usage, strays."""
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


def booked(books: Books) -> dict[str, dict[tuple[str, str], tuple[int, ...]]]:
    """The same, by source, from the views."""
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
    found = defaultdict[str, dict[tuple[str, str], tuple[int, ...]]](dict)
    for (source, realm, username), line in sums.items():
        found[source][realm, username] = tuple(line)
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_the_books_come_to_what_the_fleet_knows_of_itself(books: Books, version: str) -> None:
    """Each hard case is a source of its own, and all of them are settled at once."""
    expected = {}
    for name, scenario in scenarios(version):
        commands, expected[name] = play(scenario)
        hear(books, name, commands)
    books.run_jobs()
    found = booked(books)
    for name, totals in expected.items():
        assert found[name] == figures(totals), name
    books.assert_conserved()
