"""The server in an address: Python and the database have the same rule."""

import psycopg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from accounting.domain.server_host import server_host
from tests.support.books import Books


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("192.0.2.1:3478", "192.0.2.1"),
        ("192.0.2.1", "192.0.2.1"),
        ("[2001:db8::1]:5349", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("", ""),
        (None, ""),
    ],
)
def test_the_port_is_cut_off(address: str | None, host: str) -> None:
    assert server_host(address) == host


def test_the_database_has_the_same_rule_for_any_text(shared_books: Books) -> None:
    """Any publisher can send any text of ASCII as an address."""
    with psycopg.connect(shared_books.url()) as connection:

        @example("x:y:")
        @example("[::1")
        @example(":")
        @given(st.text(alphabet="[]:a1.", max_size=12))
        def check(address: str) -> None:
            row = connection.execute("SELECT accounting.server_host(%s)", (address,)).fetchone()
            assert row == (server_host(address),)

        check()
