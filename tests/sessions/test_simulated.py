"""The books equal the totals of the simulated fleet, for every version and hard case."""

from collections import defaultdict

import pytest

from accounting.domain.counters import COUNTERS
from accounting.domain.text_escaping import escape
from accounting.simulator import VERSIONS, Expected, play
from tests.support.books import Books
from tests.support.simulated_fleet import hard_case_scenarios, receive_commands


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


@pytest.mark.parametrize("version", VERSIONS)
def test_the_books_equal_the_totals_of_the_simulated_fleet(books: Books, version: str) -> None:
    """Each hard case is a source, and all sources are settled at once."""
    expected = {}
    for name, scenario in hard_case_scenarios(version):
        commands, expected[name] = play(scenario)
        receive_commands(books, name, commands)
    books.run_jobs()
    stored = stored_figures(books)
    for name, totals in expected.items():
        assert stored[name] == expected_figures(totals), name
    books.assert_conserved()
