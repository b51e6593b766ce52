"""Sends requests to other people's servers, and limits what such a server can do to this one.

A name is resolved once for each connection, its addresses are checked, and the connection goes to
a checked address, so that a name can't change its address in between. TLS and the ``Host`` header
keep the name. Redirects are not followed, and no proxy is taken from the environment: httpcore
does neither. One deadline holds for all of a request, however slowly the server sends.

No error contains a URL's path or query, which may be a secret, nor anything that a server sent.
"""

import functools
import logging
import os
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import IPv6Address, ip_address
from queue import Empty, SimpleQueue
from typing import Final, Self, cast

import certifi
import httpcore

from accounting.webhooks.message import Request, Response, SendFailed
from accounting.webhooks.outbound_policy import OutboundPolicy, SocketAddress
from accounting.webhooks.target_url import Target

logging.getLogger("httpcore").setLevel(logging.INFO)  # its debug records have header fields

MAX_BODY_BYTES: Final = 64 << 10
MAX_ANSWER_BYTES: Final = 512 << 10
"""Header, body and their framing. The header alone is limited to 100 KiB by httpcore."""
KEEPALIVE_SECONDS: Final = 4.0
"""Servers close idle connections after 5 seconds or more."""
_SECONDS: Final = re.compile(r"\d{1,9}")
Resolver = Callable[[str, int], Sequence[SocketAddress]]
"""The socket addresses of a host and port; raises OSError."""


def resolve(host: str, port: int) -> Sequence[SocketAddress]:
    """The socket addresses that this machine's resolver has for a host, by its order."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [cast("SocketAddress", address) for *_, address in found]


@functools.cache
def default_tls() -> ssl.SSLContext:
    """Trusts the authorities of this machine and of certifi.

    With ``SSL_CERT_FILE`` or ``SSL_CERT_DIR`` set, those of OpenSSL's settings only.
    """
    context = ssl.create_default_context()
    if not {"SSL_CERT_FILE", "SSL_CERT_DIR"} & os.environ.keys():
        context.load_verify_locations(certifi.where())
    return context


class _Network(httpcore.NetworkBackend):
    """Makes the connections of one sender, and limits the present request in time and bytes."""

    def __init__(self, policy: OutboundPolicy, resolver: Resolver) -> None:
        self._policy = policy
        self._resolver = resolver
        self.has_ended = False

    def begin(self, target: Target) -> None:
        """A request begins: its limits are counted from now."""
        now = time.monotonic()
        self._target = target
        self._end = now + self._policy.total_seconds
        self._connect_end = now + min(self._policy.connect_seconds, self._policy.total_seconds)
        self._bytes_left = MAX_ANSWER_BYTES
        self.has_ended = False

    @property
    def server(self) -> str:
        """The host and port, for messages."""
        return f"{self._target.host} port {self._target.port}"

    def seconds_left(self) -> float:
        """The time that the request has left. Raises SendFailed when there is none."""
        if (seconds := self._end - time.monotonic()) > 0:
            return seconds
        raise self.late_answer()

    def connect_seconds_left(self) -> float:
        """As above, for connecting."""
        if (seconds := self._connect_end - time.monotonic()) > 0:
            return seconds
        raise self.late_connection()

    def lost_connection(self) -> SendFailed:
        text = "the connection was lost before a complete answer"
        return SendFailed(f"{self.server}: {text}", "closed")

    def failed_tls(self, error: OSError) -> SendFailed:
        if isinstance(error, TimeoutError):
            return self.late_connection()
        if isinstance(error, ssl.SSLCertVerificationError):
            return SendFailed(f"{self.server}: certificate: {error.verify_message}", "tls")
        return SendFailed(f"{self.server}: TLS: {error.strerror or 'connection lost'}", "tls")

    def late_answer(self) -> SendFailed:
        seconds = self._policy.total_seconds
        return SendFailed(f"{self.server}: no complete answer within {seconds:g} s", "deadline")

    def late_connection(self) -> SendFailed:
        seconds = self._policy.connect_seconds
        return SendFailed(f"{self.server}: no connection within {seconds:g} s", "deadline")

    def count_bytes(self, count: int) -> None:
        """Bytes of the answer have come. Raises SendFailed when they are too many."""
        self._bytes_left -= count
        if self._bytes_left < 0:
            limit = MAX_ANSWER_BYTES >> 10
            raise SendFailed(f"{self.server}: its answer is longer than {limit} KiB", "size")

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002  # the deadline is what counts
        local_address: str | None = None,  # noqa: ARG002  # never set
        socket_options: Iterable[object] | None = None,  # noqa: ARG002  # never set
    ) -> httpcore.NetworkStream:
        """Connect to the first address of a host that is allowed and accepts. Raises SendFailed."""
        addresses = self._policy.allowed(self._target, self._addresses(host, port))
        for position, address in enumerate(addresses):
            seconds = self.connect_seconds_left() / (len(addresses) - position)
            family = socket.AF_INET6 if len(address) == 4 else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.settimeout(seconds)
            try:
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                sock.close()
                failure = error
            else:
                return _Stream(sock, self)
        if isinstance(failure, TimeoutError):
            raise self.late_connection() from failure
        raise SendFailed(f"{self.server}: {failure.strerror}", "connect") from failure

    def _addresses(self, host: str, port: int) -> Sequence[SocketAddress]:
        """The socket addresses of a host. A resolver may take longer than a request has."""
        with suppress(ValueError):
            address = ip_address(host)
            return [(host, port, 0, 0) if isinstance(address, IPv6Address) else (host, port)]
        results: SimpleQueue[Sequence[SocketAddress] | OSError | UnicodeError] = SimpleQueue()

        def run() -> None:
            try:
                results.put(self._resolver(host, port))
            except (OSError, UnicodeError) as error:  # of a label that is no IDNA
                results.put(error)

        threading.Thread(target=run, name="resolve", daemon=True).start()
        try:
            result = results.get(timeout=self.connect_seconds_left())
        except Empty:
            raise self.late_connection() from None
        if isinstance(result, UnicodeError):
            raise SendFailed(f"{host}: not a name that can be looked up", "name") from result
        if isinstance(result, OSError):
            raise SendFailed(f"{host}: {result.strerror}", "name") from result
        return result


class _Stream(httpcore.NetworkStream):
    """A connection, with the limits of its network in the place of httpcore's timeouts."""

    def __init__(self, sock: socket.socket, network: _Network) -> None:
        self._socket = sock
        self._network = network

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        """At most that many bytes; none at the end. Raises SendFailed."""
        self._socket.settimeout(self._network.seconds_left())
        try:
            data = self._socket.recv(max_bytes)
        except TimeoutError as error:
            raise self._network.late_answer() from error
        except OSError as error:
            raise self._network.lost_connection() from error
        if not data:
            self._network.has_ended = True
        self._network.count_bytes(len(data))
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        """Send all bytes. After a WriteError httpcore still reads an answer."""
        rest = memoryview(buffer)
        while rest:
            self._socket.settimeout(self._network.seconds_left())
            try:
                rest = rest[self._socket.send(rest) :]
            except TimeoutError as error:
                raise self._network.late_answer() from error
            except OSError as error:
                raise httpcore.WriteError(str(error)) from error

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        """The same connection with TLS. Raises SendFailed."""
        try:
            self._socket.settimeout(self._network.connect_seconds_left())
            sock = ssl_context.wrap_socket(self._socket, server_hostname=server_hostname)
        except BaseException as error:
            self._socket.close()
            if isinstance(error, OSError):
                raise self._network.failed_tls(error) from error
            raise
        return _Stream(sock, self._network)

    def close(self) -> None:
        self._socket.close()

    def get_extra_info(self, info: str) -> object:
        """For httpcore: whether an idle connection has something to read, such as its end."""
        if info != "is_readable":
            return None
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))


class Sender:
    """Sends requests one after another, over one connection while a server keeps it.

    For one thread. The owner closes it.
    """

    def __init__(
        self,
        policy: OutboundPolicy,
        *,
        tls: ssl.SSLContext | None = None,
        resolver: Resolver = resolve,
    ) -> None:
        """``tls``: whom to trust; :func:`default_tls` by default."""
        self._policy = policy
        self._network = _Network(policy, resolver)
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls or default_tls(),
            max_connections=1,
            keepalive_expiry=KEEPALIVE_SECONDS,
            network_backend=self._network,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._pool.close()

    def send(self, request: Request) -> Response:
        """The answer to a POST, whatever its status, unless that is a redirect. Raises SendFailed.

        A longer body is cut off at 64 KiB, and its connection is closed.
        """
        target = self._policy.target(request.url)
        self._network.begin(target)
        url = httpcore.URL(
            scheme=target.scheme, host=target.host, port=target.port, target=target.path
        )
        try:
            with self._pool.stream(
                "POST", url, headers=_headers(request, target), content=request.body
            ) as answer:
                body = bytearray()
                for part in answer.iter_stream():
                    body += part
                    if len(body) > MAX_BODY_BYTES:
                        break
        except httpcore.RemoteProtocolError:
            if self._network.has_ended:
                raise self._network.lost_connection() from None
            raise SendFailed(
                f"{self._network.server}: its answer is not HTTP", "protocol"
            ) from None
        except (httpcore.LocalProtocolError, UnicodeEncodeError):
            raise SendFailed("a header of the request has a wrong character", "protocol") from None
        if 300 <= answer.status < 400:
            text = f"answer {answer.status}, a redirect, and none is followed"
            raise SendFailed(f"{self._network.server}: {text}", "redirect", answer.status)
        return Response(
            status=answer.status,
            body=bytes(body[:MAX_BODY_BYTES]),
            retry_after_seconds=_retry_after_seconds(answer.headers),
        )


def _headers(request: Request, target: Target) -> list[tuple[bytes, bytes]]:
    """Raises UnicodeEncodeError."""
    own = {
        "Host": target.authority,
        "User-Agent": "turn-accounting",
        "Accept-Encoding": "identity",
        "Content-Length": str(len(request.body)),
    }
    headers = [*own.items(), *request.headers.items()]
    return [(name.encode("ascii"), value.encode("ascii")) for name, value in headers]


def _retry_after_seconds(headers: Sequence[tuple[bytes, bytes]]) -> float | None:
    """The header ``Retry-After``: a number of seconds, or a time by the server's own clock."""
    values = {name.lower(): value.decode("latin-1").strip() for name, value in headers}
    if not (value := values.get(b"retry-after")):
        return None
    if _SECONDS.fullmatch(value):
        return float(value)
    until = _http_time(value)
    now = _http_time(values.get(b"date", "")) or datetime.now(UTC)
    return None if until is None else max(0.0, (until - now).total_seconds())


def _http_time(value: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
