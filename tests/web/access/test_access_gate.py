"""What the gate refuses before any route: hosts, unnamed proxies, what is too large or slow."""

import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import pytest
import structlog.testing

from accounting.web import server as web_server
from accounting.web.arrival import Proxies, arrival_of
from accounting.web.pages import page_books
from accounting.web.threads import MOST_THREADS
from tests.support.access_site import Site
from tests.support.books import WRITER
from tests.support.servers import wait_until
from tests.support.web_server import WebServer, serving

PATH: Final = "/api/v1/periods"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200),
        ("localhost", 200),
        ("LOCALHOST:{port}", 200),
        ("[::1]:{port}", 200),
        ("127.0.0.1", 200),
        ("evil.example", 421),
        ("evil.example:{port}", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("127.0.0.2", 421),
        ("0.0.0.0", 421),  # noqa: S104  # nothing listens there
        ("0x7f000001", 421),
        ("localhost@evil.example", 421),
        ("evil.example/localhost", 421),
        ("localhost:80:80", 421),
        ("", 421),
    ],
)
def test_a_host_that_is_not_this_server(open_web: WebServer, host: str, status: int) -> None:
    """Also on loopback: another site's page could reach it by a name that resolves here."""
    answer = open_web.get(PATH, Host=host.format(port=open_web.port))
    assert answer.status == status
    if status == 421:
        assert "ACCOUNTING_WEB_HOSTS" in answer.json["detail"]
        assert "example.org" not in answer.text


def test_the_host_is_checked_for_files_and_the_log_in_too(site: Site) -> None:
    for path in ("/static/style.css", "/login", "/", "/nothing"):
        assert site.web.get(path, Host="evil.example").status == 421
    assert site.web.post_form("/login", "token=x", Host="evil.example").status == 421


def test_names_that_were_set(site: Site) -> None:
    with serving(site.books.url(WRITER), hosts=["usage.example.org"]) as web:
        assert web.get(PATH, Host="usage.example.org").status == 200
        assert web.get(PATH, Host="Usage.Example.org:443").status == 200
        assert web.get(PATH, Host="example.org").status == 421
        # The address at which a request arrives is no name that anybody could point here.
        assert web.get(PATH, Host=f"127.0.0.1:{web.port}").status == 200


@pytest.mark.parametrize(
    "header",
    ["X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "Forwarded",
     "X-Real-IP", "Via", "CF-Connecting-IP", "True-Client-IP", "CDN-Loop", "X-Client-IP"],
)  # fmt: skip
def test_a_proxy_that_nobody_named_gets_nothing(open_web: WebServer, header: str) -> None:
    """It would show all books to everybody who reaches it."""
    for path in (PATH, "/", "/static/style.css"):
        answer = open_web.request("GET", path, headers={header: "127.0.0.1"})
        assert answer.status == 403
        assert "ACCOUNTING_WEB_PROXIES" in answer.text
        assert "example.org" not in answer.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Referer": "https://usage.example.org/"}, 403),
        ({"Referer": "https://usage.example.org/sessions", "Sec-Fetch-Site": "same-origin"}, 403),
        ({"Origin": "https://usage.example.org"}, 403),
        ({"Referer": "http://["}, 403),
        ({"Referer": "http://127.0.0.1:8400/periods"}, 200),
        ({"Referer": "http://localhost:3000/"}, 200),
        ({"Referer": "http://[::1]:8400/"}, 200),
        ({"Origin": "null"}, 200),
        # A link on a page of another site.
        ({"Referer": "https://wiki.example.org/", "Sec-Fetch-Site": "cross-site"}, 200),
    ],
)
def test_a_proxy_that_adds_nothing_shows_itself_by_the_name_that_browsers_know(
    open_web: WebServer, site: Site, headers: dict[str, str], status: int
) -> None:
    answer = open_web.request("GET", PATH, headers=headers)
    assert answer.status == status
    if status == 403:
        assert "ACCOUNTING_WEB_PROXIES" in answer.text
        assert "example.org" not in answer.text
    assert site.web.request("GET", PATH, token=site.tokens["all"], headers=headers).status == 200


def test_a_proxy_that_speaks_http_1_0_shows_itself(open_web: WebServer) -> None:
    """As nginx does, with `proxy_pass http://127.0.0.1:8400;` and nothing else."""
    received = b""
    with socket.create_connection(("127.0.0.1", open_web.port), timeout=20) as client:
        client.sendall(f"GET {PATH} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
        while data := client.recv(65536):
            received += data
    assert received.startswith(b"HTTP/1.1 403 ")
    assert b"example.org" not in received


def test_the_root_path_may_be_stripped_or_not(site: Site) -> None:
    """One request for each address in both forms: files, redirects, cursors, where one is."""
    with serving(site.books.url(WRITER), root_path="/turn") as web:
        for path in ("/", "/static/style.css", "/periods", "/api/v1/sessions", "/nothing"):
            stripped, whole = web.get(path), web.get(f"/turn{path}")
            assert stripped.status == whole.status == (404 if path == "/nothing" else 200)
            if path == "/periods":
                assert stripped.text == whole.text
                assert 'href="/turn/periods" aria-current="page"' in stripped.text
        for path in ("/sessions/", "/turn/sessions/"):
            moved = web.get(path)
            assert moved.status == 307
            assert moved.headers["location"] == f"http://127.0.0.1:{web.port}/turn/sessions"
        for first, second in (("", "/turn"), ("/turn", "")):
            page = web.get(f"{first}/api/v1/sessions?limit=1").json
            rest = web.get(f"{second}/api/v1/sessions?limit=1&cursor={page['next']}")
            assert rest.status == 200
            assert rest.json["items"] != page["items"]
        assert web.get("/turn").headers["location"].endswith("/turn/")


def test_a_path_of_which_only_the_proxy_knows_is_logged_once(site: Site) -> None:
    options = {"log_in": True, "proxies": Proxies.of(["127.0.0.1"])}
    for root_path, warnings in (("", 1), ("/turn", 0)):
        with (
            serving(site.books.url(WRITER), root_path=root_path, **options) as web,
            structlog.testing.capture_logs() as logged,
        ):
            for _ in range(2):
                assert web.get("/login").status == 200
                assert web.get("/login", X_Forwarded_Prefix="/turn").status == 200
        assert sum("ACCOUNTING_WEB_ROOT_PATH" in event["event"] for event in logged) == warnings


def test_what_is_wrong_with_the_database_is_for_the_log(tmp_path: Path, site: Site) -> None:
    url = f"postgresql://somebody@/books?host={tmp_path}"
    with serving(url) as web, serving(url, log_in=True) as closed:
        with structlog.testing.capture_logs() as logged:
            answers = [
                web.get(PATH),
                web.get("/"),
                closed.get(PATH, token=site.tokens["all"]),
                closed.post_form("/login", f"token={site.tokens['all']}"),
            ]
        for answer in answers:
            assert answer.status == 503
            assert "be reached: the server" in answer.text
            assert str(tmp_path) not in answer.text
    assert sum(str(tmp_path) in event.get("error", "") for event in logged) == len(answers)


def test_an_address_that_is_not_there_says_so(site: Site) -> None:
    missing = site.web.get("/api/v1/nothing", token=site.tokens["all"])
    assert (missing.status, missing.json["detail"]) == (404, "there is nothing at this address")
    hidden = site.web.get("/api/v1/sources", token=site.tokens["realm"])
    assert (hidden.status, hidden.body) == (404, missing.body)
    answer = site.web.request("POST", PATH, token=site.tokens["all"])
    assert answer.status == 405
    assert answer.json["detail"] == "POST is not allowed here: expected GET, HEAD, OPTIONS"


def test_a_redirect_leads_to_the_name_that_the_client_knows(site: Site) -> None:
    options = {"proxies": Proxies.of(["127.0.0.1"]), "hosts": ["usage.example.org"]}
    headers = {"X_Forwarded_Proto": "https", "X_Forwarded_Host": "usage.example.org"}
    with serving(site.books.url(WRITER), log_in=True, **options) as web:
        moved = web.get("/sessions/", token=site.tokens["all"], **headers)
        assert moved.headers["location"] == "https://usage.example.org/sessions"


def test_files_that_are_written_leave_threads_for_other_requests(site: Site) -> None:
    """Those beyond a few are refused; they would wait in the threads that serve all requests."""
    path = "/statement/download?realm=example.org&period=2026-10-01"
    token = site.tokens["realm"]
    with ExitStack() as stack, ThreadPoolExecutor(MOST_THREADS) as pool:
        stack.enter_context(page_books._ONE_EXPORT)  # as a long one has it
        asked = [pool.submit(site.web.get, path, token=token) for _ in range(MOST_THREADS)]
        wait_until(
            lambda: sum(one.done() for one in asked) == MOST_THREADS - page_books.MOST_EXPORTS
        )
        assert site.web.get("/api/v1/sessions", token=token).status == 200
        stack.close()
        statuses = sorted(one.result().status for one in asked)
    refused = MOST_THREADS - page_books.MOST_EXPORTS
    assert statuses == [200] * page_books.MOST_EXPORTS + [503] * refused


def test_an_answer_does_not_wait_for_an_acknowledgement() -> None:
    """Nagle's algorithm and a delayed acknowledgement hold a body back for 40 ms."""
    with (
        web_server.listening("any", "127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname(), timeout=20),
    ):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_one_client_does_not_take_all_connections(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_server, "CLIENT_CONNECTIONS", 3)

    def connect(stack: ExitStack, port: int, address: str = "127.0.0.1") -> socket.socket:
        client = socket.create_connection(
            ("127.0.0.1", port), timeout=20, source_address=(address, 0)
        )
        return stack.enter_context(client)

    def answers(client: socket.socket) -> bool:
        client.sendall(b"GET /login HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with suppress(ConnectionError):
            return client.recv(65536).startswith(b"HTTP/1.1 200 ")
        return False

    with serving(site.books.url(WRITER), log_in=True) as web, ExitStack() as stack:
        clients = [connect(stack, web.port) for _ in range(4)]
        assert [answers(client) for client in clients] == [True, True, True, False]
        assert answers(connect(stack, web.port, "127.0.0.2"))
        clients[0].close()
        wait_until(lambda: answers(connect(stack, web.port)))
    proxies = Proxies.of(["127.0.0.1"])
    with serving(site.books.url(WRITER), log_in=True, proxies=proxies) as web, ExitStack() as stack:
        clients = [connect(stack, web.port) for _ in range(5)]
        assert all(answers(client) for client in clients)


def test_forwarded_headers_of_strangers_mean_nothing(site: Site) -> None:
    headers = {"X_Forwarded_Host": "evil.example", "X_Forwarded_Proto": "https"}
    answer = site.web.get("/periods", token=site.tokens["all"], **headers)
    assert answer.status == 200
    with serving(site.books.url(WRITER), log_in=True, proxies=Proxies.of(["192.0.2.0/24"])) as web:
        assert web.get(PATH, **headers).status == 401
        answer = web.post_form("/login", f"token={site.tokens['all']}", **headers)
        assert "Secure" not in answer.headers["set-cookie"]


def test_a_host_that_a_proxy_forwards_is_checked(site: Site) -> None:
    options = {"proxies": Proxies.of(["127.0.0.0/8"]), "hosts": ["good.example"]}
    with serving(site.books.url(WRITER), log_in=True, **options) as web:
        token = site.tokens["all"]
        assert web.get(PATH, token=token, X_Forwarded_Host="good.example").status == 200
        assert web.get(PATH, token=token, X_Forwarded_Host="evil.example").status == 421
        assert (
            web.get(PATH, token=token, X_Forwarded_Host="good.example, evil.example").status == 421
        )


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "client"),
    [
        ("10.0.0.1", "192.0.2.7", "192.0.2.7"),
        ("10.0.0.1", "203.0.113.9, 192.0.2.7", "192.0.2.7"),  # the first is the client's own word
        ("10.0.0.1", "192.0.2.7, 10.0.0.2", "192.0.2.7"),  # two proxies
        ("10.0.0.1", "192.0.2.7:4711", "192.0.2.7"),
        ("10.0.0.1", "[2001:db8::7]:4711", "2001:db8::7"),
        ("10.0.0.1", "2001:db8::7", "2001:db8::7"),
        ("10.0.0.1", "::ffff:192.0.2.7", "192.0.2.7"),
        ("::ffff:10.0.0.1", "192.0.2.7", "192.0.2.7"),
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.7, unknown", "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("192.0.2.1", "192.0.2.7", "192.0.2.1"),  # not a proxy
        (None, "192.0.2.7", "unix"),  # a Unix socket that was not named
    ],
)
def test_the_client_is_the_last_address_that_is_no_proxys(
    peer: str | None, forwarded_for: str, client: str
) -> None:
    scope = {
        "type": "http",
        "scheme": "http",
        "client": None if peer is None else (peer, 1),
        "headers": [(b"host", b"x"), (b"x-forwarded-for", forwarded_for.encode())],
    }
    assert arrival_of(scope, Proxies.of(["10.0.0.0/8"])).client == client
    by_socket = arrival_of({**scope, "client": None}, Proxies.of(["unix", "10.0.0.0/8"])).client
    if peer is not None and ip_address(peer) == ip_address("10.0.0.1"):
        assert by_socket == ("unix" if client == "10.0.0.1" else client)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/?x=" + "a" * 5000, {}, 414),
        ("GET", "/", {"X-Long": "a" * 9000}, 431),
        ("GET", "/", {f"X-{n}": "a" * 80 for n in range(120)}, 431),
        ("POST", "/login", {"Content-Length": "4097"}, 413),
        ("POST", "/login", {"Content-Length": "99999999999999"}, 413),
        ("POST", "/login", {"Transfer-Encoding": "chunked"}, 411),
        ("GET", "/", {"Content-Length": "5000"}, 413),
        ("POST", "/login", {"Content-Length": "0"}, 415),
        ("DELETE", "/login", {}, 405),
        ("PUT", "/", {}, 303),
        ("TRACE", "/login", {}, 405),
    ],
)
def test_requests_that_are_too_large_or_wrong(
    site: Site, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    answer = site.web.request(method, path, headers=headers)
    if method == "PUT":
        assert answer.status == 401  # nothing leads back to a page that was not asked for by GET
        return
    assert answer.status == status
    if status in {411, 413, 414, 431}:
        assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"token=\xff", 403),  # not UTF-8 after decoding: no token is
        (b"\xff=1", 400),
        (b"a=1&b=2&c=3&d=4&e=5", 400),
        (b"", 403),
        (b"token", 403),
        (b"next=/x", 403),
    ],
)
def test_forms_that_are_wrong(site: Site, body: bytes, status: int) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    site.clock.seconds += 3600
    answer = site.web.request("POST", "/login", body=body, headers=headers)
    assert answer.status in {status, 400}


def test_head_and_options(site: Site) -> None:
    token = site.tokens["all"]
    for path in ("/", PATH, "/api/v1/sessions?format=csv", "/static/style.css"):
        got = site.web.get(path, token=token)
        head = site.web.request("HEAD", path, token=token)
        assert (head.status, head.body) == (got.status, b"")
        assert head.headers["content-type"] == got.headers["content-type"]
        options = site.web.request("OPTIONS", path, token=token)
        if "static" not in path:
            assert (options.status, options.headers["allow"]) == (204, "GET, HEAD, OPTIONS")
            refused = site.web.request("DELETE", path, token=token)
            assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
        assert "access-control-allow-origin" not in options.headers
    assert site.web.request("HEAD", "/").status == 303
    assert site.web.request("OPTIONS", PATH).status == 401


def test_files_are_kept_by_browsers_and_books_are_not(site: Site) -> None:
    style = site.web.get("/static/style.css")
    assert style.headers["cache-control"] == "no-cache"
    again = site.web.get("/static/style.css", If_None_Match=style.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    static = Path(web_server.__file__).parent / "static"
    [chart] = (static / "vendor").glob("uplot-*.js")
    kept = site.web.get(f"/static/vendor/{chart.name}")
    assert kept.headers["cache-control"] == "public, max-age=31536000, immutable"
    for path in ("/", PATH, "/login", "/static/nothing.css"):
        answer = site.web.get(path, token=site.tokens["all"])
        assert answer.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py"):
        assert site.web.get(path).status == 404


def test_a_slow_request_is_disconnected(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "REQUEST_SECONDS", 0.3)
    with serving(site.books.url(WRITER), log_in=True) as web:
        for sent in (b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "):
            with socket.create_connection(("127.0.0.1", web.port), timeout=20) as client:
                client.sendall(sent)
                assert client.recv(1) == b""
        # After a request that was answered, too.
        with socket.create_connection(("127.0.0.1", web.port), timeout=20) as client:
            client.sendall(b"GET /login HTTP/1.1\r\nHost: localhost\r\n\r\n")
            received = b""
            while b"</html>" not in received:
                received += client.recv(65536)
            client.sendall(b"GET / HTTP/1.1\r\n")
            rest = client.recv(65536).strip()
            assert rest == b""


def test_a_slow_form_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accounting.web.pages.log_in.BODY_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", site.web.port), timeout=20) as client:
        client.sendall(
            b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
            b"Content-Type: application/x-www-form-urlencoded\r\n\r\ntoken="
        )
        received = b""
        while data := client.recv(65536):
            received += data
    assert received.startswith(b"HTTP/1.1 408 ")
