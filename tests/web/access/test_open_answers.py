"""Answers that take long: who may wait for events, and what ends when a token is revoked."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from http.client import HTTPConnection, HTTPResponse, IncompleteRead
from typing import Final

import psycopg
import pytest
import structlog.testing

from accounting.web.access.tokens import create_token, revoke_token
from accounting.web.api import listing
from accounting.web.api.feed_watch import MOST_WAITERS, PART_WAITERS, TOKEN_WAITERS
from tests.support.access_site import Site
from tests.support.books import WRITER, Books, channel, status_payload
from tests.support.feed_events import post_and_number
from tests.support.servers import wait_until
from tests.support.web_server import WebServer, serving

FEED: Final = "/api/v1/feed"


@contextmanager
def opened(web: WebServer, path: str, token: str, **headers: str) -> Iterator[HTTPResponse]:
    """An answer that is read while it comes."""
    connection = HTTPConnection("127.0.0.1", web.port, timeout=30)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}", **headers})
        yield connection.getresponse()
    finally:
        connection.close()


def stream(web: WebServer, token: str, after: int = 0) -> AbstractContextManager[HTTPResponse]:
    return opened(web, f"{FEED}?after={after}", token, Accept="text/event-stream")


def line_that_begins(response: HTTPResponse, start: bytes) -> bytes:
    while line := response.readline():
        if line.startswith(start):
            return line
    raise AssertionError("the stream ended")


def test_a_user_has_no_feed(site: Site) -> None:
    answer = site.web.get(f"{FEED}?after=0&wait=60", token=site.tokens["user"])
    assert answer.status == 404
    with stream(site.web, site.tokens["user"]) as response:
        assert response.status == 404


def test_waiters_of_one_token_or_of_realms_leave_room_for_those_who_read_all(
    access_books: Books,
) -> None:
    tokens = [create_token(access_books.engine, days=1, realm="example.org")[0] for _ in range(3)]
    worker, _ = create_token(access_books.engine, days=1)
    end = access_books.query("SELECT coalesce(max(seq), 0) AS seq FROM reporting.feed")[0]["seq"]
    with serving(access_books.url(WRITER), log_in=True) as web, ExitStack() as stack:

        def wait(token: str) -> int:
            return stack.enter_context(stream(web, token, end)).status

        with structlog.testing.capture_logs() as events:
            assert [wait(tokens[0]) for _ in range(TOKEN_WAITERS + 1)] == [
                *[200] * TOKEN_WAITERS,
                429,
            ]
            assert [wait(tokens[1]) for _ in range(TOKEN_WAITERS)] == [200] * TOKEN_WAITERS
            assert 2 * TOKEN_WAITERS == PART_WAITERS < MOST_WAITERS
            refused = web.get(f"{FEED}?after={end}&wait=1", token=tokens[2])
            assert refused.status == 503
            assert int(refused.headers["retry-after"]) > 0
            assert wait(worker) == 200
        assert [event for event in events if event["log_level"] == "error"] == []


def test_a_stream_ends_when_its_token_is_revoked(books: Books) -> None:
    post_and_number(books, "a")
    token, row = create_token(books.engine, days=1)
    with serving(books.url(WRITER), log_in=True) as web, stream(web, token) as response:
        assert json.loads(line_that_begins(response, b"data: ")[6:])["seq"] == 1
        revoke_token(books.engine, row["number"])
        post_and_number(books, "b")
        assert line_that_begins(response, b"event: ") == b"event: problem\n"
        assert json.loads(line_that_begins(response, b"data: ")[6:])["status"] == 401
        assert response.read().strip() == b""


def test_a_long_poll_ends_when_its_token_is_revoked(books: Books) -> None:
    token, row = create_token(books.engine, days=1)
    with serving(books.url(WRITER), log_in=True) as web, ThreadPoolExecutor() as pool:
        waiting = pool.submit(web.get, f"{FEED}?wait=30", token=token)
        wait_until(lambda: (watch := getattr(web.app.state, "feed_watch", None)) and watch.waiting)
        revoke_token(books.engine, row["number"])
        post_and_number(books, "a")
        answer = waiting.result()
    assert answer.status == 401
    assert "period.closed" not in answer.text


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_streamed_list_is_cut_when_its_token_is_revoked(
    books: Books, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """Its first items wait here for a lock, and the token is revoked meanwhile."""
    monkeypatch.setattr(listing, "STREAMED_ROWS", 1)
    for number in (1, 2, 3):
        books.receive(number, channel("status", allocation=number), status_payload("new"))
    books.advance_clock(60)
    books.run_jobs()
    token, row = create_token(books.engine, days=1)
    with (
        serving(books.url(WRITER), log_in=True) as web,
        psycopg.connect(books.url()) as locker,
        ThreadPoolExecutor() as pool,
        structlog.testing.capture_logs() as events,
    ):
        locker.execute("LOCK TABLE accounting.sessions")

        def read() -> bytes:
            with opened(web, f"/api/v1/sessions?format={form}", token) as response:
                assert response.status == 200
                with pytest.raises(IncompleteRead) as cut:
                    response.read()
                return bytes(cut.value.partial)

        reading = pool.submit(read)
        wait_until(
            lambda: (
                books.query(
                    "SELECT FROM pg_locks WHERE NOT granted AND relation = 'accounting.sessions'"
                    "::regclass"
                )
                != []
            )
        )
        revoke_token(books.engine, row["number"])
        locker.rollback()
        received = reading.result()
    assert received.count(b"\n") == (1 if form == "jsonl" else 2)
    assert "an answer was cut" in [event["event"] for event in events]
