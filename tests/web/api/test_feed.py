"""The feed over HTTP: pages, long poll, server-sent events, and a restored database."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from typing import Any
from uuid import UUID

from accounting.web.api.feed_watch import MOST_WAITERS
from tests.support.api_site import Site, busy_connections
from tests.support.feed_events import numbered_events, post_and_number
from tests.support.servers import wait_until


def test_pages_go_on_where_the_last_one_ended(feed_site: Site) -> None:
    site = feed_site
    empty = site.page("feed")
    assert empty == {"items": [], "next": 0, "history": str(UUID(int=0))}
    post_and_number(site.books, "a", "b", "c")
    post_and_number(site.books, "d")
    page = site.page("feed", limit=3, after=0, history=empty["history"])
    rest = site.page("feed", after=page["next"], history=page["history"])
    assert [(event["seq"], event["event_id"]) for event in page["items"] + rest["items"]] == [
        (seq, str(event_id))
        for seq, event_id in (
            (row["seq"], row["event_id"]) for row in site.books.rows("feed", order="seq")
        )
    ]
    assert (page["next"], rest["next"]) == (3, 4)
    assert site.page("feed", after=4, history=rest["history"])["items"] == []


def test_another_history_is_a_conflict(feed_site: Site) -> None:
    site = feed_site
    post_and_number(site.books, "a")
    history = site.page("feed")["history"]
    assert site.page("feed", after=1, history=history)["next"] == 1
    status, detail = site.problem("feed", after=1, history=UUID(int=7))
    assert status == 409
    assert "restored from a backup" in detail
    status, detail = site.problem("feed", after=2)
    assert status == 400
    assert "after 2: the feed ends at 1." in detail
    assert site.problem("feed", after=2, history=history)[0] == 409


def test_a_long_poll_wakes_with_the_next_event(feed_site: Site) -> None:
    site = feed_site
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(site.page, "feed", wait=30)
        other = pool.submit(site.page, "feed", wait=0.1)
        assert other.result()["items"] == []
        assert not waiting.done()
        post_and_number(site.books, "a")
        assert [event["seq"] for event in waiting.result()["items"]] == [1]
    assert numbered_events(site.books)


@contextmanager
def stream(site: Site, **headers: str) -> Iterator[Any]:
    connection = HTTPConnection("127.0.0.1", site.port, timeout=30)
    try:
        connection.request(
            "GET", "/api/v1/feed", headers={"Accept": "text/event-stream", **headers}
        )
        yield connection.getresponse()
    finally:
        connection.close()


def next_block(response: Any) -> dict[str, str]:
    """The fields of the next block that has some."""
    fields: dict[str, str] = {}
    while (line := response.readline().decode()) != "\n" or not fields:
        assert line, "the stream ended"
        name, _, value = line.rstrip("\n").partition(": ")
        if name:
            fields[name] = value
    return fields


def test_a_stream_sends_events_as_they_come_and_goes_on_after_its_last_id(feed_site: Site) -> None:
    site = feed_site
    post_and_number(site.books, "a")
    with stream(site) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        first = next_block(response)
        assert json.loads(first["data"])["seq"] == 1
        assert first["event"] == json.loads(first["data"])["type"]
        end = next_block(response)
        number, _, history = end["id"].partition(":")
        assert (number, UUID(history)) == ("1", UUID(site.page("feed")["history"]))
        post_and_number(site.books, "b")
        assert json.loads(next_block(response)["data"])["seq"] == 2
    with stream(site, **{"Last-Event-ID": end["id"]}) as response:
        assert json.loads(next_block(response)["data"])["seq"] == 2
    with stream(site, **{"Last-Event-ID": f"1:{UUID(int=7)}"}) as response:
        assert response.status == 409
    with stream(site, **{"Last-Event-ID": "x"}) as response:
        assert response.status == 400


def test_waiters_hold_neither_threads_nor_connections_and_are_bounded(feed_site: Site) -> None:
    site = feed_site
    with ExitStack() as stack:
        for _ in range(MOST_WAITERS):
            assert stack.enter_context(stream(site)).status == 200
        assert site.problem("feed", wait=1) == (
            503,
            f"{MOST_WAITERS} clients wait for events already",
        )
        assert site.get("feed").status == site.get("sessions").status == 200
        wait_until(lambda: busy_connections(site.books) == 0)
    # Those who are gone leave their places.
    wait_until(lambda: site.get("feed", wait=0.01).status == 200)
