"""Kills of the delivery at any moment lose no event, and repeat only what was not recorded."""

from accounting.errors import ConnectionLost
from accounting.webhooks.delivery import deliver
from tests.support.books import Books
from tests.support.crash_injection import (
    BACKEND_IS_ALIVE,
    CrashInjector,
    SimulatedCrash,
    crashing_engine,
)
from tests.support.feed_events import numbered_events, post_and_number
from tests.support.servers import wait_until
from tests.support.webhook_endpoints import add_webhook, attempt_rows, taken_events, webhook_row
from tests.support.webhook_receiver import WebhookReceiver


def test_a_delivery_that_is_killed_at_any_moment_delivers_everything_in_order(
    books: Books, receiver: WebhookReceiver
) -> None:
    number, _ = add_webhook(books, receiver, "/crash")
    injector = CrashInjector()
    crash_count, moment = 0, 0
    with crashing_engine(books, injector) as engine:
        while True:
            moment += 1
            post_and_number(books, f"{moment}/a", f"{moment}/b")
            injector.arm(moment)
            try:
                deliver(engine)
            except (SimulatedCrash, ConnectionLost):
                crash_count += 1
            else:
                break
            finally:
                injector.moments_left = 0
            wait_until(lambda: not books.query(BACKEND_IS_ALIVE, [injector.backend_pids]))
            row = webhook_row(books, number)
            recorded = [each["last_seq"] for each in attempt_rows(books, number)]
            assert row["seq"] == (recorded or [0])[-1]  # both or neither
            books.query("UPDATE accounting.webhooks SET leased_until = '-infinity' RETURNING 1")
            deliver(books.engine)
    assert crash_count > 10
    taken = taken_events(receiver, "/crash")
    keys = [key for _, key in numbered_events(books)]
    assert list(dict.fromkeys(taken)) == keys
    assert len(taken) - len(keys) <= crash_count / 2  # only those between 2xx and its commit
    assert [each["last_seq"] for each in attempt_rows(books, number)] == list(
        range(1, len(keys) + 1)
    )
