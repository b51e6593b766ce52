"""What a request to another server may reach, and what that server can do to this one."""

import socket
import ssl
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounting.errors import UsageError
from accounting.webhooks.message import FailureReason, Request, Response, SendFailed
from accounting.webhooks.outbound_policy import OutboundPolicy, SocketAddress, special_kind
from accounting.webhooks.transport import MAX_BODY_BYTES, Sender
from tests.support.certificates import CertificateAuthority
from tests.support.scripted_server import Answer, ScriptedServer, fixed
from tests.support.servers import free_port

SECRET: Final = "T0K3N"
PUBLIC_ONLY: Final = OutboundPolicy()
PRIVATE_TOO: Final = OutboundPolicy(private_addresses=True)
IMPATIENT: Final = OutboundPolicy(private_addresses=True, total_seconds=0.4)
OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def request(url: str, *, body: bytes = b"{}", headers: dict[str, str] | None = None) -> Request:
    return Request(url=url, headers=headers or {}, body=body, events=())


def secret_url(server: ScriptedServer | int, host: str = "127.0.0.1", scheme: str = "http") -> str:
    port = server if isinstance(server, int) else server.port
    return f"{scheme}://{host}:{port}/hooks/{SECRET}?key={SECRET}"


def resolver(*answers: Sequence[str]) -> Callable[[str, int], Sequence[SocketAddress]]:
    """Answers each lookup with the next addresses, and fails after the last."""
    following = iter(answers)

    def resolve(host: str, port: int) -> Sequence[SocketAddress]:
        assert host == "hooks.test"
        return [(address, port) for address in next(following)]

    return resolve


def send(
    url: str,
    policy: OutboundPolicy = PRIVATE_TOO,
    *,
    body: bytes = b"{}",
    tls: ssl.SSLContext | None = None,
    lookup: Callable[[str, int], Sequence[SocketAddress]] | None = None,
) -> Response:
    resolving = {} if lookup is None else {"resolver": lookup}
    with Sender(policy, tls=tls, **resolving) as sender:
        return sender.send(request(url, body=body))


def failure(url: str, policy: OutboundPolicy = PRIVATE_TOO, *, body: bytes = b"{}") -> SendFailed:
    with pytest.raises(SendFailed) as caught:
        send(url, policy, body=body)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    return caught.value


# Addresses

SPECIAL: Final = [
    ("0.0.0.0", "reserved"),  # noqa: S104
    ("10.1.2.3", "private"),
    ("100.64.0.1", "private"),
    ("127.0.0.1", "loopback"),
    ("127.255.255.254", "loopback"),
    ("169.254.169.254", "link-local"),
    ("172.16.0.1", "private"),
    ("172.31.255.255", "private"),
    ("192.0.0.8", "reserved"),
    ("192.168.1.1", "private"),
    ("198.19.0.1", "private"),
    ("203.0.113.9", "reserved"),
    ("224.0.0.1", "multicast"),
    ("255.255.255.255", "reserved"),
    ("::", "reserved"),
    ("::1", "loopback"),
    ("::7f00:1", "reserved"),
    ("64:ff9b:1::a00:1", "private"),
    ("100::1", "reserved"),
    ("2001::1", "reserved"),
    ("2001:db8::1", "reserved"),
    ("3fff::1", "reserved"),
    ("5f00::1", "reserved"),
    ("fc00::1", "private"),
    ("fd12:3456::1", "private"),
    ("fe80::1", "link-local"),
    ("fe80::1%2", "link-local"),
    ("fec0::1", "private"),
    ("ff02::1", "multicast"),
    ("::ffff:127.0.0.1", "loopback"),
    ("::ffff:10.0.0.1", "private"),
    ("64:ff9b::127.0.0.1", "loopback"),
    ("64:ff9b::169.254.169.254", "link-local"),
    ("2002:7f00:1::1", "loopback"),
    ("2002:c0a8:101::1", "private"),
]
PUBLIC: Final = [
    "8.8.8.8", "100.63.255.255", "172.32.0.1", "2606:4700::1111", "2a00:1450::1",
    "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1",
]  # fmt: skip


@pytest.mark.parametrize(("address", "kind"), [*SPECIAL, *((each, None) for each in PUBLIC)])
def test_each_special_address_is_recognized_in_each_of_its_forms(
    address: str, kind: str | None
) -> None:
    assert special_kind(ip_address(address)) == kind


@given(st.ip_addresses(v=4))
def test_an_ipv6_address_that_leads_to_one_of_ipv4_is_what_that_one_is(
    address: IPv4Address,
) -> None:
    kind = special_kind(address)
    for network, shift in (("::ffff:0:0", 0), ("64:ff9b::", 0), ("2002::", 80)):
        embedding = IPv6Address(int(IPv6Address(network)) + (int(address) << shift))
        assert special_kind(embedding) == kind


@given(st.ip_addresses())
def test_no_address_is_public_that_python_calls_private(
    address: IPv4Address | IPv6Address,
) -> None:
    if special_kind(address) is None and not getattr(address, "sixtofour", None):
        embedded = int(address) & 0xFFFFFFFF
        is_nat64 = address.version == 6 and int(address) >> 32 == 0x64FF9B << 64
        assert (IPv4Address(embedded) if is_nat64 else address).is_global


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "017700000001", "0177.0.0.1",
        "localhost", "LOCALHOST", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
    ],
)  # fmt: skip
def test_loopback_is_refused_however_it_is_written(host: str) -> None:
    error = failure(secret_url(443, host, "https"), PUBLIC_ONLY)
    assert error.reason == "address"
    assert "loopback address: expected a public one, or --allow-private" in str(error)


def test_of_a_name_with_public_and_private_addresses_only_the_public_ones_are_used() -> None:
    target = PUBLIC_ONLY.target("https://hooks.test/")
    mixed: list[SocketAddress] = [
        ("10.0.0.1", 443),
        ("8.8.8.8", 443),
        ("fd00::1", 443, 0, 0),
        ("1.1.1.1", 443),
    ]
    assert PUBLIC_ONLY.allowed(target, mixed) == [("8.8.8.8", 443), ("1.1.1.1", 443)]
    with pytest.raises(SendFailed, match=r"hooks.test: 10.0.0.1 is a private address"):
        PUBLIC_ONLY.allowed(target, [mixed[0], mixed[2]])
    with pytest.raises(SendFailed, match=r"hooks.test: it has no address"):
        PUBLIC_ONLY.allowed(target, [])


def test_the_address_that_was_checked_is_the_one_that_is_connected_to() -> None:
    """A name whose address changes between check and connection: the other one sees nothing."""
    port = free_port()
    with (
        ScriptedServer(fixed(OK), address=("127.0.0.1", port)) as first,
        ScriptedServer(fixed(OK), address=("127.0.0.2", port)) as second,
    ):
        lookup = resolver(["127.0.0.1"], ["127.0.0.2"])
        send(secret_url(port, "hooks.test"), lookup=lookup)
        assert (first.connections, second.connections) == (1, 0)
        send(secret_url(port, "hooks.test"), lookup=lookup)
        assert (first.connections, second.connections) == (1, 1)


def test_each_new_connection_checks_the_addresses_of_its_name_again() -> None:
    """A name that had an allowed address, and then has one that is not."""
    with ScriptedServer(fixed(OK.replace(b"OK\r", b"OK\r\nConnection: close\r"))) as server:
        lookup = resolver(["127.0.0.1"], ["0.0.0.0"])  # noqa: S104  # it reaches loopback
        with Sender(PRIVATE_TOO, resolver=lookup) as sender:
            sender.send(request(secret_url(server, "hooks.test")))
            with pytest.raises(SendFailed, match=r"hooks.test: 0.0.0.0 is a reserved address"):
                sender.send(request(secret_url(server, "hooks.test")))
        assert server.connections == 1


def test_a_second_address_is_tried_when_the_first_refuses() -> None:
    with ScriptedServer(fixed(OK), address=("127.0.0.2", 0)) as server:
        lookup = resolver(["127.0.0.1", "127.0.0.2"])
        assert send(secret_url(server, "hooks.test"), lookup=lookup).status == 200


# URLs


def test_http_is_for_private_addresses_that_are_allowed() -> None:
    with pytest.raises(UsageError, match="expected https"):
        PUBLIC_ONLY.check_url("http://hooks.test/")
    with pytest.raises(UsageError, match=r"http to 8.8.8.8, a public address: expected https"):
        PRIVATE_TOO.check_url("http://8.8.8.8/")
    PRIVATE_TOO.check_url("http://hooks.test/")
    target = PRIVATE_TOO.target("http://hooks.test/")
    with pytest.raises(SendFailed, match=r"hooks.test: http to 8.8.8.8, a public address"):
        PRIVATE_TOO.allowed(target, [("8.8.8.8", 80)])
    assert PRIVATE_TOO.allowed(target, [("10.0.0.1", 80)]) == [("10.0.0.1", 80)]


@pytest.mark.parametrize(
    "url",
    [
        "", "hooks.test/T0K3N", "ftp://hooks.test/T0K3N", "https:///T0K3N", "https://:443/T0K3N",
        "https://T0K3N@hooks.test/", "https://me:T0K3N@hooks.test/", "https://hooks.test/#T0K3N",
        "https://hooks.test:0/T0K3N", "https://hooks.test:99999/T0K3N", "https://hooks.test:x/",
        "https://hooks.test\\@10.0.0.1/T0K3N", "https://hooks.test/T0K3N\r\nX: y",
        "https://hooks.tést/T0K3N", "https://hooks test/T0K3N", "https://a..b/T0K3N",
        "https://[fe80::1%25eth0]/T0K3N", "https://[T0K3N]/", "https://hooks%2etest/T0K3N",
        "https://.hooks.test/T0K3N", "https://" + "a." * 200 + "test/T0K3N",
    ],
)  # fmt: skip
def test_a_wrong_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(UsageError, match=r"the URL has .*: expected https://host/path") as refused:
        PRIVATE_TOO.check_url(url)
    assert SECRET not in str(refused.value)
    assert failure(url).reason == "url"


def test_the_request_is_what_the_url_and_the_format_say() -> None:
    with (
        ScriptedServer(fixed(OK)) as server,
        Sender(PRIVATE_TOO) as sender,
    ):
        url = f"http://localhost:{server.port}?a=b%20c"
        answer = sender.send(request(url, body=b"[1]", headers={"webhook-id": "7"}))
    assert answer == Response(status=200, body=b"ok")
    assert server.requests[0].body == b"[1]"
    assert server.requests[0].head.decode().split("\r\n") == [
        "POST /?a=b%20c HTTP/1.1",
        f"Host: localhost:{server.port}",
        "User-Agent: turn-accounting",
        "Accept-Encoding: identity",
        "Content-Length: 3",
        "webhook-id: 7",
    ]


def test_a_header_with_a_wrong_character_is_refused_without_showing_it() -> None:
    with ScriptedServer(fixed(OK)) as server, Sender(PRIVATE_TOO) as sender:
        for value in (f"{SECRET}\r\nX: y", f"{SECRET}é"):
            with pytest.raises(SendFailed, match="a header of the request") as refused:
                sender.send(request(secret_url(server), headers={"Authorization": value}))
            assert SECRET not in "".join(traceback.format_exception(refused.value))
        assert server.requests == []


def test_no_proxy_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with ScriptedServer(fixed(OK)) as server:
        assert send(secret_url(server)).status == 200


# Connections


def test_one_connection_takes_many_requests_and_a_closed_one_is_replaced() -> None:
    with ScriptedServer(fixed(OK)) as server, Sender(PRIVATE_TOO) as sender:
        for _ in range(3):
            assert sender.send(request(secret_url(server))).status == 200
        assert [each.connection for each in server.requests] == [1, 1, 1]


def test_a_connection_that_the_server_closed_is_replaced() -> None:
    def answer_and_close(client: socket.socket) -> None:
        client.sendall(OK)
        raise ConnectionError

    with ScriptedServer(answer_and_close) as server, Sender(PRIVATE_TOO) as sender:
        for _ in range(3):
            assert sender.send(request(secret_url(server))).status == 200
            assert server.ended.acquire(timeout=10)
        assert [each.connection for each in server.requests] == [1, 2, 3]


def test_a_sender_closes_its_connection_at_its_end() -> None:
    with ScriptedServer(fixed(OK)) as server:
        with Sender(PRIVATE_TOO) as sender:
            sender.send(request(secret_url(server)))
        assert server.ended.acquire(timeout=10)


def test_a_server_that_nobody_runs_and_a_name_that_nobody_has() -> None:
    port = free_port()
    error = failure(secret_url(port))
    assert (error.reason, str(error)) == ("connect", f"127.0.0.1 port {port}: Connection refused")

    def lookup(*_: object) -> Sequence[SocketAddress]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(SendFailed, match=r"^hooks.test: Name or service not known$") as unknown:
        send(secret_url(port, "hooks.test"), lookup=lookup)
    assert unknown.value.reason == "name"


# Answers


def repeated(head: bytes, part: bytes) -> Answer:
    """An answer without end."""

    def answer(client: socket.socket) -> None:
        client.sendall(head)
        while True:
            client.sendall(part)

    return answer


def closing(data: bytes) -> Answer:
    """An answer after which the connection is closed."""

    def answer(client: socket.socket) -> None:
        client.sendall(data)
        raise ConnectionError

    return answer


def resetting(data: bytes) -> Answer:
    """An answer after which the connection is reset."""

    def answer(client: socket.socket) -> None:
        client.sendall(data)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        raise ConnectionError

    return answer


HEAD: Final = b"HTTP/1.1 200 OK\r\n"
LENGTH: Final = HEAD + b"Content-Length: 9\r\n\r\n"
CHUNKED: Final = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "reason", "text"),
    [
        (closing(b""), "closed", "lost before a complete answer"),
        (closing(LENGTH + b"T0K3N"), "closed", "lost before a complete answer"),
        (closing(CHUNKED + b"5\r\nT0K3N"), "closed", "lost before a complete answer"),
        (resetting(b""), "closed", "lost before a complete answer"),
        (resetting(LENGTH), "closed", "lost before a complete answer"),
        (fixed(b"T0K3N\r\n\r\n"), "protocol", "its answer is not HTTP"),
        (fixed(b"HTTP/1.1 T0K3N\r\n\r\n"), "protocol", "its answer is not HTTP"),
        (fixed(CHUNKED + b"T0K3N\r\n"), "protocol", "its answer is not HTTP"),
        (repeated(HEAD, b"X-Padding: " + b"x" * 999 + b"\r\n"), "protocol", "is not HTTP"),
        (repeated(HEAD + b"X: ", b"x" * 999), "protocol", "its answer is not HTTP"),
        (repeated(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"), "size", "longer than 512 KiB"),
        (repeated(CHUNKED + b"5;", b"x" * 999), "protocol", "its answer is not HTTP"),
        (fixed(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n"), "protocol", "is not HTTP"),
    ],
)
def test_an_answer_that_does_not_count(answer: Answer, reason: FailureReason, text: str) -> None:
    with ScriptedServer(answer) as server:
        error = failure(secret_url(server))
    assert error.reason == reason
    assert str(error).startswith(f"127.0.0.1 port {server.port}: ")
    assert text in str(error)


@pytest.mark.parametrize("status", [301, 302, 303, 304, 307, 308])
def test_a_redirect_is_a_failure_and_is_not_followed(status: int) -> None:
    with ScriptedServer(fixed(OK)) as other:
        location = f"Location: http://127.0.0.1:{other.port}/T0K3N\r\n"
        head = f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n{location}\r\n".encode()
        with ScriptedServer(fixed(head)) as server:
            error = failure(secret_url(server))
        assert (error.reason, error.status) == ("redirect", status)
        assert f"answer {status}, a redirect, and none is followed" in str(error)
        assert other.connections == 0


@pytest.mark.parametrize(
    "answer",
    [
        repeated(HEAD + b"\r\n", b"x" * 999),
        repeated(HEAD + b"Content-Length: 99999999999\r\n\r\n", b"x" * 999),
        repeated(CHUNKED, b"64\r\n" + b"x" * 100 + b"\r\n"),
    ],
)
def test_of_a_body_without_end_the_first_64_kib_are_read(answer: Answer) -> None:
    with ScriptedServer(answer) as server, Sender(PRIVATE_TOO) as sender:
        for _ in range(2):
            response = sender.send(request(secret_url(server)))
            assert response == Response(status=200, body=b"x" * MAX_BODY_BYTES)
        assert [each.connection for each in server.requests] == [1, 2]


def test_a_body_of_tiny_chunks_without_end_is_too_long() -> None:
    with ScriptedServer(repeated(CHUNKED, b"1;" + b"y" * 90 + b"\r\nx\r\n")) as server:
        assert failure(secret_url(server)).reason == "size"


@pytest.fixture
def dribble() -> Iterator[Callable[[bytes, bytes], Answer]]:
    """An answer that comes in small parts, each long before a timeout of its own."""
    test_is_over = threading.Event()

    def make(head: bytes, part: bytes) -> Answer:
        def answer(client: socket.socket) -> None:
            client.sendall(head)
            while not test_is_over.wait(0.02):
                client.sendall(part)

        return answer

    yield make
    test_is_over.set()


@pytest.mark.parametrize(
    ("head", "part"),
    [(b"", b""), (b"", b"H"), (HEAD + b"X: ", b"x"), (LENGTH.replace(b"9", b"99"), b"x")],
    ids=["nothing", "a status line", "a header", "a body"],
)
def test_an_answer_must_be_complete_by_the_deadline_however_slowly_it_comes(
    dribble: Callable[[bytes, bytes], Answer], head: bytes, part: bytes
) -> None:
    with ScriptedServer(dribble(head, part)) as server:
        error = failure(secret_url(server), IMPATIENT)
    assert error.reason == "deadline"
    assert str(error) == f"127.0.0.1 port {server.port}: no complete answer within 0.4 s"


def test_a_server_that_does_not_read_a_request_is_left_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert failure(secret_url(port), IMPATIENT, body=b"x" * (16 << 20)).reason == "deadline"


def test_a_server_that_begins_no_tls_and_a_resolver_that_hangs_are_left_at_the_deadline() -> None:
    policy = OutboundPolicy(private_addresses=True, connect_seconds=0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        error = failure(secret_url(port, scheme="https"), policy)
        assert error.reason == "deadline"
        assert str(error) == f"127.0.0.1 port {port}: no connection within 0.3 s"
    answer = threading.Event()

    def hang(host: str, port: int) -> Sequence[SocketAddress]:
        assert answer.wait(60)
        return [(host, port)]

    with pytest.raises(SendFailed, match=r"hooks.test port 9: no connection within 0.3 s"):
        send("http://hooks.test:9/", policy, lookup=hang)
    answer.set()


def test_an_early_answer_to_a_long_request_is_read() -> None:
    """A server that refuses a body by its length answers, and reads no further."""
    refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            client = listener.accept()[0]
            with client, suppress(OSError):
                client.recv(100)
                client.sendall(refusal)
                client.shutdown(socket.SHUT_WR)
                while client.recv(1 << 20):
                    pass

        thread = threading.Thread(target=refuse)
        thread.start()
        assert send(secret_url(listener.getsockname()[1]), body=b"x" * (8 << 20)).status == 413
        thread.join()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ("Retry-After: 120", 120.0),
        ("retry-after:  0 ", 0.0),
        ("Retry-After: -5", None),
        ("Retry-After: 1e9", None),
        ("Retry-After: " + "9" * 400, None),
        ("Retry-After: soon", None),
        ("X: y", None),
        (
            "Date: Sat, 28 Nov 2026 10:00:00 GMT\r\nRetry-After: Sat, 28 Nov 2026 10:02:00 GMT",
            120.0,
        ),
        (
            "Date: Sat, 28 Nov 2026 10:00:00 GMT\r\nRetry-After: Sat, 28 Nov 2026 09:00:00 GMT",
            0.0,
        ),
        ("Date: x\r\nRetry-After: Sat, 28 Nov 2020 09:00:00 GMT", 0.0),
    ],
)
def test_when_a_server_asks_to_be_tried_again(headers: str, seconds: float | None) -> None:
    head = f"HTTP/1.1 429 Slow down\r\nContent-Length: 0\r\n{headers}\r\n\r\n"
    with ScriptedServer(fixed(head.encode())) as server:
        answer = send(secret_url(server))
    assert answer == Response(status=429, body=b"", retry_after_seconds=seconds)


# Certificates


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(
        tmp_path_factory.mktemp("authority"), hosts=["hooks.test"], addresses=["127.0.0.1"]
    )


def server_tls(authority: CertificateAuthority, certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, authority.key)
    return context


@pytest.mark.needs_openssl
def test_tls_and_the_host_header_have_the_name_and_not_the_address(
    authority: CertificateAuthority,
) -> None:
    tls = server_tls(authority, authority.issue(timedelta(days=1)))
    names: list[str | None] = []
    tls.sni_callback = lambda _socket, name, _context: names.append(name)
    trusted = ssl.create_default_context(cafile=authority.certificate)
    with ScriptedServer(fixed(OK), tls=tls) as server:
        url = secret_url(server, "hooks.test", "https")
        lookup = resolver(["127.0.0.1"])
        with Sender(PRIVATE_TOO, tls=trusted, resolver=lookup) as sender:
            for _ in range(2):
                assert sender.send(request(url)).status == 200
        assert send(secret_url(server, scheme="https"), tls=trusted).status == 200
    assert [each.connection for each in server.requests] == [1, 1, 2]
    assert names == ["hooks.test", None]
    assert f"Host: hooks.test:{server.port}".encode() in server.requests[0].head


@pytest.mark.needs_openssl
def test_a_certificate_that_proves_nothing_is_refused_before_anything_is_sent(
    authority: CertificateAuthority,
) -> None:
    valid, expired = (authority.issue(timedelta(days=days)) for days in (1, -0.5))
    trusted = ssl.create_default_context(cafile=authority.certificate)
    cases = [
        (valid, "other.test", trusted, "Hostname mismatch, certificate is not valid for"),
        (expired, "hooks.test", trusted, "certificate has expired"),
        (valid, "hooks.test", None, "unable to get local issuer certificate"),
        (authority.certificate, "hooks.test", None, "self-signed certificate"),
    ]
    for certificate, host, whom_to_trust, text in cases:
        key = authority.key.with_name("authority.key")
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(
            certificate, key if certificate == authority.certificate else authority.key
        )
        with (
            ScriptedServer(fixed(OK), tls=tls) as server,
            pytest.raises(SendFailed, match=text) as refused,
        ):
            send(
                secret_url(server, host, "https"),
                tls=whom_to_trust,
                lookup=lambda _, port: [("127.0.0.1", port)],
            )
        assert refused.value.reason == "tls"
        assert SECRET not in str(refused.value)
        assert server.requests == []


def test_a_server_without_tls_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with listener.accept()[0] as client:
                client.recv(1 << 16)
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        error = failure(secret_url(listener.getsockname()[1], scheme="https"))
        thread.join()
    assert error.reason == "tls"
    assert "port" in str(error)
