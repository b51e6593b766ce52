"""What is quoted of an answer never has a part of a secret, however it is written."""

import html
import json
from base64 import b64encode
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounting.webhooks.delivery import deliver
from accounting.webhooks.quoting import NOT_QUOTED, quotable, secrets_of_url
from tests.support.books import Books
from tests.support.feed_events import post_and_number
from tests.support.webhook_endpoints import add_webhook, webhook_row
from tests.support.webhook_receiver import WebhookReceiver

KEY = "sk_live/abc+def/123=SECRET&KEY"
FORMS = {
    "as it is": KEY,
    "a part of it": KEY[3:14],
    "json": json.dumps(KEY)[1:-1],
    "json as PHP writes it": KEY.replace("/", "\\/"),
    "json in ASCII": "".join(f"\\u{ord(char):04x}" for char in KEY),
    "percent": quote(KEY),
    "all percent": quote(KEY, safe=""),
    "a form": quote_plus(KEY, safe=""),
    "percent in json": quote(KEY).replace("/", "\\/"),
    "html": html.escape(KEY),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_that_repeats_a_secret_is_not_quoted(form: str) -> None:
    assert quotable(f'{{"error": "no {FORMS[form]}"}}'.encode(), [KEY]) == NOT_QUOTED


@given(st.binary(max_size=200))
def test_any_other_answer_is_quoted_as_it_is(body: bytes) -> None:
    secret = b64encode(b"\xff" * 32).decode()
    if b"/////" not in body:
        assert quotable(body, [secret]) == body


def test_the_query_of_a_url_is_a_secret() -> None:
    url = "https://example.com/a?token=0123456789abcdef&v=1"
    assert secrets_of_url(url) == ["token=0123456789abcdef&v=1", "0123456789abcdef"]
    assert secrets_of_url("https://example.com/a?t=1") == ["t=1"]
    assert secrets_of_url("https://example.com/a") == []


def test_a_receiver_that_repeats_the_query_is_not_quoted(
    books: Books, receiver: WebhookReceiver
) -> None:
    path = "/echo?token=0123456789abcdef"
    number, _ = add_webhook(books, receiver, path)
    receiver.behave(path, do="answer", status=404, body=f"no {path}")
    post_and_number(books, "1")
    deliver(books.engine)
    assert webhook_row(books, number)["last_failure"] == f"HTTP 404: {NOT_QUOTED.decode()}"
