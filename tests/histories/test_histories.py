"""A short random history in each run of the tests, and another in ``make long``.

``make histories`` plays long ones.
"""

import ast
import sys
from pathlib import Path

import psycopg
import pytest

from tests.histories import oracle
from tests.histories.cells import CellsPlayer, make_cells_plan
from tests.histories.comparison import differences
from tests.histories.plan import make_plan
from tests.histories.player import Player
from tests.support.books import cloned_database
from tests.support.servers import PostgresServer


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_the_books_of_a_random_history_equal_the_oracles(
    seed: int, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """A figure that is changed behind the service's back is found, so the comparison looks."""
    with cloned_database(postgres_server) as database:
        player = Player(make_plan(seed, short=True), postgres_server, database, tmp_path)
        player.play()
        with psycopg.connect(postgres_server.url(database=database)) as connection:
            connection.execute(
                "UPDATE accounting.realm_usage_daily SET peer_sent_bytes = peer_sent_bytes + 1"
            )
        found = differences(player.expected, player.views(), player.identities)
        assert [line.split(":")[0] for line in found if line[0] != " "] == ["realm_usage_daily"]


@pytest.mark.parametrize(
    ("seed", "cells"),
    [(4, 3), *[pytest.param(seed, 2 + seed % 2, marks=pytest.mark.long) for seed in range(20, 26)]],
)
def test_the_books_of_a_front_equal_the_oracles(
    seed: int, cells: int, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """Over cells that close days apart and are restored, and with interrupted jobs of the front."""
    CellsPlayer(
        make_cells_plan(seed, cells=cells, short=True), postgres_server, tmp_path, cells
    ).play()


def test_the_oracle_imports_nothing_of_the_project() -> None:
    tree = ast.parse(Path(oracle.__file__).read_bytes())
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or ".")
    assert {name.partition(".")[0] for name in modules} <= sys.stdlib_module_names
