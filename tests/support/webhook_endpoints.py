"""Endpoints of webhooks in books, at a receiver, and what they were sent."""

import json
from collections.abc import Sequence
from typing import Any

from accounting.webhooks.endpoints import add_endpoint
from tests.support.books import Books
from tests.support.webhook_receiver import RecordedRequest, WebhookReceiver


def add_webhook(
    books: Books, receiver: WebhookReceiver, path: str, **arguments: Any
) -> tuple[int, str]:
    """An endpoint that takes everything, with its number and secret; it checks signatures."""
    number, secret = add_endpoint(
        books.engine, url=receiver.url(path), allows_private=True, **arguments
    )
    receiver.behave(path, do="answer", secrets=[secret])
    return number, secret


def events_of(request: RecordedRequest) -> Sequence[str]:
    """The keys of the events that a request has, as ``post_events`` made them."""
    content = json.loads(request.body)
    messages = content if isinstance(content, list) else [content]
    return [message["data"]["period"] for message in messages]


def taken_events(receiver: WebhookReceiver, path: str) -> list[str]:
    """The keys of the events that were taken at a path, in order."""
    requests = [each for each in receiver.requests(path) if each.is_taken]
    return [key for request in requests for key in events_of(request)]


def webhook_row(books: Books, number: int) -> dict[str, Any]:
    (row,) = books.query("SELECT * FROM accounting.webhooks WHERE number = %s", [number])
    return row


def attempt_rows(books: Books, number: int) -> list[dict[str, Any]]:
    return books.query(
        "SELECT first_seq, last_seq, events, taken, status, failure"
        " FROM accounting.webhook_attempts WHERE number = %s ORDER BY attempt_id",
        [number],
    )
