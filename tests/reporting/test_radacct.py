"""``radacct`` has FreeRADIUS' values: addresses by address, and a name for each user."""

import csv
import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import errors

from accounting.domain.identity import RadacctUsername
from accounting.errors import UsageError
from accounting.identities.erase import erase
from accounting.identities.radacct_names import set_radacct_username
from tests.support.books import READER, Books
from tests.support.coturn_messages import FakeAllocation
from tests.support.servers import PostgresServer

RADACCT_DOC: Final = Path(__file__).resolve().parents[2] / "docs/radacct.md"
USER, USER_AT_REALM = RadacctUsername.USER, RadacctUsername.USER_AT_REALM
PARSE: Final = (
    "SELECT host(accounting.ip_address(t)), accounting.ip_port(t) FROM unnest(%s::text[]) t"
)
TEXT: Final = st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=60)


@pytest.fixture
def books(shared_books: Books) -> Books:
    return shared_books


def receive(books: Books, *users: tuple[str, str], server_address: str | None = None) -> None:
    """One session of each (user, realm), two seconds long, of which the last stays open."""
    for number, (user, realm) in enumerate(users, start=1):
        allocation = FakeAllocation(
            books, user=user, realm=realm, allocation=number, server_address=server_address
        )
        allocation.new(number)
        if number < len(users):
            allocation.close(number + 2, (1, 100, 1, 50), (0, 0, 0, 0))
    books.advance_clock(10)
    books.run_jobs()


def names(books: Books) -> list[str]:
    return [row["username"] for row in books.rows("radacct", "username", order="acctstarttime")]


def set_addresses(books: Books, client: str | None, server: str | None) -> None:
    books.query(
        "UPDATE accounting.sessions SET client_address = %s, server_address = %s RETURNING 1",
        [client, server],
    )


def parsed(server: PostgresServer, texts: Sequence[str]) -> list[tuple[Any, ...]]:
    with psycopg.connect(server.url(database="accounting_template")) as connection:
        return connection.execute(PARSE, [list(texts)]).fetchall()


@pytest.mark.parametrize(
    ("client", "address", "port", "station"),
    [
        ("198.51.100.7:50000", "198.51.100.7", 50000, "198.51.100.7"),
        ("[2001:db8::7]:50000", "2001:db8::7", 50000, "2001:db8::7"),
        ("[fe80::7%eth0]:50000", "fe80::7", 50000, "fe80::7"),
        ("198.51.100.7", "198.51.100.7", None, "198.51.100.7"),
        ("2001:db8::7", "2001:db8::7", None, "2001:db8::7"),
        ("198.51.100.0/24", "198.51.100.0/24", None, "198.51.100.0/24"),
        ("2001:db8::/48", "2001:db8::/48", None, "2001:db8::/48"),
        ("somewhere", None, None, "somewhere"),
        ("", None, None, ""),
        (None, None, None, ""),
    ],
)
def test_a_client_address_is_an_inet_and_a_port(
    books: Books, client: str | None, address: str | None, port: int | None, station: str
) -> None:
    receive(books, ("alice", "example.org"))
    set_addresses(books, client, "192.0.2.1:3478")
    columns = "abbrev(framedipaddress) AS a", "clientport", "callingstationid"
    [row] = books.rows("radacct", *columns, "abbrev(framedipv6address) AS v6")
    assert row == {
        "a": address, "clientport": port, "callingstationid": station,
        "v6": address if address and ":" in address else None,
    }  # fmt: skip
    if address is not None:
        [row] = books.query(
            "SELECT count(*) FROM reporting.radacct WHERE framedipaddress = %s", [address]
        )
        assert row["count"] == 1


@pytest.mark.parametrize(
    ("server", "nas", "port", "station"),
    [
        ("192.0.2.1:3478", "192.0.2.1", 3478, "192.0.2.1"),
        ("[2001:db8::1]:5349", "2001:db8::1", 5349, "2001:db8::1"),
        ("turn-1", "0.0.0.0", None, "turn-1"),  # noqa: S104
        (None, "0.0.0.0", None, ""),  # noqa: S104
    ],
)
def test_a_server_that_is_not_known_is_0_0_0_0_as_freeradius_writes_it(
    books: Books, server: str | None, nas: str, port: int | None, station: str
) -> None:
    receive(books, ("alice", "example.org"))
    set_addresses(books, None, server)
    columns = "host(nasipaddress) AS nas", "serverport", "calledstationid"
    assert books.rows("radacct", *columns) == [
        {"nas": nas, "serverport": port, "calledstationid": station}
    ]


def test_a_coturn_that_reports_no_addresses_has_rows(books: Books) -> None:
    receive(books, ("alice", "example.org"))
    [row] = books.rows("radacct", "nasipaddress::text AS nas", "framedipaddress", "clientport")
    assert row == {"nas": "0.0.0.0/32", "framedipaddress": None, "clientport": None}


def test_every_address_of_coturn_is_read(postgres_server: PostgresServer) -> None:
    @settings(max_examples=25)
    @given(st.lists(st.tuples(st.ip_addresses(), st.integers(0, 65_535)), max_size=50))
    def read(addresses: list[tuple[IPv4Address | IPv6Address, int]]) -> None:
        texts = [f"{a}:{port}" if a.version == 4 else f"[{a}]:{port}" for a, port in addresses]
        assert [
            (ip_address(address), port) for address, port in parsed(postgres_server, texts)
        ] == addresses

    read()


def test_no_text_fails_a_query(postgres_server: PostgresServer) -> None:
    pieces = st.sampled_from(
        ["1.2.3.4", "256.1.1.1", "::1", "[", "]", ":", "%e", "/24", "/129", "9"]
    )
    text = TEXT | st.lists(pieces, max_size=6).map("".join)

    @settings(max_examples=25)
    @given(st.lists(text, max_size=50))
    def read(texts: list[str]) -> None:
        for address, port in parsed(postgres_server, texts):
            assert address is None or ip_address(address)
            assert port is None or (address is not None and 0 <= port <= 99_999)

    read()


def test_equal_names_of_two_realms_are_two_names(books: Books) -> None:
    receive(books, ("alice", "example.org"), ("alice", "example.net"), ("alice", ""))
    assert names(books) == ["alice@example.org", "alice@example.net", "alice@"]
    set_radacct_username(books.engine, "example.org", USER)
    assert names(books) == ["alice", "alice@example.net", "alice@"]
    with pytest.raises(UsageError, match="without it already"):
        set_radacct_username(books.engine, "example.net", USER)
    set_radacct_username(books.engine, "example.org", USER)
    set_radacct_username(books.engine, "example.org", USER_AT_REALM)
    set_radacct_username(books.engine, "", USER)
    assert names(books) == ["alice@example.org", "alice@example.net", "alice"]
    with pytest.raises(UsageError, match="is known"):
        set_radacct_username(books.engine, "example.com", USER_AT_REALM)


def test_no_user_has_the_name_of_another(books: Books) -> None:
    """Names and realms with @ and %, also where one realm is not named."""
    users = (
        ("alice", "example.org"), ("alice@example.org", ""), ("alice@example.org", "bare"),
        ("alice", "b@c"), ("alice@b", "c"), ("alice", "b%40c"), ("alice", "bare"), ("alice", ""),
    )  # fmt: skip
    receive(books, *users)
    assert len(set(names(books))) == len(users)
    set_radacct_username(books.engine, "bare", USER)
    assert names(books) == [
        "alice@example.org", "alice@example.org@", "alice@example.org@bare", "alice@b%40c",
        "alice@b@c", "alice@b%2540c", "alice", "alice@",
    ]  # fmt: skip


def test_the_database_lets_one_realm_be_not_named(books: Books) -> None:
    receive(books, ("alice", "example.org"), ("alice", "example.net"))
    with pytest.raises(errors.UniqueViolation, match="one_realm_is_not_named_in_radacct"):
        books.query("UPDATE accounting.realms SET named_in_radacct = false RETURNING 1")


def test_users_that_come_later_are_named_alike(books: Books) -> None:
    receive(books, ("alice", "example.org"))
    set_radacct_username(books.engine, "example.org", USER)
    FakeAllocation(books, user="bob", allocation=7).new(20)
    books.advance_clock(21)
    books.run_jobs()
    assert names(books) == ["alice", "bob"]


def test_an_erased_user_has_no_name_until_it_is_reported_again(books: Books) -> None:
    receive(books, ("alice@home", "example.org"), ("bob", "example.org"))
    set_radacct_username(books.engine, "example.org", USER)
    before = books.rows("radacct", "class", "radacctid", order="acctstarttime")
    erase(books.engine, "example.org", "alice@home")
    assert names(books) == ["@example.org", "bob"]
    assert books.rows("radacct", "class", "radacctid", order="acctstarttime") == before
    erased_at = books.query("SELECT extract(epoch FROM max(erased_at) - %s) AS s"
        " FROM accounting.erasures", [books.start])  # fmt: skip
    later = float(erased_at[0]["s"]) + 60
    FakeAllocation(books, user="alice@home", allocation=9).new(later)
    books.advance_clock(later + 1)
    books.run_jobs()
    assert names(books) == ["alice@home@example.org", "bob", "alice@home@example.org"]


def test_a_session_is_open_until_it_has_a_cause(books: Books) -> None:
    receive(books, ("alice", "example.org"), ("bob", "example.org"))
    columns = (
        "username", "groupname", "realm", "acctterminatecause", "acctsessiontime",
        "acctstoptime IS NULL AS is_open", "acctinputoctets", "acctoutputoctets",
        "acctupdatetime >= acctstarttime AS is_updated",
    )  # fmt: skip
    closed, live = books.rows("radacct", *columns, order="acctstarttime")
    assert closed == {
        "username": "alice@example.org", "groupname": "example.org", "realm": "example.org",
        "acctterminatecause": "User-Request", "acctsessiontime": 2, "is_open": False,
        "acctinputoctets": 100, "acctoutputoctets": 50, "is_updated": True,
    }  # fmt: skip
    assert (live["acctterminatecause"], live["acctsessiontime"], live["is_open"]) == (None, 0, True)


MARIADB_WIDTHS: Final = {
    "acctsessionid": 64, "acctuniqueid": 32, "username": 700, "realm": 160, "nasipaddress": 45,
    "nasportid": 32, "nasporttype": 32, "calledstationid": 50, "callingstationid": 50,
    "acctterminatecause": 32, "servicetype": 32, "framedipaddress": 45, "class": 64,
    "acctstarttime": 19, "acctupdatetime": 19, "acctstoptime": 19,
}  # fmt: skip
"""Of FreeRADIUS' schema, as docs/radacct.md alters it; a datetime has 19 characters."""


def test_the_copy_of_the_docs_fits_freeradius_table_in_mariadb(books: Books) -> None:
    """What MariaDB would cut is lost: a cut acctuniqueid is that of another session."""
    copy = re.search(r"```sql\n(COPY .*?)```", RADACCT_DOC.read_text(), re.DOTALL)
    assert copy is not None
    for number, (user, address) in enumerate(
        (("alice", "192.0.2.1:3478"), ("bob", "[2001:db8:1:2:3:4:5:6]:5349"), ("carol", None)), 1
    ):
        allocation = FakeAllocation(
            books, user=user, allocation=number, server_address=address, transport="TLS/TCP"
        )
        allocation.new(number)
        if user != "bob":
            allocation.close(number + 2, (1, 100, 1, 50), (0, 0, 0, 0))
    books.advance_clock(10)
    books.run_jobs()
    set_ends(books, {"alice": "2 days", "carol": "4 days"})
    with psycopg.connect(books.url(READER)) as connection:
        connection.execute("SET search_path = reporting, public")
        with connection.cursor().copy(copy[1].encode()) as out:
            text = b"".join(bytes(block) for block in out).decode()
    rows = list(csv.DictReader(text.splitlines()))
    assert sorted(row["username"] for row in rows) == ["alice@example.org", "bob@example.org"]
    assert len({row["acctuniqueid"][:32] for row in rows}) == 2
    for row in rows:
        assert {name for name, width in MARIADB_WIDTHS.items() if len(row[name]) > width} == set()


def set_ends(books: Books, ages: dict[str, str]) -> None:
    """Let sessions of users have ended at the beginning of a day, so long ago, after two weeks."""
    for user, age in ages.items():
        books.query(
            "UPDATE accounting.sessions s SET started_at = current_date - interval '14 days',"
            " last_seen_at = current_date - %s::interval, ended_at = current_date - %s::interval"
            " FROM accounting.users u WHERE u.user_key = s.user_key AND u.user_id = %s RETURNING 1",
            [age, age, user],
        )
