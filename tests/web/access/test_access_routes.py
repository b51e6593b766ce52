"""Each kind of token on every route, with every other realm's and user's keys and names."""

import itertools
import json
from collections.abc import Collection, Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any, Final
from urllib.parse import quote, urlencode

import pytest

from accounting.billing.close_period import close_periods
from accounting.domain.calendar import from_micros
from accounting.domain.periods import NOT_COUNTED
from accounting.domain.realm_rules import RealmRule
from accounting.feed import outbox
from accounting.feed.number_feed import number_feed
from accounting.identities.realm_queries import add_realm
from accounting.reporting import billing_queries, session_queries, usage_queries
from accounting.reporting.reader import DatabaseReader
from accounting.reporting.view_query import Arrangement
from accounting.usage.limits.limit_rules import set_limit
from accounting.web.access.reader import Reader
from accounting.web.access.tokens import create_token
from accounting.web.books import Books as WebBooks
from tests.support.access_site import Site
from tests.support.books import WRITER, Books, channel, status_payload
from tests.support.web_server import Answer, serving

PUBLIC: Final = {"/login", "/logout"}
OTHER_KEYS: Final = """
SELECT user_key::text AS text FROM reporting.sessions WHERE NOT ({own})
UNION SELECT session_id::text FROM reporting.sessions WHERE NOT ({own})
"""
OWN: Final = {
    "all": "true",
    "realm": "realm = 'example.org'",
    "user": "realm = 'example.org' AND user_id = 'alice'",
}
QUERIES: Final = (
    "limit_id=1",
    "",
    "realm=example.net",
    "realm=example.ne",
    "realm=example.org&user=bob",
    "realm=example.org&period=2026-10-01",
    "realm=example.org&period=2026-11-01",
    "realm=example.net&period=2026-10-01",
    "since=2026-10&format=csv",
    "by=realm",
)
"""Of some route at least; a route that has not all of the parameters refuses the query."""


def routes(app: Any) -> Iterator[tuple[str, frozenset[str]]]:
    """Every route of the app: its path and methods; static files are not routes."""
    waiting = list(app.routes)
    while waiting:
        route = waiting.pop()
        if hasattr(route, "effective_candidates"):
            waiting += route.effective_candidates()
        elif hasattr(route, "methods"):
            yield route.path, frozenset(route.methods or ())
        else:
            assert route.path == "/static", route


def filled(path: str, books: Books, own: str) -> Iterator[str]:
    """The path with keys of its parameters: the reader's own, another's, and one that is none."""
    if "{" not in path:
        yield path
        return
    name = path.split("{")[1].split("}", maxsplit=1)[0]
    keys = [
        row["text"]
        for condition in (own, f"NOT ({own})")
        for row in books.query(
            f"SELECT {name}::text AS text FROM reporting.sessions WHERE {condition}"  # noqa: S608
            " ORDER BY 1 LIMIT 1"
        )
    ]
    for key in [*keys, "01234567-89ab-7def-8123-456789abcdef"]:
        yield path.replace(f"{{{name}}}", key)


def all_gets(
    site: Site, kind: str, skipped: Collection[str] = ()
) -> Iterator[tuple[str, str, Answer]]:
    """Every GET route with every query: the route, the address, and the answer."""
    for path, methods in sorted(routes(site.web.app)):
        if "GET" not in methods or path in PUBLIC:
            continue
        for address in filled(path, site.books, OWN[kind]):
            for query in QUERIES:
                if path in skipped:
                    break
                target = f"{address}?{query}" if query else address
                yield path, target, site.web.get(target, token=site.tokens[kind])


def test_every_route_is_known_to_be_public_or_asks_for_a_log_in(site: Site) -> None:
    paths = dict(routes(site.web.app))
    assert {"/", "/login", "/api/v1/sessions", "/api/openapi.json"} <= set(paths)
    for path, methods in paths.items():
        target = path.replace("{", "").replace("}", "")
        for method in methods - {"HEAD"}:
            answer = site.web.request(method, target, headers={"Sec-Fetch-Site": "same-origin"})
            if path in PUBLIC:
                assert answer.status in {200, 303, 415}, (method, path, answer.status)
            elif path.startswith("/api/"):
                assert answer.status == 401, (method, path, answer.status)
                assert answer.headers["www-authenticate"].startswith("Bearer")
                assert answer.headers["content-type"] == "application/problem+json"
            else:
                assert answer.status == 303, (method, path, answer.status)
                assert answer.headers["location"] == f"/login?next={quote(target)}"


def test_a_reader_of_all_gets_every_route(site: Site) -> None:
    asked: set[str] = set()
    got: set[str] = set()
    for path, target, answer in all_gets(site, "all", skipped=got):
        assert answer.status < 500, (target, answer.text)
        asked.add(path)
        if answer.status in {200, 303}:
            got.add(path)
    assert asked - got == set()


@pytest.mark.parametrize("kind", ["realm", "user"])
def test_a_reader_gets_nothing_of_others(site: Site, kind: str) -> None:
    others = {row["text"] for row in site.books.query(OTHER_KEYS.replace("{own}", OWN[kind]))} | {
        "example.net",
        "owned",
    }
    if kind == "user":
        others.add("bob")
    assert len(others) >= 6
    statuses = set()
    for _, target, answer in all_gets(site, kind):
        statuses.add(answer.status)
        assert answer.status < 500, (target, answer.text)
        # An answer may repeat what was asked for.
        unseen = {text for text in others if text not in target}
        assert [text for text in unseen if text in answer.text] == [], target
    assert {200, 404} <= statuses


@pytest.mark.parametrize("kind", ["realm", "user"])
def test_a_cutoff_is_a_time_to_customers(site: Site, kind: str) -> None:
    """The whole one has the names of all sources and their positions."""
    [row] = site.books.query("SELECT DISTINCT cutoff FROM reporting.statements")
    sources = json.loads(row["cutoff"])["sources"]
    until = min(source["until"] for source in sources.values())
    target, token = "/statement?realm=example.org&period=2026-10-01", site.tokens[kind]
    lines = site.web.get(f"/api/v1/statements{target.removeprefix('/statement')}", token=token).json
    assert {line["cutoff"] for line in lines["items"]} == {from_micros(until).isoformat()}
    listed = site.web.get("/api/v1/statements?format=csv", token=token).text
    assert '""sources""' not in listed
    page = site.web.get(target, token=token)
    assert page.status == 200
    for source, position in sources.items():
        assert f"Source {source}" not in page.text
        assert f"{position['epoch']}/{position['position']}" not in page.text
    for form in ("csv", "jsonl"):
        path = f"/statement/download{target.removeprefix('/statement')}&format={form}"
        file, whole = (site.web.get(path, token=site.tokens[of]) for of in (kind, "all"))
        assert file.status == (200 if kind == "realm" else 404)
        assert kind == "user" or file.text == whole.text
        assert [text for text in ("cutoff", '"sources"') if text in whole.text] == []


def test_what_a_period_waits_for_names_no_source_to_customers(books: Books) -> None:
    name = "frankfurt-1"
    books.receive(1, channel("status"), status_payload("new"), source=name)
    books.advance_clock(60, source=name)
    books.run_jobs()
    close_periods(books.engine)
    [period] = books.rows("periods")
    books.set_database_clock(period["ends_at"] + timedelta(days=40))
    query = urlencode({"realm": period["realm"], "period": period["period"]})
    realm_query = urlencode({"realm": period["realm"]})
    targets = (
        "/api/v1/periods",
        f"/api/v1/statements?{query}",
        f"/api/v1/statements?{query}&preview=true&format=csv",
        f"/periods?{realm_query}",
        f"/realm?{realm_query}",
        f"/statement?{query}",
        f"/statement/download?{query}",
    )
    with serving(books.url(WRITER), log_in=True) as web:
        for of_user in ({}, {"user": "alice"}):
            token, _ = create_token(books.engine, days=1, realm=period["realm"], **of_user)
            for target in targets:
                answer = web.get(target, token=token)
                assert name not in answer.text, target
                if "download" in target:
                    assert answer.status == 409
        token, _ = create_token(books.engine, days=1, realm=period["realm"])
        rows = web.get("/api/v1/periods", token=token).json["items"]
        assert rows[0]["waits_for"] == NOT_COUNTED
        assert NOT_COUNTED in web.get(f"/statement?{query}", token=token).text
        everything, _ = create_token(books.engine, days=1)
        assert name in web.get("/api/v1/periods", token=everything).text


def test_an_event_names_no_source_to_customers(books: Books) -> None:
    with books.engine.begin() as connection:
        realm_id = add_realm(connection, b"example.org", RealmRule())
        payload = {"period": "2026-10-01", "without": ["frankfurt-1"]}
        outbox.enqueue_event(connection, "period.closed", realm_id, payload, "a")
    number_feed(books.engine)
    with serving(books.url(WRITER), log_in=True) as web:
        realm_token, all_token = (
            create_token(books.engine, days=1, realm=realm)[0] for realm in ("example.org", None)
        )
        [event] = web.get("/api/v1/feed", token=realm_token).json["items"]
        assert event["payload"] == {"period": "2026-10-01"}
        [event] = web.get("/api/v1/feed", token=all_token).json["items"]
        assert event["payload"] == payload


def test_a_user_reads_the_own_limits_and_those_of_every_user(books: Books) -> None:
    for number, user in enumerate(("alice", "bob"), start=1):
        books.receive(
            number, channel("status", user=user, allocation=number), status_payload("new")
        )
    books.advance_clock(60)
    books.run_jobs()
    for words in ({"user": "alice"}, {"user": "bob"}, {"every_user": True}, {}):
        set_limit(books.engine, "example.org", measure="sessions", per="day", amount=1, **words)
    number_feed(books.engine)
    with serving(books.url(WRITER), log_in=True) as web:
        token, _ = create_token(books.engine, days=1, realm="example.org", user="alice")
        limits = web.get("/api/v1/limits", token=token).json["items"]
        assert [(limit["whom"], limit["user_id"]) for limit in limits] == [
            ("user", "alice"),
            ("every_user", None),
        ]
        states = web.get("/api/v1/limit-states", token=token).json["items"]
        assert {state["user_id"] for state in states} == {"alice"}
        for number, users in ((1, ["alice"]), (3, ["alice"])):
            usage = web.get(f"/api/v1/limit-usage?limit_id={number}", token=token)
            assert [row["user_id"] for row in usage.json["items"]] == users
        for number in (2, 4, 5):
            usage = web.get(f"/api/v1/limit-usage?limit_id={number}", token=token)
            assert usage.status == 404
        events = web.get("/api/v1/feed", token=token)
        assert events.status == 404 or events.json["items"] == []
        assert web.get("/limits", token=token).status == 404
        page = web.get(f"/user/{limits[0]['user_key']}", token=token).text
        assert page.count("1</data> session") >= 2
        assert "bob" not in page
        token, _ = create_token(books.engine, days=1, realm="example.org")
        assert len(web.get("/api/v1/limits", token=token).json["items"]) == 4
        for number, users in ((2, ["bob"]), (3, ["alice", "bob"]), (4, [""])):
            usage = web.get(f"/api/v1/limit-usage?limit_id={number}", token=token)
            assert sorted(row["user_id"] or "" for row in usage.json["items"]) == users


@pytest.mark.parametrize(("kind", "asked"), [("realm", 4), ("user", 6)])
def test_what_is_anothers_is_not_looked_up(site: Site, kind: str, asked: int) -> None:
    """By how long a query takes, one could find out who else has a realm here."""
    [other] = site.books.query(
        "SELECT DISTINCT user_key FROM reporting.sessions WHERE user_id = 'carol'"
    )
    [own] = site.books.query(
        "SELECT DISTINCT realm, user_key FROM reporting.sessions WHERE user_id = 'alice'"
        " AND realm = 'example.org'"
    )
    key = own["user_key"] if kind == "user" else None
    reader = Reader(token=1, realm="example.org", user_key=key)
    queries = [
        session_queries.sessions(realm="example.net", arrangement=Arrangement(limit=1)),
        usage_queries.usage(by="realm", per="day", realm="example.net"),
        billing_queries.statements("example.net", None),
        billing_queries.periods("example.net"),
        session_queries.sessions(user_key=other["user_key"], arrangement=Arrangement(limit=1)),
        usage_queries.usage(by="user", per="day", user_key=other["user_key"]),
        session_queries.sessions(realm="example.org", arrangement=Arrangement(limit=1)),
        session_queries.sessions(user_key=own["user_key"], arrangement=Arrangement(limit=1)),
    ]
    assert [reader.asks_for_others(query) for query in queries] == [
        index < asked for index in range(len(queries))
    ]
    # A database that can't be reached is not asked.
    with closing(DatabaseReader("postgresql://127.0.0.1:1/nowhere")) as nowhere:
        web_books = WebBooks(nowhere, reader)
        assert [web_books.rows(query) for query in queries[:asked]] == [[]] * asked


def test_a_name_is_looked_up_in_the_realm_that_may_be_read(site: Site) -> None:
    """Else the sessions of its user in another realm would be looked through, for nothing."""
    keys = "SELECT reporting.possible_user_keys('carol', %s) AS user_key"
    [key] = site.books.query(
        "SELECT DISTINCT user_key FROM reporting.sessions WHERE user_id = 'carol'"
    )
    assert site.books.query(keys, [None]) == site.books.query(keys, ["example.net"]) == [key]
    assert site.books.query(keys, ["example.org"]) == []


@pytest.mark.parametrize("kind", ["realm", "user"])
def test_what_others_have_answers_as_what_is_not_there(site: Site, kind: str) -> None:
    """The same words and status, but for the name that was asked for."""
    [other] = site.books.query(
        "SELECT session_id::text, user_key::text FROM reporting.sessions"
        " WHERE realm = 'example.net' AND user_id = 'carol'"
    )
    nobody = "01234567-89ab-7def-8123-456789abcdef"
    pairs = [
        (f"/session/{other['session_id']}", f"/session/{nobody}"),
        (f"/user/{other['user_key']}", f"/user/{nobody}"),
        (f"/api/v1/sessions/{other['session_id']}", f"/api/v1/sessions/{nobody}"),
        (f"/api/v1/sessions/{other['session_id']}/reports", f"/api/v1/sessions/{nobody}/reports"),
        ("/realm?realm=example.net", "/realm?realm=exchange.tv"),
        ("/unattributed?realm=example.net", "/unattributed?realm=exchange.tv"),
        ("/sessions?realm=example.net", "/sessions?realm=exchange.tv"),
        ("/api/v1/sessions?realm=example.net", "/api/v1/sessions?realm=exchange.tv"),
        ("/api/v1/usage?realm=example.net", "/api/v1/usage?realm=exchange.tv"),
        ("/api/v1/sessions?user=carol", "/api/v1/sessions?user=doris"),
    ]
    for (there, not_there), words in itertools.product(
        pairs, [("example.net", "exchange.tv"), ("carol", "doris")]
    ):
        real, unreal = (site.web.get(path, token=site.tokens[kind]) for path in (there, not_there))
        assert real.status == unreal.status, there
        keys = [other["session_id"], other["user_key"]]
        text = real.text.replace(*words)
        for key in keys:
            text = text.replace(key, nobody)
        if words[0] in there or any(key in there for key in keys):
            assert text == unreal.text, there
