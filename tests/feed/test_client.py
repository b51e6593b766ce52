"""The feed client: events in order, at least once; the cursor is the last handled event."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest

from accounting.errors import (
    AccountingError,
    ConfigurationError,
    ConnectionLost,
    LoginRefused,
    NotAllowed,
    UsageError,
)
from accounting.feed.client import ConsumerConflict, Feed
from tests.support.books import READER, WRITER, Books
from tests.support.feed_events import consumer_cursor, post_and_number
from tests.support.password_logins import PasswordLogin, password_login
from tests.support.servers import PostgresServer, wait_until


@pytest.fixture
def feed(books: Books) -> Iterator[Feed]:
    with Feed(books.url(READER)) as feed:
        yield feed


def handle(feed: Feed, consumer: str = "invoicer") -> list[str]:
    return [event.payload["period"] for event in feed.consume(consumer, follow=False)]


def test_a_consumer_gets_each_event_once_in_order(books: Books, feed: Feed) -> None:
    assert handle(feed) == []
    post_and_number(books, "a", "b")
    assert handle(feed) == ["a", "b"]
    assert handle(feed) == []
    post_and_number(books, "c")
    assert handle(feed) == ["c"]
    assert handle(feed, "another") == ["a", "b", "c"]


@pytest.mark.parametrize("commit_every", [1, 3, 100])
def test_an_event_that_a_worker_did_not_finish_is_delivered_again(
    books: Books, feed: Feed, commit_every: int
) -> None:
    post_and_number(books, *"abcdefg")
    seen = []
    events = feed.consume("invoicer", follow=False, commit_every=commit_every)
    with closing(events):
        for event in events:
            seen.append(event.seq)
            if event.seq == 5:
                break
    committed = 4 // commit_every * commit_every
    assert consumer_cursor(books) == committed
    redelivered = [event.seq for event in feed.consume("invoicer", follow=False)]
    assert redelivered == list(range(committed + 1, 8))
    assert sorted({*seen, *redelivered}) == list(range(1, 8))


def test_events_of_other_types_count_as_handled(books: Books, feed: Feed) -> None:
    post_and_number(books, "a", "b")
    assert list(feed.consume("invoicer", types=["adjustment.posted"], follow=False)) == []
    assert consumer_cursor(books) == 2


def test_a_second_worker_of_a_consumer_is_detected(books: Books, feed: Feed) -> None:
    post_and_number(books, "a", "b")
    events = feed.consume("invoicer", follow=False)
    next(events)
    with Feed(books.url(READER)) as other:
        assert handle(other) == ["a", "b"]
    with pytest.raises(ConsumerConflict):
        next(events)


def test_two_workers_of_a_consumer_in_step_are_detected(books: Books, feed: Feed) -> None:
    """Both handle the same event; an equal advance by another worker is not a retry."""
    post_and_number(books, "a")
    with Feed(books.url(READER)) as other:
        ours, theirs = (worker.consume("invoicer", follow=False) for worker in (feed, other))
        assert next(ours).seq == next(theirs).seq == 1
        assert list(ours) == []
        with pytest.raises(ConsumerConflict):
            next(theirs)


def test_retrying_an_advance_succeeds_for_the_same_worker(books: Books, feed: Feed) -> None:
    post_and_number(books, "a", "b")
    assert handle(feed) == ["a", "b"]
    advance = "SELECT reporting.feed_advance('pipe', %s, %s, %s)"
    with psycopg.connect(books.url(READER)) as connection:
        for from_seq, to_seq, worker, advanced in (
            (0, 1, "us", True),
            (1, 2, "us", True),
            (1, 2, "us", True),
            (1, 2, "them", False),
            (0, 1, "us", False),
        ):
            row = connection.execute(advance, (from_seq, to_seq, worker)).fetchone()
            assert row == (advanced,)
    assert consumer_cursor(books, "pipe") == 2


@pytest.mark.parametrize("span", [(2, 1), (0, 3)])
def test_a_cursor_moves_forward_and_not_past_the_end(books: Books, span: tuple[int, int]) -> None:
    post_and_number(books, "a", "b")
    with (
        psycopg.connect(books.url(READER)) as connection,
        pytest.raises(psycopg.errors.InvalidParameterValue),
    ):
        connection.execute("SELECT reporting.feed_advance('invoicer', %s, %s)", span)


def test_a_consumer_belongs_to_the_login_that_used_it_first(books: Books, feed: Feed) -> None:
    handle(feed)
    with Feed(books.url(WRITER)) as other, pytest.raises(NotAllowed, match="invoicer"):
        handle(other)


def test_a_malformed_url_is_refused() -> None:
    with Feed("nonsense of a url") as feed, pytest.raises(ConfigurationError):
        handle(feed)


def test_a_following_worker_is_notified_and_stops(books: Books) -> None:
    seen: list[str] = []

    # The poll is longer than the test: only a NOTIFY can arrive in time.
    with Feed(books.url(READER), poll_seconds=600) as feed:

        def work() -> None:
            seen.extend(event.payload["period"] for event in feed.consume("invoicer"))

        worker = threading.Thread(target=work)
        worker.start()
        for key in ("a", "b", "c"):
            post_and_number(books, key)
            wait_until(lambda key=key: seen[-1:] == [key])  # type: ignore[misc]
        feed.stop()
        worker.join(20)
        assert not worker.is_alive()
    assert seen == ["a", "b", "c"]
    assert consumer_cursor(books) == 3


def test_a_worker_continues_after_its_connection_broke(books: Books, feed: Feed) -> None:
    post_and_number(books, *"abcdef")
    seen = []
    for event in feed.consume("invoicer", follow=False):
        seen.append(event.seq)
        books.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'turn-accounting feed' AND datname = current_database()"
        )
    assert seen == [1, 2, 3, 4, 5, 6]
    assert consumer_cursor(books) == 6


def test_a_worker_with_its_own_cursor_reads_from_any_number(books: Books, feed: Feed) -> None:
    post_and_number(books, "a", "b", "c")
    assert [event.seq for event in feed.read(after=1)] == [2, 3]
    assert books.query("SELECT * FROM accounting.feed_consumers") == []


@pytest.fixture
def login(postgres_server: PostgresServer) -> Iterator[PasswordLogin]:
    with password_login(postgres_server, READER, "right") as login:
        yield login


def test_what_a_retry_can_not_mend_is_raised(
    postgres_server: PostgresServer, books: Books, login: PasswordLogin
) -> None:
    no_role = postgres_server.url("nobody_known", books.name)
    for url, expected in (
        (login.url("wrong", books.name), "password authentication failed"),
        (books.url(READER).replace(books.name, "no_such_books"), "does not exist"),
        (no_role, "does not exist"),
    ):
        with Feed(url) as feed, pytest.raises(LoginRefused, match=expected):
            handle(feed)
    with Feed(login.url("right", books.name)) as feed:
        assert handle(feed) == []
        login.set_password("changed")
        login.end_sessions()
        with pytest.raises(LoginRefused):
            handle(feed)


def test_a_database_without_the_schema_or_the_right_is_raised(
    postgres_server: PostgresServer, books: Books
) -> None:
    with Feed(postgres_server.url()) as feed, pytest.raises(AccountingError, match="schema"):
        handle(feed)
    with psycopg.connect(postgres_server.url(), autocommit=True) as superuser:
        superuser.execute("CREATE ROLE stranger LOGIN")
        try:
            with Feed(books.url("stranger")) as feed, pytest.raises(NotAllowed, match="schema"):
                handle(feed)
        finally:
            superuser.execute("DROP ROLE stranger")
    with Feed(books.url(READER)) as feed, pytest.raises(UsageError):
        handle(feed, "")


def test_a_login_has_a_limited_number_of_consumers_with_short_names(
    books: Books, feed: Feed
) -> None:
    with psycopg.connect(books.url(READER)) as connection:
        connection.execute(
            "SELECT reporting.feed_cursor('c' || number) FROM generate_series(1, 1000) number"
        )
    assert handle(feed, "c1000") == []
    with pytest.raises(UsageError, match="1000 consumers"):
        handle(feed, "c1001")
    with pytest.raises(UsageError, match="1 to 200"), Feed(books.url(WRITER)) as other:
        handle(other, "c" * 201)
    with Feed(books.url(WRITER)) as other:
        assert handle(other, "c1001") == []


def test_a_rotated_password_is_reloaded(books: Books, login: PasswordLogin) -> None:
    post_and_number(books, "a")
    urls = [login.url("second", books.name)]
    with Feed(login.url("right", books.name), reload_url=lambda: urls[0]) as feed:
        assert handle(feed) == ["a"]
        login.set_password("second")
        login.end_sessions()
        post_and_number(books, "b")
        assert handle(feed) == ["b"]
        login.set_password("third")
        login.end_sessions()
        with pytest.raises(LoginRefused):
            handle(feed)


def test_a_server_that_is_away_is_logged_once_and_waited_for(
    books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    post_and_number(books, "a")
    urls = ["postgresql://nobody@127.0.0.1:1/none"]
    with Feed(urls[0], reload_url=lambda: urls[0]) as feed, ThreadPoolExecutor() as threads:
        handled = threads.submit(handle, feed)
        wait_until(lambda: len(caplog.messages) == 1)
        assert caplog.messages[0].startswith("the feed can't be reached, trying again: Postgres: ")
        assert not handled.done()
        urls[0] = books.url(READER)
        assert handled.result(30) == ["a"]
    assert caplog.messages[1:] == ["the feed is reached again"]


def test_notifications_of_a_stranger_change_nothing(books: Books, feed: Feed) -> None:
    """Any login may notify any channel, also with numbers that the feed does not have."""
    post_and_number(books, "a", "b")
    events = feed.consume("invoicer")
    assert next(events).seq == 1
    with psycopg.connect(books.url(READER), autocommit=True) as stranger:
        for payload in ("", "nonsense", "99999999999999999999", "-1", "1"):
            stranger.execute("SELECT pg_notify('accounting_feed', %s)", [payload])
        assert next(events).seq == 2
        stranger.execute(
            "SELECT pg_notify('accounting_feed', n::text) FROM generate_series(1, 500) n"
        )
    post_and_number(books, "c")
    assert next(events).seq == 3
    events.close()
    assert consumer_cursor(books) == 2


def test_a_consumer_is_not_claimed_by_a_transaction_that_does_not_end(books: Books) -> None:
    """A name is nobody's until its first transaction is committed."""
    with psycopg.connect(books.url(WRITER)) as stranger:
        stranger.execute("SELECT reporting.feed_cursor('invoicer')")
        with (
            Feed(books.url(READER), reconnect=False) as feed,
            pytest.raises(ConnectionLost, match="lock timeout"),
        ):
            handle(feed)
        stranger.rollback()
    with Feed(books.url(READER)) as feed:
        assert handle(feed) == []


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT reporting.feed_cursor('invoicer')",
        "SELECT reporting.feed_advance('invoicer', 0, 1, '')",
        "SELECT reporting.feed_advance('invoicer', 2, 0, '')",
        "UPDATE accounting.feed_consumers SET seq = 0",
    ],
)
def test_another_login_can_not_read_or_move_a_cursor(books: Books, statement: str) -> None:
    post_and_number(books, "a", "b")
    with Feed(books.url(WRITER)) as feed:
        handle(feed)
    with (
        psycopg.connect(books.url(READER)) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(statement.encode())
    assert consumer_cursor(books) == 2
