"""Each kind of token on every route, with every other realm's and user's keys and names."""

import itertools
from collections.abc import Collection, Iterator
from typing import Any, Final
from urllib.parse import quote

import pytest

from tests.support.access_site import Site
from tests.support.books import Books
from tests.support.web_server import Answer

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
