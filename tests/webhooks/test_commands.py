"""The commands ``webhook``: what they print, refuse, and never print."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from accounting.feed.number_feed import number_feed
from accounting.feed.outbox import enqueue_event
from accounting.installation import missing_extra
from accounting.webhooks.delivery import deliver
from tests.support.books import READER, WRITER, Books
from tests.support.command import CommandResult, environment, turn_accounting
from tests.support.feed_events import post_and_number
from tests.support.realm_rules import set_realm_rule, set_time_zone
from tests.support.webhook_endpoints import taken_events, webhook_row
from tests.support.webhook_receiver import WebhookReceiver

SECRET: Final = re.compile(r"whsec_[A-Za-z0-9+/=]{44}\n")
HIDDEN: Final = "a-token-in-the-query"


def webhook(books: Books, *arguments: str, **settings: str) -> CommandResult:
    return turn_accounting("webhook", *arguments, database_url=books.url(WRITER), **settings)


def test_an_endpoint_from_its_beginning_to_its_end(books: Books, receiver: WebhookReceiver) -> None:
    post_and_number(books, "1", "2")
    url = receiver.url(f"/commands?token={HIDDEN}")
    added = webhook(books, "add", url, "--types", "period.closed", "--allow-private")
    assert SECRET.fullmatch(added.out), added
    number, secret = "1", added.out.strip()
    assert "webhook 1 is added; " in added.err
    results = [webhook(books, "list"), webhook(books, "list", "--json")]
    assert "/commands?..." in results[0].out
    path = f"/commands?token={HIDDEN}"
    receiver.behave(path, do="answer", status=503, body=f"no: {secret}")
    results.append(refused := webhook(books, "test", number))
    assert (refused.code, refused.out) == (1, "")
    assert "503" in refused.err
    receiver.behave(path, do="answer", secrets=[secret])
    results.append(tested := webhook(books, "test", number))
    assert tested.error_line == f"webhook {number} took the event: it answered 200"
    assert '"webhook.test"' in receiver.requests(path)[-1].body
    assert webhook(books, "replay", number, "--after", "1").code == 0
    assert deliver(books.engine) == 1
    results.append(listed := webhook(books, "deliveries", number, "--json"))
    [attempt] = listed.rows
    assert (attempt["first_seq"], attempt["status"], attempt["taken"]) == (2, 200, 1)
    assert webhook(books, "deliveries", "--failed").out == "Nothing failed in the last 7 days.\n"
    assert webhook(books, "deliveries", "--refused").out == "No event was refused.\n"
    rotated = webhook(books, "rotate", number, "--overlap", "90m")
    assert SECRET.fullmatch(rotated.out)
    assert rotated.out.strip() != secret
    results.append(webhook(books, "enable", number))
    assert webhook(books, "remove", number).code == 0
    assert webhook(books, "list").out == "There are no webhooks yet.\n"
    for result in results:
        for hidden in (secret, rotated.out.strip(), HIDDEN):
            assert hidden not in result.out + result.err


def test_events_of_before_are_delivered_where_they_are_asked_for(
    books: Books, receiver: WebhookReceiver
) -> None:
    books.query("SELECT 1")
    post_and_number(books, "1", "2")
    for path, *options in (
        ("/now",), ("/start", "--from-start"), ("/since", "--since", "1h"),
    ):  # fmt: skip
        receiver.behave(path, do="answer")
        result = webhook(books, "add", receiver.url(path), "--allow-private", *options)
        assert result.code == 0, result
    assert deliver(books.engine) == 4
    for path in ("/start", "/since"):
        assert taken_events(receiver, path) == ["1", "2"]
    assert taken_events(receiver, "/now") == []
    for command in (f"add {receiver.url('/future')} --allow-private", "replay 1"):
        future = webhook(books, *command.split(), "--since", "2100-01-01")
        assert future.error_line == "--since 2100-01-01 00:00 UTC is later than now"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("http://billing.example.org/", "with --allow-private: expected https"),
        ("ftp://billing.example.org/", "expected https"),
        ("https://user:pass@billing.example.org/", "without a user, a password"),
        ("https://10.0.0.1/", "private address: expected a public one, or --allow-private"),
        ("billing.example.org", "expected https"),
        ("https://billing.example.org/ --types session.end", "expected some of session.ended"),
        ("https://billing.example.org/ --types ,", "expected some of"),
        ("https://billing.example.org/ --types session.ended,,", "expected some of"),
        ("https://[::1].example.org/", "its host or port is not valid"),
        ("https://billing.example.org/ --realm nowhere", "no realm 'nowhere' is known"),
        ("https://billing.example.org/ --format xml", "expected standard"),
        ("https://billing.example.org/ --batch 0", "expected 1 or more"),
        ("https://billing.example.org/ --since soon", "--since"),
        ("https://billing.example.org/ --since 1h --from-start", "goes without"),
    ],
)
def test_what_is_wrong_with_an_endpoint_is_said(books: Books, arguments: str, message: str) -> None:
    result = webhook(books, "add", *arguments.split())
    assert result.code == 2
    assert message in result.error_line
    assert "pass" not in result.error_line.replace("password", "")
    assert books.query("SELECT FROM accounting.webhooks") == []


def test_an_unknown_number_is_said_by_every_command(books: Books) -> None:
    for command in (
        "remove 7", "test 7", "deliveries 7", "customers 7",
        "deliveries 7 --refused", "replay 7 --after 0", "rotate 7", "enable 7",
    ):  # fmt: skip
        result = webhook(books, *command.split())
        assert (result.code, result.error_line) == (
            2, "there is no webhook 7: there is none yet",
        ), command  # fmt: skip
    assert webhook(books, "add", "https://billing.example.org/").code == 0
    assert webhook(books, "replay", "1", "--after", "9").error_line.startswith("--after 9")
    assert "one of them" in webhook(books, "replay", "7").error_line


def test_a_reader_sees_nothing_of_webhooks(books: Books) -> None:
    result = turn_accounting("webhook", "list", database_url=books.url(READER))
    assert result.code == 2
    assert "turn_accounting_writer" in result.error_line


WITHOUT_LIBRARIES: Final = """
import sys
from accounting.db.engine import open_engine
from accounting.errors import ConfigurationError
from accounting.ops.registry import JOBS
engine = open_engine(sys.argv[1])
print(JOBS["webhooks"].run(engine), *{"httpcore", "certifi", "standardwebhooks"} & set(sys.modules))
sys.modules["httpcore"] = None
from accounting.webhooks.endpoints import add_endpoint
number, _ = add_endpoint(engine, url="https://billing.example.org/", from_start=True)
try:
    JOBS["webhooks"].run(engine)
except ConfigurationError as error:
    print(error)
"""


def test_without_endpoints_the_job_imports_nothing_and_without_the_extra_it_says_so(
    books: Books,
) -> None:
    post_and_number(books, "1")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LIBRARIES, books.url(WRITER)],
        env=environment({}), capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    idle, said = done.stdout.splitlines()
    assert idle == "0"
    assert said == missing_extra("webhooks need", "httpcore", "webhooks")
    assert webhook_row(books, 1)["lease"] is None


def test_the_number_and_the_secret_are_printed_for_programs(books: Books) -> None:
    added = webhook(books, "add", "https://billing.example.org/", "--json")
    [row] = added.rows
    assert row["number"] == 1
    assert SECRET.fullmatch(row["secret"] + "\n")


def test_a_list_has_what_is_still_to_be_delivered_and_what_fails_now(
    books: Books, receiver: WebhookReceiver
) -> None:
    post_and_number(books, "1", "2")
    added = webhook(
        books, "add", receiver.url("/list"), "--types", "source.trouble,period.closed",
        "--from-start", "--allow-private",
    )  # fmt: skip
    assert added.code == 0
    receiver.behave("/list", do="answer", status=500, secrets=None)
    deliver(books.engine)
    with books.engine.begin() as connection:
        enqueue_event(connection, "adjustment.posted", None, {"period": "3"}, "3")
    number_feed(books.engine)
    [row] = webhook(books, "list", "--json").rows
    assert (row["state"], row["events_behind"], row["delivered_events"]) == ("failing", 2, 0)
    assert "500" in row["last_failure"]
    listed = webhook(books, "list").out
    assert "source.trouble,period.closed" in listed
    assert "[" not in listed
    assert webhook(books, "enable", "1").error_line == "webhook 1 is tried again at once"
    receiver.behave("/list", do="answer", secrets=None)
    assert deliver(books.engine) == 2
    [row] = webhook(books, "list", "--json").rows
    assert (row["state"], row["events_behind"], row["last_failure"]) == ("enabled", 0, None)
    assert webhook(books, "enable", "1").error_line == "webhook 1 was enabled already"


def test_since_is_a_time_in_the_zone_of_the_realm_and_what_it_cuts_is_said(
    november_books: Books, tmp_path: Path
) -> None:
    set_time_zone(november_books, "example.org", "Asia/Kolkata")
    set_realm_rule(november_books, "example.net", time_zone="Asia/Kolkata")
    key = tmp_path / "key"
    key.write_text("key")
    engine = ("--format", "lago", "--key-file", str(key), "--customer", "{user}")
    url = "https://lago.example.com"
    for *options, counted_from, words in (
        ("--realm", "example.net", "--since", "2026-11", "2026-10-31T18:30", "on"),
        ("--since", "2026-11", "2026-11-01T00:00", "on"),
        (
            "--since",
            "2026-11-20",
            "2026-11-20T00:00",
            "a part of 2026-11-01 of realm 'example.org'",
        ),
    ):
        added = webhook(november_books, "add", url, *engine, *options)
        assert (added.code, added.out) == (0, "")
        assert words in added.error_line
        assert ("part" in added.error_line) == ("part" in words)
        *_, row = webhook(november_books, "list", "--json").rows
        assert row["counted_from"].startswith(counted_from)
    assert "expected --key-file" in webhook(november_books, "rotate", "1").error_line
    key.write_text("another-key")
    assert webhook(november_books, "rotate", "1", "--key-file", str(key)).code == 0
    assert webhook_row(november_books, 1)["api_key"] == "another-key"
    assert webhook(november_books, "add", url).code == 0
    refused = webhook(november_books, "rotate", "4", "--key-file", str(key))
    assert "webhook 4 has no API key" in refused.error_line


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_a_url_that_names_this_machine_needs_no_option(books: Books, host: str) -> None:
    added = turn_accounting(
        "webhook", "add", f"http://{host}:9/", "--types", "period.closed",
        database_url=books.url(WRITER),
    )  # fmt: skip
    assert (added.code, added.out.startswith("whsec_")) == (0, True)
