"""Books in one database that each test empties; a clone for each test would take longer."""

import pytest

from tests.support.books import Books


@pytest.fixture
def books(shared_books: Books) -> Books:
    return shared_books
