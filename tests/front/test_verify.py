"""`verify` on a front: the books of every cell, and what the front stored of them."""

import psycopg
import pytest

from accounting.errors import UsageError
from accounting.front.peaks.count_peaks import count_peaks
from accounting.front.verify import verify_installation
from tests.support.books import Books
from tests.support.fronts import Front


def found(front: Front, realm: str | None = None) -> list[str]:
    return [
        f"{difference.what} {difference.kind} {difference.column}"
        for difference in verify_installation(front.books.engine, realm)
    ]


def change(books: Books, statement: str) -> None:
    """Change statements as nobody may, as the superuser."""
    trigger = "TRIGGER statements_are_immutable"
    with psycopg.connect(books.url()) as connection:
        connection.execute(f"ALTER TABLE accounting.statements DISABLE {trigger}")
        connection.execute(statement)
        connection.execute(f"ALTER TABLE accounting.statements ENABLE ALWAYS {trigger}")


def test_right_books_are_proved(closed: Front) -> None:
    assert found(closed) == []
    assert found(closed, "example.net") == []
    with pytest.raises(UsageError, match="no realm 'nowhere' is known"):
        found(closed, "nowhere")


def test_a_changed_line_of_the_front_is_found(closed: Front) -> None:
    statement = "UPDATE accounting.statements SET sent_bytes = sent_bytes {} 1"
    change(closed.books, statement.format("+"))
    assert found(closed) == ["statements differs sent_bytes"] * 2
    assert found(closed, "example.net") == ["statements differs sent_bytes"]
    change(closed.books, statement.format("-"))
    assert found(closed) == []


def test_a_changed_line_of_a_cell_is_found_in_the_cell_and_on_the_front(closed: Front) -> None:
    statement = "UPDATE accounting.statements SET sent_bytes = sent_bytes {} 1"
    change(closed.cells["south"], statement.format("+"))
    differences = found(closed)
    assert "statements differs sent_bytes" in differences
    assert any(text.startswith("statements of cell south differs") for text in differences)
    change(closed.cells["south"], statement.format("-"))
    assert found(closed) == []


def test_a_changed_peak_is_found(closed: Front) -> None:
    count_peaks(closed.books.engine)
    assert found(closed) == []
    change = "UPDATE accounting.front_peaks SET peak_sessions = peak_sessions {} 1 RETURNING 1"
    assert closed.books.query(change.format("+"))
    assert set(found(closed)) == {"front_peaks differs realm", "front_peaks differs transport UDP"}
    closed.books.query(change.format("-"))
    assert found(closed) == []
