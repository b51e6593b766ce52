"""Tokens and browser sessions: what is valid, for how long, and what a failure costs."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
import structlog.testing

from accounting.web.access.log_ins import ALL_FAILURES, CLIENT_FAILURES, CLIENT_SECONDS
from accounting.web.access.tokens import create_token, revoke_token
from accounting.web.arrival import Proxies
from tests.support.access_site import SetClock, Site
from tests.support.books import WRITER, Books
from tests.support.web_server import Answer, WebServer, serving

PATH: Final = "/api/v1/periods"
TOKEN: Final = re.compile(r"ta_[A-Za-z0-9_-]{43}")


def log_in(web: WebServer, token: str, next_path: str = "/periods", **headers: str) -> Answer:
    return web.post_form("/login", f"token={token}&next={next_path}", **headers)


def cookie_of(answer: Answer) -> str:
    return answer.headers["set-cookie"].partition(";")[0]


@pytest.fixture
def own_books(books: Books) -> Books:
    """Books whose clock the test sets, with a token of everything."""
    books.set_database_clock(datetime(2026, 11, 2, tzinfo=UTC))
    return books


def test_a_token_is_valid_until_it_expires_by_the_databases_clock(own_books: Books) -> None:
    token, row = create_token(own_books.engine, days=1)
    assert row["expires_at"] - row["created_at"] == timedelta(days=1)
    with serving(own_books.url(WRITER), log_in=True) as web:
        assert web.get(PATH, token=token).status == 200
        cookie = cookie_of(log_in(web, token))
        assert web.get(PATH, Cookie=cookie).status == 200
        own_books.set_database_clock(row["expires_at"] - timedelta(microseconds=1))
        assert web.get(PATH, token=token).status == 200
        own_books.set_database_clock(row["expires_at"])
        assert web.get(PATH, token=token).status == 401
        refused = web.get(PATH, Cookie=cookie)
        assert refused.status == 401
        assert refused.headers["set-cookie"].startswith("turn-accounting=; Path=/; Max-Age=0;")


def test_a_session_ends_before_its_token(own_books: Books) -> None:
    token, row = create_token(own_books.engine, days=None)
    assert row["expires_at"] is None
    with serving(own_books.url(WRITER), log_in=True) as web:
        cookie = cookie_of(log_in(web, token))
        own_books.set_database_clock(row["created_at"] + timedelta(hours=12))
        assert web.get(PATH, Cookie=cookie).status == 401
        assert web.get(PATH, token=token).status == 200
        log_in(web, token)  # deletes those that expired
    [count] = own_books.query("SELECT count(*) AS sessions FROM access.sessions")
    assert count == {"sessions": 1}


def test_a_revoked_token_is_refused_at_once_with_its_sessions(own_books: Books) -> None:
    token, row = create_token(own_books.engine, days=1)
    with serving(own_books.url(WRITER), log_in=True) as web:
        cookie = cookie_of(log_in(web, token))
        assert web.get(PATH, Cookie=cookie).status == 200
        assert revoke_token(own_books.engine, row["number"])
        assert not revoke_token(own_books.engine, row["number"])
        assert web.get(PATH, Cookie=cookie).status == 401
        assert web.get(PATH, token=token).status == 401
        assert log_in(web, token).status == 403
    assert own_books.query("SELECT * FROM access.sessions") == []


def test_a_token_has_its_newest_twenty_sessions(own_books: Books) -> None:
    token, row = create_token(own_books.engine, days=1)
    with serving(own_books.url(WRITER), log_in=True) as web:
        cookies = []
        for minute in range(21):
            own_books.set_database_clock(row["created_at"] + timedelta(minutes=minute))
            cookies.append(cookie_of(log_in(web, token)))
        statuses = [web.get(PATH, Cookie=cookie).status for cookie in cookies]
    assert statuses == [401] + [200] * 20


def test_the_use_of_a_token_is_recorded_once_a_minute(own_books: Books) -> None:
    token, row = create_token(own_books.engine, days=1)
    used_at = "SELECT last_used_at FROM access.tokens"
    assert own_books.query(used_at) == [{"last_used_at": None}]
    with serving(own_books.url(WRITER), log_in=True) as web:
        for seconds, recorded in ((0, 0), (59, 0), (61, 61)):
            own_books.set_database_clock(row["created_at"] + timedelta(seconds=seconds))
            assert web.get(PATH, token=token).status == 200
            expected = row["created_at"] + timedelta(seconds=recorded)
            assert own_books.query(used_at) == [{"last_used_at": expected}]


def test_a_database_that_can_not_be_written_is_read_with_a_token(own_books: Books) -> None:
    token, _ = create_token(own_books.engine, days=1)
    url = own_books.url(WRITER) + "&options=-c%20default_transaction_read_only%3Don"
    with serving(url, log_in=True) as web:
        assert web.get(PATH, token=token).status == 200


@pytest.mark.parametrize(
    "token", ["", "x", "ta_", "ta_" + "a" * 43, "ta_" + "a" * 44, "tas_" + "a" * 43, "%00", "Ä"]
)
def test_garbage_is_refused(access_books: Books, token: str) -> None:
    with serving(access_books.url(WRITER), log_in=True) as web:
        headers = {"Authorization": b"Bearer " + token.encode()}
        assert web.request("GET", PATH, headers=headers).status == 401  # type: ignore[arg-type]
        assert web.get(PATH, Cookie=f"turn-accounting={token.encode().hex()}").status == 401
        assert web.get(PATH, Authorization="Basic dGE6dGE=").status == 401
        refused = log_in(web, token.encode().hex())
        assert refused.status == 403
        assert "not valid" in refused.text
        assert "set-cookie" not in refused.headers


def test_where_no_log_in_is_asked_for_a_token_that_is_sent_counts(
    site: Site, open_web: WebServer
) -> None:
    def realms(**headers: str) -> set[str]:
        return {row["realm"] for row in open_web.get(f"{PATH}?limit=1000", **headers).json["items"]}

    bearer = f"Bearer {site.tokens['realm']}"
    cookie = cookie_of(log_in(site.web, site.tokens["realm"]))
    assert realms() > {"example.org"}
    assert realms(Authorization=bearer) == realms(Cookie=cookie) == {"example.org"}
    foreign = "/api/v1/usage?realm=example.net"
    assert open_web.get(foreign).status == 200
    assert open_web.get(foreign, Authorization=bearer).status == 404
    assert open_web.get(PATH, token="ta_" + "a" * 43).status == 401
    # A browser may have the cookie of another server: it is asked to forget it, and reads on.
    stale = f"turn-accounting=tas_{'a' * 43}"
    assert open_web.get(PATH, Cookie=stale).status == 401
    led = open_web.get("/periods", Cookie=stale)
    assert (led.status, led.headers["location"]) == (303, "/login?next=/periods")
    assert "Max-Age=0" in led.headers["set-cookie"]
    assert open_web.get(led.headers["location"]).headers["location"] == "/periods"
    # It ends the session too.
    assert open_web.request("POST", "/logout", headers={"Cookie": cookie}).status == 303
    assert site.web.get(PATH, Cookie=cookie).status == 401


def test_a_proxy_that_drops_the_port_is_told_what_to_pass_on(site: Site) -> None:
    options = {"log_in": True, "proxies": Proxies.of(["127.0.0.1"]), "hosts": ["usage.example.org"]}
    sent = {"X_Forwarded_Proto": "https", "Origin": "https://usage.example.org:8443"}
    token = site.tokens["all"]
    with serving(site.books.url(WRITER), **options) as web:
        refused = log_in(web, token, Host="usage.example.org", **sent)
        assert refused.status == 403
        for name in ("ACCOUNTING_WEB_PROXIES", "Host", "X-Forwarded-Host", "X-Forwarded-Proto"):
            assert name in refused.text
        assert "https://usage.example.org:8443, and this server is" in refused.text
        # As the example for nginx has it: $http_host.
        assert log_in(web, token, Host="usage.example.org:8443", **sent).status == 303
        assert log_in(web, token, X_Forwarded_Host="usage.example.org:8443", **sent).status == 303
        other = log_in(web, token, **sent, Sec_Fetch_Site="cross-site")
        assert (other.status, "another site" in other.text) == (403, True)


def test_a_session_is_no_token_and_a_token_no_session(site: Site) -> None:
    secret = cookie_of(log_in(site.web, site.tokens["all"])).partition("=")[2]
    assert site.web.get(PATH, token=secret).status == 401
    assert site.web.get(PATH, Cookie=f"turn-accounting={site.tokens['all']}").status == 401


def test_the_database_has_no_secret(site: Site) -> None:
    secret = cookie_of(log_in(site.web, site.tokens["all"])).partition("=")[2]
    for table in ("tokens", "sessions"):
        rows = site.books.query(f"SELECT t::text AS text FROM access.{table} t")  # noqa: S608
        text = "".join(row["text"] for row in rows)
        assert len(text) > 100
        for hidden in (secret, *site.tokens.values()):
            assert hidden not in text
            assert hidden.encode().hex() not in text


def test_the_cookie_and_where_a_log_in_leads(site: Site) -> None:
    answer = log_in(site.web, site.tokens["realm"], "/periods%3Frealm=example.org")
    assert answer.status == 303
    assert answer.headers["location"] == "/periods?realm=example.org"
    assert re.fullmatch(
        r"turn-accounting=tas_[A-Za-z0-9_-]{43}; Path=/; Max-Age=4\d{4}; HttpOnly; SameSite=Strict",
        answer.headers["set-cookie"],
    )
    cookie = cookie_of(answer)
    page = site.web.get("/periods", Cookie=cookie)
    assert page.status == 200
    assert "example.net" not in page.text
    closed = site.web.request("POST", "/logout", headers={"Cookie": cookie})
    assert (closed.status, closed.headers["location"]) == (303, "/login")
    assert "Max-Age=0" in closed.headers["set-cookie"]
    assert site.web.get("/periods", Cookie=cookie).status == 303


def test_the_cookie_behind_a_proxy_with_tls(site: Site) -> None:
    headers = {"X_Forwarded_Proto": "https", "X_Forwarded_Host": "usage.example.org"}
    options = {"log_in": True, "proxies": Proxies.of(["127.0.0.1"]), "hosts": ["usage.example.org"]}
    token = site.tokens["all"]
    with serving(site.books.url(WRITER), **options) as web:
        answer = log_in(web, token, **headers)
        assert answer.headers["set-cookie"].startswith("__Host-turn-accounting=tas_")
        assert answer.headers["set-cookie"].endswith("; SameSite=Strict; Secure")
        cookie = cookie_of(answer)
        assert web.get(PATH, Cookie=cookie, **headers).status == 200
        # Over plain HTTP that name means nothing: a browser would not send it.
        assert web.get(PATH, Cookie=cookie, X_Forwarded_Host="usage.example.org").status == 401
    with serving(site.books.url(WRITER), root_path="/turn", **options) as web:
        answer = log_in(web, token, **headers)
        assert answer.headers["location"] == "/turn/periods"
        assert answer.headers["set-cookie"].startswith("__Secure-turn-accounting=tas_")
        assert "; Path=/turn;" in answer.headers["set-cookie"]
        asked = web.get("/periods?realm=", **headers)
        assert asked.headers["location"] == "/turn/login?next=/periods%3Frealm%3D"
        for path in ("/api/v1/periods", "/turn/api/v1/periods"):  # the proxy may strip the path
            assert web.get(path, Cookie=cookie_of(answer), **headers).status == 200


@pytest.mark.parametrize(
    "target",
    [
        "//evil.example", "https://evil.example/", "/\\evil.example", "\\\\evil.example", "evil",
        "/%09/evil.example", "/%0d%0aSet-Cookie:x=y", "javascript:alert(1)", "", "%2F%2Fevil.tld",
        "/%5Cevil.example", "/%C3%A4", "///evil.example", "%20//evil.example",
    ],
)  # fmt: skip
def test_a_log_in_leads_to_no_other_site(site: Site, open_web: WebServer, target: str) -> None:
    assert log_in(site.web, site.tokens["all"], target).headers["location"] == "/"
    assert open_web.get(f"/login?next={target}").headers["location"] == "/"
    assert 'name="next" value="/"' in site.web.get(f"/login?next={target}").text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 303),
        ({"Origin": "http://127.0.0.1:{port}"}, 303),
        ({"Sec_Fetch_Site": "same-origin"}, 303),
        ({"Sec_Fetch_Site": "none"}, 303),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "https://127.0.0.1:{port}"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Sec_Fetch_Site": "cross-site", "Origin": "http://127.0.0.1:{port}"}, 403),
    ],
)
def test_a_form_of_another_site_is_refused(
    site: Site, headers: dict[str, str], status: int
) -> None:
    sent = {name: value.format(port=site.web.port) for name, value in headers.items()}
    assert log_in(site.web, site.tokens["all"], **sent).status == status
    assert site.web.post_form("/logout", "", **sent).status == status


def test_a_client_that_fails_often_waits(access_books: Books) -> None:
    token, _ = create_token(access_books.engine, days=1)
    clock = SetClock()
    with serving(access_books.url(WRITER), log_in=True, now=clock) as web:
        statuses = [web.get(PATH, token="ta_x").status for _ in range(CLIENT_FAILURES)]
        assert statuses == [401] * CLIENT_FAILURES
        refused = web.get(PATH, token="ta_x")
        assert refused.status == 429
        assert 1 <= int(refused.headers["retry-after"]) <= CLIENT_SECONDS + 1
        assert log_in(web, token).status == 429
        assert web.get("/periods", Cookie="turn-accounting=tas_x").status == 429
        clock.seconds += CLIENT_SECONDS + 0.1
        assert web.get(PATH, token="ta_x").status == 401
        assert web.get(PATH, token="ta_x").status == 429
        assert log_in(web, token).status == 429
        clock.seconds += CLIENT_SECONDS + 0.1
        assert log_in(web, token).status == 303
        clock.seconds += CLIENT_SECONDS * CLIENT_FAILURES
        statuses = [log_in(web, "x").status for _ in range(CLIENT_FAILURES + 1)]
        assert statuses == [403] * CLIENT_FAILURES + [429]


def test_a_stranger_at_the_same_address_does_not_stop_a_valid_token(access_books: Books) -> None:
    token, _ = create_token(access_books.engine, days=1)
    with serving(access_books.url(WRITER), log_in=True, now=SetClock()) as web:
        cookie = cookie_of(log_in(web, token))
        for secret in ("x", "ta_" + "a" * 43):
            statuses = {web.get(PATH, token=secret).status for _ in range(CLIENT_FAILURES)}
            assert statuses <= {401, 429}
        assert web.get(PATH, token="x").status == 429
        assert web.get(PATH, token=token).status == 200
        assert web.get(PATH, Cookie=cookie).status == 200


def test_strangers_lock_nobody_out(access_books: Books) -> None:
    """Many addresses that fail do not stop the form on one from which a log-in succeeded."""
    token, _ = create_token(access_books.engine, days=1)
    clock = SetClock()
    options = {"log_in": True, "proxies": Proxies.of(["127.0.0.1"]), "now": clock}
    with serving(access_books.url(WRITER), **options) as web:
        assert web.get(PATH, token=token, X_Forwarded_For="192.0.2.1").status == 200
        for number in range(ALL_FAILURES):
            address = f"2001:db8:{number:x}::1"
            assert web.get(PATH, token="ta_x", X_Forwarded_For=address).status == 401
        assert log_in(web, token, X_Forwarded_For="192.0.2.2").status == 429
        assert log_in(web, token, X_Forwarded_For="192.0.2.1").status == 303
        assert web.get(PATH, token=token, X_Forwarded_For="192.0.2.2").status == 200
        # All addresses of an IPv6 network are one client.
        clock.seconds += 3600
        for number in range(CLIENT_FAILURES + 1):
            status = web.get(PATH, token="ta_x", X_Forwarded_For=f"2001:db8::{number}").status
        assert status == 429


def test_the_log_has_who_read_which_route_and_nothing_else(site: Site) -> None:
    [row] = site.books.query(
        "SELECT session_id::text, user_key::text FROM reporting.sessions WHERE user_id = 'carol'"
    )
    token, created = create_token(site.books.engine, days=1, label="their page")
    with structlog.testing.capture_logs() as events:
        site.web.get("/api/v1/sessions?user=carol&realm=example.net", token=token)
        site.web.get(f"/session/{row['session_id']}", token=token)
        site.web.get("/carol", token=token)
        log_in(site.web, "carol")
        site.web.get("/", token="carol")
    requests = [event for event in events if event["event"] == "request"]
    assert [(event["route"], event["status"]) for event in requests] == [
        ("/api/v1/sessions", 200),
        ("/session/{session_id}", 200),
        ("none", 404),
    ]
    for event in requests:
        assert event["token"] == created["number"]
        assert event["label"] == "their page"
        assert event["client"] == "127.0.0.1"
    assert [event["event"] for event in events if event["log_level"] == "warning"] == [
        "log-in refused"
    ] * 2
    for secret in ("carol", "example.net", token):
        assert secret not in repr(events)
