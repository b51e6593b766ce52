"""Whom an engine bills: the table of an endpoint, and its template."""

from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text

from accounting.billing.close_period import close_periods
from accounting.errors import UsageError
from accounting.feed.number_feed import number_feed
from accounting.feed.reader import FeedEvent
from accounting.identities.erase import erase
from accounting.webhooks.customers import (
    CustomerChanges,
    list_customers,
    read_event_customers,
    set_customers,
)
from accounting.webhooks.delivery import deliver
from accounting.webhooks.endpoints import add_endpoint, remove_endpoint
from accounting.webhooks.formats.metering import EventCustomer
from accounting.webhooks.formats.options import METERING_TYPES
from tests.support.billing_scenarios import close_november
from tests.support.books import WRITER, Books
from tests.support.command import turn_accounting
from tests.support.metering_engines import API_KEY, StripeServer
from tests.support.metering_events import counters, feed_event

HEADING = "realm,user,customer"
HOUR = datetime(2026, 11, 2, 12, tzinfo=UTC)
NOVEMBER_ENDS_AT = datetime(2026, 12, 1, tzinfo=UTC)


def lago_endpoint(books: Books) -> int:
    number, _ = add_endpoint(
        books.engine, url="https://lago.example.com/x", format="lago", customers=[HEADING]
    )
    return number


def keys_by_user(books: Books) -> dict[str, UUID]:
    return {row["user_id"]: row["user_key"] for row in books.rows("sessions")}


def usage_of(seq: int, key: UUID, hour: datetime = HOUR) -> FeedEvent:
    payload = {"user_key": str(key), "starts_at": hour.isoformat(), **counters(1, 1)}
    return feed_event(seq, "usage.counted", payload, HOUR, "example.org")


def customers(
    books: Books, number: int, *events: FeedEvent, template: str | None = None
) -> list[EventCustomer]:
    with books.engine.connect() as connection:
        by_id = read_event_customers(connection, number, events, template)
    return [by_id[event.event_id] for event in events]


def test_a_row_comes_before_the_template_and_neither_is_a_reason(november_books: Books) -> None:
    assert close_periods(november_books.engine) == 0
    keys = keys_by_user(november_books)
    events = [usage_of(1, keys["alice"]), usage_of(2, keys["bob"], NOVEMBER_ENDS_AT)]
    number, other = lago_endpoint(november_books), lago_endpoint(november_books)
    lines = ["realm,user,customer", "example.org,alice,cus_a", 'example.org,"later, much",cus_l']
    assert set_customers(november_books.engine, number, lines) == CustomerChanges(
        set=2, removed=0, unknown=1
    )
    alice, bob = customers(november_books, number, *events)
    assert alice == EventCustomer(customer="cus_a", period_ends_at=NOVEMBER_ENDS_AT)
    assert (bob.customer, bob.reason) == (
        None, f"the user is not in the table of customers (user_key {keys['bob']})",
    )  # fmt: skip
    template = "{realm}/{user}/{user_key}"
    alice, bob = customers(november_books, number, *events, template=template)
    assert (alice.customer, bob.customer) == ("cus_a", f"example.org/bob/{keys['bob']}")
    assert customers(november_books, other, events[0])[0].customer is None
    erase(november_books.engine, "example.org", "alice")
    alice, _ = customers(november_books, number, *events, template="{user}")
    assert alice.customer is None
    assert alice.reason.startswith("the user has no name, and is not in the table")
    (later,) = list_customers(november_books.engine, number)
    assert later["customer"] == "cus_l"
    changes = set_customers(
        november_books.engine,
        number,
        ["customer,user_key", f"cus_x,{keys['bob']}", f",{later['user_key']}"],
    )
    assert changes == CustomerChanges(set=1, removed=1, unknown=0)
    remove_endpoint(november_books.engine, number)
    assert november_books.query("SELECT FROM accounting.webhook_customers") == []


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["user,customer"], "line 1: expected the columns realm,user,customer or user_key"),
        ([], "line 1: expected the columns"),
        (["realm,user,customer", "a,b,c", "a,b"], "line 3: expected 3 values"),
        (["realm,user,customer", "a,b,c,d"], "line 2: expected 3 values"),
        (["realm,user,customer", "a,b,c", "a,b,d"], "line 3: the same user as in line 2"),
        (["user_key,customer", "x\x1b,c"], r"line 2: 'x\x1b' is not a user_key"),
        (["realm,user,customer", "a,b, c"], "line 2: ' c': expected a customer of at most 200"),
        (["realm,user,customer", "a,b," + "c" * 201], "expected a customer of at most 200"),
        (["realm,user,customer", 'a,b,"c'], "not CSV"),
    ],
)
def test_a_wrong_line_changes_nothing(books: Books, lines: list[str], words: str) -> None:
    number = lago_endpoint(books)
    with pytest.raises(UsageError) as error:
        set_customers(books.engine, number, [line + "\n" for line in lines])
    assert words in str(error.value)
    assert list_customers(books.engine, number) == []


def test_the_command_sets_and_prints_the_table(november_books: Books, tmp_path: Path) -> None:
    number = str(lago_endpoint(november_books))
    file = tmp_path / "customers.csv"
    file.write_text("\ufeffrealm,user,customer\r\nexample.org,bob,cus_b\r\n")
    url = november_books.url(WRITER)
    done = turn_accounting("webhook", "customers", number, str(file), database_url=url)
    assert (done.code, done.err) == (0, "turn-accounting: 1 customer set, 0 removed\n")
    printed = turn_accounting("webhook", "customers", number, database_url=url)
    key = keys_by_user(november_books)["bob"]
    assert printed.out == f"realm,user,user_key,customer\nexample.org,bob,{key},cus_b\n"
    unused = "realm,user,customer\nexample.org,later,+491\n"
    file.write_text(unused)
    assert turn_accounting("webhook", "customers", number, str(file), database_url=url).code == 0
    before = turn_accounting("webhook", "customers", number, database_url=url).out
    file.write_text(before)
    again = turn_accounting("webhook", "customers", number, str(file), database_url=url)
    assert again.error_line.startswith("2 customers set, 0 removed"), again
    assert turn_accounting("webhook", "customers", number, database_url=url).out == before
    file.write_text(before.replace(",bob,", ",alice,"))
    mixed = turn_accounting("webhook", "customers", number, str(file), database_url=url)
    assert "the user_key is not that of 'alice' in 'example.org'" in mixed.error_line
    assert turn_accounting("webhook", "add", "https://a.example.com/", database_url=url).code == 0
    for arguments in (("2",), ("2", str(file))):
        refused = turn_accounting("webhook", "customers", *arguments, database_url=url)
        assert refused.error_line == "webhook 2 has no customers: its format standard bills nobody"
    for arguments in (("99",), (number, str(tmp_path / "none.csv"))):
        refused = turn_accounting("webhook", "customers", *arguments, database_url=url)
        assert refused.code == 2
        assert refused.error_line


def test_one_command_adds_an_engine(books: Books, tmp_path: Path) -> None:
    """Its key is in no argument and no output, and the feed has usage from then on."""
    key = tmp_path / "key"
    key.write_text(f"{API_KEY}\n")
    url = books.url(WRITER)
    with StripeServer(HOUR) as stripe:
        server_url = stripe.url.removesuffix(stripe.path)
        arguments = ("add", server_url, "--format", "stripe", "--allow-private", "--from-start")
        added = turn_accounting(
            "webhook", *arguments, "--key-file", str(key), "--customer", "{user}",
            "--invoice-grace", "72h", database_url=url,
        )  # fmt: skip
        assert (added.code, added.out) == (0, "")
        assert "it bills all usage" in added.error_line
        assert "it counts again, if that was more than 24 hours ago" in added.error_line
        assert API_KEY not in added.err
        close_november(books)
        number_feed(books.engine)
        (row,) = books.query("SELECT accounting.database_now() AS now")
        stripe.now = row["now"]
        assert deliver(books.engine) == 2
        assert stripe.sums() == {("alice", "2026-11"): 300, ("bob", "2026-11"): 1100}
    listed = turn_accounting("webhook", "list", "--json", database_url=url)
    assert API_KEY not in listed.out
    (webhook,) = listed.rows
    assert (webhook["url"], webhook["types"]) == (stripe.url, list(METERING_TYPES))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--format", "stripe"), "expected a file with the API key of stripe"),
        (("--format", "standard", "--key-file", "/dev/null"), "standard has no API key"),
        (("--format", "lago", "--key-file", "/dev/null"), "expected an API key and nothing else"),
        (("--format", "lago", "--key-file", "/none"), "No such file"),
        (("--format", "xml"), "expected standard, cloudevents, openmeter, lago or stripe"),
        (("--format", "lago", "--value", "x"), "--value 'x': expected bytes, received_bytes"),
        (
            ("--format", "lago", "--key-file", "KEY", "--types", "period.closed"),
            "usage.counted and",
        ),
        (
            ("--format", "lago", "--key-file", "KEY"),
            "expected --customer TEMPLATE, --customers FILE",
        ),
        (
            ("--format", "lago", "--key-file", "KEY", "--customers", "KEY"),
            "line 1: expected the col",
        ),
        (("--format", "standard", "--customers", "KEY"), "--customers: standard bills nobody"),
        (("--format", "stripe", "--invoice-grace", "soon"), "--invoice-grace 'soon'"),
    ],
)
def test_a_wrong_option_adds_nothing(
    books: Books, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "KEY").write_text(f"{API_KEY}\n")
    result = turn_accounting(
        "webhook", "add", "https://engine.example.com",
        *(str(tmp_path / word) if word == "KEY" else word for word in arguments),
        database_url=books.url(WRITER),
    )  # fmt: skip
    assert result.code == 2
    assert words in result.error_line
    assert books.query("SELECT FROM accounting.webhooks") == []


def test_erasing_a_user_erases_what_engines_answered_about_them(books: Books) -> None:
    number = lago_endpoint(books)
    close_november(books)
    number_feed(books.engine)
    keys = keys_by_user(books)
    values = {"number": number, "alice": str(keys["alice"]), "bob": str(keys["bob"])}
    with books.engine.begin() as connection:
        for statement in (
            (
                "INSERT INTO accounting.webhook_refusals"
                # Under other numbers than the feed has them, as after its restore.
                " SELECT :number, event_id, seq + 1, type, 'Lago: no customer alice', created_at"
                " FROM reporting.feed WHERE payload ->> 'user_key' IN (:alice, :bob)"
                " UNION ALL SELECT :number, gen_random_uuid(), 99, '', 'Lago: alice', now()"
            ),
            (
                "INSERT INTO accounting.webhook_attempts (number, attempted_at, first_seq,"
                " last_seq, events, taken, status, failure, seconds, seq)"
                " VALUES (:number, now(), 1, 1, 1, 0, 422, 'HTTP 422: no customer alice', 1, 0)"
            ),
            (
                "UPDATE accounting.webhooks SET last_failure = 'HTTP 422: no customer alice',"
                " disabled_at = now(), disabled_cause = 'failing',"
                " disabled_reason = '5 days: HTTP 422: no customer alice'"
            ),
        ):
            connection.execute(text(statement), values)
    erase(books.engine, "example.org", "alice")
    refusals = books.query(
        "SELECT r.reason, f.payload ->> 'user_key' AS user_key FROM accounting.webhook_refusals r"
        " LEFT JOIN reporting.feed f USING (event_id)"
    )
    assert {(row["user_key"], row["reason"]) for row in refusals} == {
        (None, "Lago: (erased)"),  # the feed has no such event
        (values["alice"], "Lago: (erased)"),
        (values["bob"], "Lago: no customer alice"),  # an answer about another user
    }
    assert books.query("SELECT failure FROM accounting.webhook_attempts") == [
        {"failure": "HTTP 422"}
    ]
    assert books.query("SELECT last_failure, disabled_reason FROM accounting.webhooks") == [
        {"last_failure": "HTTP 422", "disabled_reason": "5 days: HTTP 422"}
    ]
