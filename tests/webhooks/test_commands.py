"""The commands ``webhook``: what they print, refuse, and never print."""

import re
import subprocess
import sys
from typing import Final

import pytest

from accounting.webhooks.delivery import deliver
from tests.support.books import READER, WRITER, Books
from tests.support.command import CommandResult, environment, turn_accounting
from tests.support.feed_events import post_and_number
from tests.support.webhook_endpoints import taken_events, webhook_row
from tests.support.webhook_receiver import WebhookReceiver

ADDED: Final = re.compile(r"(\d+) (whsec_[A-Za-z0-9+/=]{44})\n")
HIDDEN: Final = "a-token-in-the-query"


def webhook(books: Books, *arguments: str, **settings: str) -> CommandResult:
    return turn_accounting("webhook", *arguments, database_url=books.url(WRITER), **settings)


def test_an_endpoint_from_its_beginning_to_its_end(books: Books, receiver: WebhookReceiver) -> None:
    post_and_number(books, "1", "2")
    url = receiver.url(f"/commands?token={HIDDEN}")
    added = webhook(books, "add", url, "--types", "period.closed", "--allow-private")
    match = ADDED.fullmatch(added.out)
    assert match, added
    number, secret = match.groups()
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
    assert re.fullmatch(r"whsec_\S{44}\n", rotated.out)
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
        ("/future", "--since", "2100-01-01"),
    ):  # fmt: skip
        receiver.behave(path, do="answer")
        result = webhook(books, "add", receiver.url(path), "--allow-private", *options)
        assert result.code == 0, result
    assert deliver(books.engine) == 4
    for path in ("/start", "/since"):
        assert taken_events(receiver, path) == ["1", "2"]
    for path in ("/now", "/future"):
        assert taken_events(receiver, path) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("http://billing.example.org/", "expected https"),
        ("ftp://billing.example.org/", "expected https"),
        ("https://user:pass@billing.example.org/", "without a user, a password"),
        ("https://127.0.0.1/", "loopback"),
        ("billing.example.org", "expected https"),
        ("https://billing.example.org/ --types session.end", "expected some of session.ended"),
        ("https://billing.example.org/ --types ,", "expected some of"),
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
        "remove 7", "test 7", "deliveries 7", "replay 7 --after 0", "rotate 7", "enable 7",
    ):  # fmt: skip
        result = webhook(books, *command.split())
        assert (result.code, result.error_line) == (
            2, "there is no webhook 7: there is none yet",
        ), command  # fmt: skip
    assert webhook(books, "replay", "7", "--after", "9").error_line.startswith("--after 9")
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
    assert said == "webhooks need the library httpcore: pip install 'turn-accounting[webhooks]'"
    assert webhook_row(books, 1)["lease"] is None


def test_the_feed_has_the_usage_of_users_while_an_endpoint_asks_for_it(books: Books) -> None:
    counted = "SELECT FROM accounting.metering WHERE counted_from IS NOT NULL"
    url = "https://billing.example.org/"
    assert webhook(books, "add", url).code == 0
    assert books.query(counted) == []
    for _ in range(2):
        assert webhook(books, "add", url, "--types", "usage.counted").code == 0
    assert len(books.query(counted)) == 1
    for number, left in (("2", 1), ("1", 1), ("3", 0)):
        assert webhook(books, "remove", number).code == 0
        assert len(books.query(counted)) == left
