"""The formats for any receiver: Standard Webhooks' payload and CloudEvents 1.0."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http
from cloudevents.core.formats.json import JSONFormat
from hypothesis import given
from hypothesis import strategies as st

from accounting.billing.close_period import close_periods
from accounting.errors import UsageError
from accounting.feed.number_feed import number_feed
from accounting.feed.reader import FeedEvent
from accounting.webhooks.formats import endpoint_url, make_format
from accounting.webhooks.formats.cloudevents import CloudEventsFormat, header_value
from accounting.webhooks.formats.options import (
    CloudEventsMode,
    FormatName,
    FormatOptions,
    MeterValue,
    Unit,
)
from accounting.webhooks.formats.standard import StandardFormat
from accounting.webhooks.message import Outcome, Request, Response
from tests.support.billing_scenarios import credit_test_call
from tests.support.books import READER, Books
from tests.support.command import turn_accounting
from tests.support.metering_events import SOURCE, feed_event, hour_counted, user_key

NOW = datetime(2026, 12, 1, 3, tzinfo=UTC)
URL = "https://hooks.example.com/usage"


def session_ended(seq: int, realm: str = "example.org") -> FeedEvent:
    payload = {
        "session_id": "5b0b8c2e-4be1-4d6f-8bd1-000000000001",
        "user_key": user_key("alice"),
        "ended_at": "2026-11-03T09:30:00.250000+00:00",
    }
    return feed_event(seq, "session.ended", payload, NOW, realm)


def period_closed(seq: int, realm: str) -> FeedEvent:
    return feed_event(seq, "period.closed", {"period": "2026-11-01"}, NOW, realm)


def requests(format_: Any, *events: FeedEvent) -> list[Request]:
    made = list(format_.requests(events, NOW))
    assert all(isinstance(item, Request) for item in made)
    return made


def parsed(request: Request) -> Any:
    """The events of a request, as the CloudEvents library of PyPI reads and validates them."""
    headers = {name.lower(): value for name, value in request.headers.items()}
    message = HTTPMessage(headers=headers, body=request.body)
    if headers["content-type"] == "application/cloudevents-batch+json":
        return [JSONFormat().read(None, json.dumps(item)) for item in json.loads(request.body)]
    return [from_http(message, JSONFormat())]


def test_a_standard_webhook_says_type_time_and_data_under_the_events_id() -> None:
    event = session_ended(7)
    (request,) = requests(StandardFormat(url=URL), event)
    assert request.headers == {
        "Content-Type": "application/json",
        "webhook-id": str(event.event_id),
    }
    assert json.loads(request.body) == {
        "id": str(event.event_id),
        "type": "session.ended",
        "timestamp": "2026-11-03T09:30:00.250000+00:00",
        "data": {"realm": "example.org", **event.payload},
    }
    assert (request.url, list(request.events)) == (URL, [event])


def test_batches_are_arrays_in_order_and_no_two_have_the_same_id() -> None:
    events = [session_ended(seq) for seq in range(1, 6)]
    first, second, last = requests(StandardFormat(url=URL, batch_size=2), *events)
    bodies = [json.loads(request.body) for request in (first, second, last)]
    ids = [[message["id"] for message in body] for body in bodies]
    assert ids == [[str(event.event_id) for event in events[i : i + 2]] for i in (0, 2, 4)]
    longer = requests(StandardFormat(url=URL, batch_size=3), *events)
    message_ids = {request.headers["webhook-id"] for request in (first, second, last, *longer)}
    assert len(message_ids) == 5


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        (Response(status=204, body=b""), Outcome(taken=2)),
        (Response(status=302, body=b""), Outcome(taken=0, failure="HTTP 302")),
        (Response(status=500, body=b"a\x1b[0m\n b"),
         Outcome(taken=0, failure=r"HTTP 500: a\x1b[0m\n b")),
        (Response(status=500, body=b"x" * 9999),
         Outcome(taken=0, failure="HTTP 500: " + "x" * 297 + "...")),
    ],
)  # fmt: skip
def test_only_a_2xx_takes_the_events(response: Response, outcome: Outcome) -> None:
    events = [session_ended(1), session_ended(2)]
    for format_ in (
        StandardFormat(url=URL, batch_size=5),
        CloudEventsFormat(url=URL, source=SOURCE, batch_size=5),
    ):
        (request,) = requests(format_, *events)
        assert format_.outcome(request, response) == outcome


@pytest.mark.parametrize("mode", CloudEventsMode)
def test_the_cloudevents_library_reads_what_is_sent(mode: CloudEventsMode) -> None:
    events = [
        session_ended(1),
        hour_counted(2, "alice", 5),
        period_closed(3, 'r\u00e9alm \u20ac\U0001f600\n"%41'),
        feed_event(4, "webhook.disabled", {"webhook": 3}, NOW, ""),
        feed_event(5, "limit.reached", {"user_key": None}, NOW, ""),
    ]
    read = [
        event
        for request in requests(CloudEventsFormat(url=URL, source=SOURCE, mode=mode), *events)
        for event in parsed(request)
    ]
    assert [event.get_id() for event in read] == [str(event.event_id) for event in events]
    assert {event.get_source() for event in read} == {SOURCE}
    assert [event.get_type() for event in read] == [f"turn-accounting.{e.type}" for e in events]
    assert [event.get_subject() for event in read] == [
        "5b0b8c2e-4be1-4d6f-8bd1-000000000001",
        user_key("alice"),
        'r\u00e9alm \u20ac\U0001f600\\n"%41/2026-11-01',
        "3",
        None,
    ]
    assert [event.get_time() for event in read] == [
        datetime(2026, 11, 3, 9, 30, 0, 250000, tzinfo=UTC),
        datetime(2026, 11, 3, 9, tzinfo=UTC),
        NOW,
        NOW,
        NOW,
    ]
    assert [event.get_data() for event in read] == [
        {"realm": event.realm, **event.payload} for event in events
    ]


def test_a_batch_of_cloudevents_is_read_whole_and_in_order() -> None:
    events = [session_ended(seq) for seq in range(1, 4)]
    (request,) = requests(CloudEventsFormat(url=URL, source=SOURCE, batch_size=3), *events)
    assert [event.get_id() for event in parsed(request)] == [str(e.event_id) for e in events]


@given(st.text())
def test_any_text_is_one_header_of_printable_ascii(text: str) -> None:
    value = header_value(text.encode(errors="replace").decode())
    assert all("!" <= char <= "~" and char != '"' for char in value)
    read = from_http(
        HTTPMessage(
            headers={
                "ce-specversion": "1.0",
                "ce-id": "1",
                "ce-source": "x",
                "ce-type": "y",
                "ce-name": value,
            },
            body=b"",
        ),
        JSONFormat(),
    )
    assert read.get_extension("name") == text.encode(errors="replace").decode()


def test_the_feed_is_printed_as_cloudevents(november_books: Books) -> None:
    credit_test_call(november_books)
    assert close_periods(november_books.engine) == 0
    number_feed(november_books.engine)
    result = turn_accounting(
        "feed", "--format", "cloudevents", database_url=november_books.url(READER)
    )
    assert (result.code, result.err) == (0, "")
    events = [
        JSONFormat().read(None, line)
        for line in result.out.splitlines()
    ]  # fmt: skip
    rows = november_books.rows("feed")
    assert [event.get_id() for event in events] == [str(row["event_id"]) for row in rows]
    assert [event.get_type() for event in events] == [
        f"turn-accounting.{row['type']}" for row in rows
    ]
    assert {event.get_source() for event in events} == {
        row["feed_source"] for row in november_books.query("SELECT reporting.feed_source()")
    }


def test_the_source_names_the_installation_and_not_its_key(books: Books) -> None:
    (row,) = books.query(
        "SELECT reporting.feed_source(), encode(identity_key, 'hex') AS key"
        " FROM accounting.installation"
    )
    name = row["feed_source"].removeprefix("urn:uuid:")
    assert len(name) == 36
    assert name.replace("-", "")[:8] not in row["key"]
    books.query("UPDATE accounting.installation SET identity_key = sha256('x') RETURNING 1")
    assert books.query("SELECT reporting.feed_source()") != [{"feed_source": row["feed_source"]}]


@pytest.mark.parametrize(
    ("name", "options", "batch_size", "words"),
    [
        ("standard", {"meter": "x"}, 1, "--meter: standard counts nothing"),
        ("cloudevents", {"mode": CloudEventsMode.BINARY}, 2, "only for one event at a time"),
        ("standard", {"mode": CloudEventsMode.BINARY}, 1, "only cloudevents has it"),
        ("lago", {}, 101, "--batch 101: lago takes 1 to 100 events"),
        ("stripe", {}, 2, "--batch 2: stripe takes 1 to 1 events"),
        ("stripe", {"unit": Unit.GB}, 1, "divide_by"),
        ("lago", {"unit": Unit.MB, "value": MeterValue.SESSIONS}, 1, "sessions is not in bytes"),
        ("openmeter", {"meter": ""}, 1, "--meter"),
        ("openmeter", {"customer": "{name}"}, 1, "only {realm}, {user}, {user_key} in braces"),
        ("openmeter", {"customer": "{user"}, 1, "only {realm}, {user}, {user_key} in braces"),
        ("openmeter", {"customer": ""}, 1, "in braces"),
    ],
)
def test_options_that_a_format_does_not_have_are_refused(
    name: str, options: dict[str, Any], batch_size: int, words: str
) -> None:
    with pytest.raises(UsageError) as error:
        FormatOptions(**options).check(FormatName(name), batch_size)
    assert words in str(error.value)


def test_options_survive_the_database() -> None:
    for options in (
        FormatOptions(),
        FormatOptions(
            mode=CloudEventsMode.BINARY,
            meter="m",
            value=MeterValue.SESSION_SECONDS,
            unit=Unit.GB,
            customer="{user}",
            invoice_grace_seconds=5,
        ),
    ):
        stored = json.loads(json.dumps(options.to_json()))
        assert FormatOptions.from_json(stored) == options
    assert FormatOptions().to_json() == {}


@pytest.mark.parametrize("name", FormatName)
def test_every_format_is_made_and_knows_its_path(name: FormatName) -> None:
    options = FormatOptions()
    options.check(name, name.default_batch)
    url = endpoint_url(name, "https://engine.example.com")
    assert (url == "https://engine.example.com") != name.is_metering
    assert endpoint_url(name, "https://engine.example.com/own/path").endswith("/own/path")
    format_ = make_format(name, url=url, options=options, batch_size=1, source=SOURCE, customers={})
    assert list(format_.requests([], NOW)) == []
