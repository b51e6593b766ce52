"""Names and numbers of sources are unique over the cells of a front."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from accounting.errors import ConfigurationError, UsageError
from accounting.front.join import join_cell
from accounting.front.shared.share import share
from accounting.front.status import cell_problems
from accounting.ingest.source_lease import acquire_lease
from accounting.sources.rename import rename_source
from tests.support.books import Books, cloned_database
from tests.support.fronts import Front, change_identity_key, open_front
from tests.support.servers import PostgresServer


@pytest.fixture
def front(postgres_server: PostgresServer, tmp_path: Path) -> Iterator[Front]:
    with open_front(postgres_server, tmp_path, ("north", "south")) as front:
        yield front


@pytest.fixture
def west(postgres_server: PostgresServer, tmp_path: Path) -> Iterator[Books]:
    """Books that have not joined yet."""
    with cloned_database(postgres_server) as name:
        books = Books(postgres_server, name, tmp_path / "west")
        books.directory.mkdir()
        change_identity_key(books)
        yield books
        books.close()


def collect(books: Books, source: str) -> None:
    """Start a collector as far as that its source is known."""
    acquire_lease(books.engine, books.spool(source), 1)
    books.query("UPDATE accounting.source_leases SET expires_at = now() RETURNING 1")


def add(books: Books, source: str, number: int) -> None:
    """A source as one that came before the cells knew of each other."""
    books.query(
        "INSERT INTO accounting.sources (source, source_id, mode) VALUES (%s, %s, 'auto')"
        " RETURNING 1",
        [source, number],
    )


def test_names_of_other_cells_are_refused_and_their_numbers_skipped(front: Front) -> None:
    north, south = front.cells.values()
    collect(north, "a")
    rename_source(north.engine, "a", "b")
    collect(south, "c")
    assert share(front.books.engine) == 2
    for name in ("a", "b"):
        with pytest.raises(ConfigurationError, match=f"cell 'north' has a source '{name}'"):
            collect(south, name)
        with pytest.raises(UsageError, match=f"cell 'north' has, or had, a source '{name}'"):
            rename_source(south.engine, "c", name)
    assert [row["source"] for row in south.rows("sources")] == ["c"]
    number = front.whole.query("""
        INSERT INTO accounting.sources (source, mode) VALUES ('new', 'auto') RETURNING source_id
    """)[0]["source_id"]
    north.query("UPDATE accounting.sources SET source_id = %s RETURNING 1", [number])
    north.query("UPDATE accounting.former_source_names SET source_id = %s RETURNING 1", [number])
    assert share(front.books.engine) == 1
    collect(south, "new")
    assert south.source_id("new") == number + 1
    share(front.books.engine)
    assert cell_problems(front.books.engine) == []


def test_a_cell_with_a_source_of_another_can_t_join(front: Front, west: Books) -> None:
    collect(front.cells["north"], "a")
    share(front.books.engine)
    west.query(
        "UPDATE accounting.installation SET database_id = gen_random_uuid(), identity_key = %s"
        " RETURNING 1",
        [front.books.query("SELECT identity_key FROM accounting.installation")[0]["identity_key"]],
    )
    for source, number, message in (
        ("a", 7, "its source 'a' has the name of a source of cell 'north'"),
        ("z", front.cells["north"].source_id("a"), "as source 'a' of cell 'north'"),
    ):
        add(west, source, number)
        with pytest.raises(UsageError, match=f"cell 'west': .*{message}"):
            join_cell(front.engine, "west", west.url(), None)
        assert west.query("SELECT FROM accounting.membership") == []
        west.query("DELETE FROM accounting.sources RETURNING 1")
    join_cell(front.engine, "west", west.url(), None)
    with pytest.raises(ConfigurationError, match="cell 'north' has a source 'a'"):
        collect(west, "a")


def test_what_collides_is_a_problem(front: Front) -> None:
    for books in front.cells.values():
        collect(books, "same moment")
    share(front.books.engine)
    assert cell_problems(front.books.engine) == [
        "cell 'north': its source 'same moment' has the name of a source of cell 'south'",
        "cell 'south': its source 'same moment' has the name of a source of cell 'north'",
    ]
    collect(front.cells["south"], "same moment")  # it goes on: what it captures is not lost
