"""The books equal the totals of the simulated fleet, for every version and hard case."""

import pytest

from accounting.simulator import VERSIONS, play
from tests.support.books import Books
from tests.support.simulated_fleet import (
    expected_figures,
    hard_case_scenarios,
    receive_commands,
    stored_figures,
)


@pytest.mark.parametrize(
    "version",
    [
        *list(VERSIONS)[::3],
        *(pytest.param(version, marks=pytest.mark.long) for version in list(VERSIONS)[1:3]),
    ],
)
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
