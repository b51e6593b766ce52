"""An endpoint that fails or is disabled is seen: metrics, health, doctor."""

from datetime import UTC, datetime, timedelta

import pytest

from accounting.domain.realm_rules import RealmRule
from accounting.errors import UsageError
from accounting.feed.number_feed import number_feed
from accounting.feed.outbox import enqueue_event
from accounting.identities.realm_queries import add_realm
from accounting.ops.doctor.flow import check_flow
from accounting.ops.monitoring.health import evaluate
from accounting.webhooks.delivery import deliver
from accounting.webhooks.endpoints import enable_endpoint, replay_events
from tests.support.books import Books
from tests.support.feed_events import post_and_number
from tests.support.metering_events import HOUR, hour_counted
from tests.support.monitoring import metrics_of, read_snapshot, settings_for
from tests.support.webhook_endpoints import add_webhook, webhook_row
from tests.support.webhook_receiver import WebhookReceiver

NOON = datetime(2026, 11, 10, 12, tzinfo=UTC)


def test_a_failing_and_a_disabled_endpoint_are_seen_by_number_and_never_by_url(
    books: Books, receiver: WebhookReceiver
) -> None:
    settings_for(books)
    books.set_database_clock(NOON)
    for path, status in (("/fine", 200), ("/failing", 500), ("/off", 410)):
        add_webhook(books, receiver, path)
        receiver.behave(path, do="answer", status=status, secrets=None)
    post_and_number(books, "1", "2")
    deliver(books.engine)
    books.set_database_clock(NOON + timedelta(hours=2))
    snapshot = read_snapshot(books)
    values = {
        (name.removeprefix("turn_accounting_webhook_"), *labels): value
        for (name, *labels), value in metrics_of(snapshot).items()
        if "_webhook_" in name
    }
    assert [values["delivered_events_total", number] for number in "123"] == [2, 0, 0]
    assert [values["events_behind", number] for number in "123"] == [0, 2, 2]
    assert [values["failing_seconds", number] for number in "123"] == [
        0, pytest.approx(7200), pytest.approx(7200),
    ]  # fmt: skip
    assert [values["disabled", number] for number in "123"] == [0, 0, 1]
    warnings = [each for each in evaluate(snapshot, captures=False).warnings if "webhook" in each]
    findings = [each for each in check_flow(snapshot) if each.check == "webhooks"]
    assert len(warnings) == len(findings) == 2
    assert warnings[0].startswith("webhook 2 has taken nothing for 2 h, 2 events behind: ")
    assert warnings[1].startswith("webhook 3 is disabled, 2 events behind: ")
    assert "enable 3" in findings[1].advice
    assert receiver.url("") not in str(snapshot) + str(findings)


@pytest.mark.parametrize(("hours", "is_disabled"), [(23, False), (25, True)])
def test_an_engine_that_forgets_ids_is_not_sent_again_what_it_may_have_counted(
    books: Books, receiver: WebhookReceiver, hours: int, is_disabled: bool
) -> None:
    number, _ = add_webhook(
        books, receiver, "/engine", format="stripe", types=["usage.counted"], api_key="sk-secret",
        options={"customer": "{user_key}"}, from_start=True,
    )  # fmt: skip
    post_and_number(books, "1")
    books.query(
        "UPDATE accounting.webhooks SET in_doubt_since = now() - make_interval(hours => %s)"
        " RETURNING 1",
        [hours],
    )
    assert deliver(books.engine) == 0
    row = webhook_row(books, number)
    assert (row["disabled_at"] is not None) == is_disabled
    assert row["seq"] == (0 if is_disabled else 1)  # there is nothing for it to send
    if is_disabled:
        assert f"webhook replay {number} --after SEQ" in row["disabled_reason"]


def test_a_doubt_lasts_only_where_an_engine_may_have_counted_an_event(
    books: Books, receiver: WebhookReceiver
) -> None:
    """A refusal in words, or no connection, leaves none; an error of the engine or a reset does."""
    number, _ = add_webhook(
        books, receiver, "/doubt", format="stripe", types=["usage.counted"], api_key="sk-secret",
        options={"customer": "{user_key}"}, from_start=True,
    )  # fmt: skip
    books.set_database_clock(HOUR + timedelta(hours=1))
    with books.engine.begin() as connection:
        realm = add_realm(connection, b"example.org", RealmRule())
        event = hour_counted(1, "alice", 5)
        enqueue_event(connection, "usage.counted", realm, event.payload, "1")
    number_feed(books.engine)
    now = HOUR + timedelta(hours=1)
    for behaviour, is_doubted in (
        ({"do": "answer", "status": 401}, False),
        ({"do": "answer", "status": 429}, False),
        ({"do": "answer", "status": 500}, True),
        ({"do": "answer", "status": 401}, True),  # which says nothing of the request before
    ):
        receiver.behave("/doubt", secrets=None, **behaviour)
        assert deliver(books.engine) == 0
        row = webhook_row(books, number)
        assert (row["in_doubt_since"] is not None) == is_doubted, behaviour
        now = row["next_attempt_at"]
        books.set_database_clock(now)
    receiver.behave("/doubt", do="answer", body="{}")
    assert deliver(books.engine) == 1
    assert webhook_row(books, number)["in_doubt_since"] is None
    requests = receiver.requests("/doubt")
    assert {each.headers["authorization"] for each in requests} == {"Bearer sk-secret"}
    (event_id,) = (str(row["event_id"]) for row in books.rows("feed"))
    assert all(event_id in each.body for each in requests)


def test_an_engine_that_may_have_counted_an_event_goes_on_by_a_replay_only(
    books: Books, receiver: WebhookReceiver
) -> None:
    """Also where a pause is cut short: a doubt is as old as the first request that left it."""
    settings_for(books)
    number, _ = add_webhook(
        books, receiver, "/doubt", format="stripe", api_key="sk-secret",
        options={"customer": "{user_key}"}, from_start=True,
    )  # fmt: skip
    began = HOUR + timedelta(hours=1)
    books.set_database_clock(began)
    with books.engine.begin() as connection:
        realm = add_realm(connection, b"example.org", RealmRule())
        event = hour_counted(1, "alice", 5)
        enqueue_event(connection, "usage.counted", realm, event.payload, "1")
    number_feed(books.engine)
    receiver.behave("/doubt", do="answer", status=500, secrets=None)
    deliver(books.engine)
    for hours in (6, 12, 18, 23):
        books.set_database_clock(began + timedelta(hours=hours))
        assert enable_endpoint(books.engine, number) == "failing"
        deliver(books.engine)
        assert webhook_row(books, number)["in_doubt_since"] == pytest.approx(
            began, abs=timedelta(seconds=5)
        )
    sent = len(receiver.requests("/doubt"))
    books.set_database_clock(began + timedelta(hours=25))
    assert enable_endpoint(books.engine, number) == "failing"
    deliver(books.engine)
    assert webhook_row(books, number)["disabled_cause"] == "in_doubt"
    with pytest.raises(UsageError, match=f"webhook replay {number} --after SEQ"):
        enable_endpoint(books.engine, number)
    deliver(books.engine)
    assert len(receiver.requests("/doubt")) == sent
    snapshot = read_snapshot(books)
    [warning] = [each for each in evaluate(snapshot, captures=False).warnings if "webhook" in each]
    assert f"webhook replay {number} --after SEQ" in warning
    assert "enable" not in warning
    replay_events(books.engine, number, after=0)
    deliver(books.engine)
    assert len(receiver.requests("/doubt")) == sent + 1
