"""Serving by the settings, and as a process of ``up``: addresses, log-in, rights, and its end."""

import http.client
import os
import queue
import re
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from accounting.config import Settings
from accounting.errors import ConfigurationError
from accounting.ops.doctor import Level
from accounting.ops.doctor.web_page import check_page
from accounting.ops.fork_server import ProcessStarter
from accounting.ops.web_process import web_process
from accounting.reporting.reader import DatabaseReader
from accounting.web.access.tokens import create_token
from accounting.web.run import run
from tests.support.books import WRITER, Books
from tests.support.servers import ValkeyServer, free_port, wait_until
from tests.support.service import SHORT_SERVICE, Service, descendants

PATH: Final = "/api/v1/periods"
LIBRARY: Final = "/markupsafe/_speedups"
"""A file that Jinja2 maps into the memory of its process: the rest of it is Python."""


def get(port: int, path: str = PATH, host: str = "127.0.0.1", **headers: str) -> tuple[int, str]:
    """The status and the body; 0 while nothing listens."""
    connection = http.client.HTTPConnection(host, port, timeout=20)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    except ConnectionRefusedError:
        return 0, ""
    finally:
        connection.close()


@contextmanager
def running(books: Books, **settings: Any) -> Iterator[str]:
    """Serve by these settings in a thread; the address, once it listens."""
    stop, addresses = threading.Event(), queue.Queue[str]()
    with closing(DatabaseReader(books.url(WRITER), takes_role=True)) as database:
        arguments = (Settings(**settings), database, stop, lambda shown, _: addresses.put(shown))
        thread = threading.Thread(target=run, args=arguments)
        thread.start()
        try:
            yield addresses.get(timeout=20)
        finally:
            stop.set()
            thread.join()


@pytest.mark.parametrize(
    ("address", "settings", "is_open"),
    [
        ("127.0.0.1", {}, True),
        ("[::1]", {}, True),
        ("localhost", {}, True),
        ("127.0.0.1", {"web_login": "required"}, False),
        ("127.0.0.1", {"web_proxies": "192.0.2.1"}, False),
        ("127.0.0.1", {"web_proxies": "unix"}, False),
        ("127.0.0.1", {"web_hosts": "usage.example.org"}, False),
        ("127.0.0.1", {"web_hosts": "localhost"}, True),
        ("0.0.0.0", {}, False),  # noqa: S104
        ("[::]", {}, False),
    ],
)
def test_where_a_log_in_is_asked_for(
    access_books: Books, address: str, settings: dict[str, str], is_open: bool
) -> None:
    listen = f"{address}:{free_port()}"
    with running(access_books, web_listen=listen, **settings) as shown:
        assert shown == f"http://{listen}/"
        port = int(listen.rpartition(":")[2])
        host = "::1" if "::" in address else "127.0.0.1"
        assert get(port, host=host)[0] == (200 if is_open else 401)
        assert get(port, host=host, Host="localhost")[0] == (200 if is_open else 401)
        assert get(port, host=host, Host="evil.example")[0] == 421


def test_a_unix_socket_asks_for_a_log_in(access_books: Books, tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
    token, _ = create_token(access_books.engine, days=1)
    with running(access_books, web_listen=f"unix:{path}") as shown:
        assert shown == f"unix:{path}"
        assert path.stat().st_mode & 0o777 == 0o660
        answers = []
        for header in ("", f"Authorization: Bearer {token}\r\n"):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                client.sendall(f"GET {PATH} HTTP/1.0\r\nHost: localhost\r\n{header}\r\n".encode())
                answers.append(client.recv(12))
        assert answers == [b"HTTP/1.1 401", b"HTTP/1.1 200"]
    assert not path.exists()


def test_an_address_that_is_taken(access_books: Books, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        closing(DatabaseReader(access_books.url(WRITER))) as database,
    ):
        for address in (f"127.0.0.1:{taken.getsockname()[1]}", f"unix:{file}"):
            with pytest.raises(ConfigurationError, match=f"can't listen on {address}: Address"):
                run(Settings(web_listen=address), database, threading.Event(), lambda *_: None)


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


def up(books: Books, valkey: ValkeyServer, **settings: str) -> Service:
    given = {f"ACCOUNTING_{name.upper()}": value for name, value in settings.items()}
    urls = {"ACCOUNTING_DATABASE_URL": books.url(WRITER), "ACCOUNTING_REDIS_URL": valkey.url}
    settings = {**urls, "ACCOUNTING_WEB_LISTEN": "", **given}
    return Service("up", books.directory / "data", settings, module=SHORT_SERVICE)


def test_doctor_asks_for_the_page_where_it_should_be(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert list(check_page(settings)) == []  # it was never served
    assert list(check_page(Settings(web_listen="off"))) == []
    port = free_port()
    (tmp_path / "web-port").write_text(f"{port}\n")
    [finding] = check_page(settings)
    assert (finding.level, finding.observed) == (
        Level.WARNING,
        f"127.0.0.1:{port}: Connection refused",
    )
    assert "ACCOUNTING_WEB_LISTEN=off" in finding.advice


def test_it_is_no_process_where_it_is_off() -> None:
    with socket.socket() as channel:
        assert web_process(Settings(web_listen="off"), ProcessStarter(channel), None) is None


def test_up_serves_the_page_restarts_it_and_outlives_it(books: Books, valkey: ValkeyServer) -> None:
    with up(books, valkey) as service:
        service.wait_for(lambda: service.events("the page is served"))
        [event] = service.events("the page is served")
        port = int(re.findall(r"http://127\.0\.0\.1:(\d+)/", event["address"])[0])
        assert f"the page is on {event['address']}\n" in service.log_text()
        assert (books.directory / "data" / "web-port").read_text() == f"{port}\n"
        assert get(port)[0] == 200
        with psycopg.connect(books.url()) as connection:
            names = connection.execute(
                "SELECT DISTINCT application_name FROM pg_stat_activity"
                " WHERE datname = current_database()"
            ).fetchall()
        assert ("turn-accounting serve",) in names
        first, collector = service.child_pid("serve"), service.child_pid("collect")
        # Only this process has imported its libraries.
        having = [pid for pid in [service.pid, *descendants(service.pid)] if LIBRARY in maps(pid)]
        assert having == [first]
        os.kill(first, signal.SIGKILL)
        second = service.wait_for_child("serve", other_than=first)
        service.wait_for(lambda: get(port)[0] == 200)
        with port_taken_from(second, port):
            over = "child process exited, not restarting it"
            service.wait_for(lambda: service.events(over), 30)
        assert service.log_text().count(f"can't listen on 127.0.0.1:{port}") == 1
        assert service.child_pid("collect") == collector
        assert service.stop() == 0


def maps(pid: int) -> str:
    with suppress(OSError):  # a worker of Postgres that has ended
        return Path(f"/proc/{pid}/maps").read_text()
    return ""


@contextmanager
def port_taken_from(pid: int, port: int) -> Iterator[None]:
    """Kill a process, and listen on its port before it is restarted."""
    listeners: list[socket.socket] = []

    def takes_port() -> bool:
        with suppress(OSError):
            listeners.append(socket.create_server(("127.0.0.1", port)))
        return bool(listeners)

    os.kill(pid, signal.SIGKILL)
    wait_until(takes_port)
    try:
        yield
    finally:
        listeners[0].close()


def test_it_ends_in_seconds_while_requests_wait(access_books: Books, tmp_path: Path) -> None:
    settings = {
        "ACCOUNTING_DATABASE_URL": access_books.url(WRITER),
        "ACCOUNTING_WEB_LISTEN": f"127.0.0.1:{free_port()}",
    }
    port = int(settings["ACCOUNTING_WEB_LISTEN"].rpartition(":")[2])
    with Service("serve", tmp_path / "data", settings) as service:
        service.wait_for(lambda: "serving on" in service.log_text())
        assert f":{port}/, without a log-in\n" in service.log_text()
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        try:
            [end] = access_books.query("SELECT max(seq) AS seq FROM reporting.feed")
            waiting = f"GET /api/v1/feed?after={end['seq']}&wait=60 HTTP/1.1\r\nHost: localhost\r\n"
            clients[0].sendall(f"{waiting}\r\n".encode())
            clients[1].sendall(b"GET / HTTP/1.1\r\n")
            assert get(port)[0] == 200
            clients[0].setblocking(False)
            with pytest.raises(BlockingIOError):
                clients[0].recv(1)
            assert service.stop(timeout_seconds=10) == 0
            assert "Traceback" not in service.log_text()
        finally:
            for client in clients:
                client.close()


def test_it_stays_small(access_books: Books, tmp_path: Path) -> None:
    """Also after a file in Parquet, and many large answers at once."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    settings = {
        "ACCOUNTING_DATABASE_URL": access_books.url(WRITER),
        "ACCOUNTING_WEB_LISTEN": address,
    }
    file = "/statement/download?realm=example.org&period=2026-10-01&format=parquet"
    with Service("serve", tmp_path / "data", settings, module="accounting") as service:
        service.wait_for(lambda: "serving on" in service.log_text())
        paths = ["/", "/realm?realm=example.org", "/sessions", "/periods", "/gaps", file]
        assert [get(port, path)[0] for path in paths] == [200] * len(paths)
        with ThreadPoolExecutor(8) as threads:
            answers = threads.map(lambda _: get(port, f"{PATH}?limit=1000")[0], range(40))
            assert set(answers) == {200}
        assert [finding.observed for finding in check_page(Settings(web_listen=address))] == [
            f"answers on {address}"
        ]
        assert not any(name in maps(service.pid) for name in ("arrow", "sqlalchemy"))
        [kilobytes] = re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{service.pid}/status").read_text())
        assert int(kilobytes) * 1024 < 90_000_000
