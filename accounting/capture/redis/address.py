"""Where Redis is: at a fixed endpoint, or at the master that sentinels name.

Errors never contain the URL, since it may contain a password.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from redis.connection import AbstractConnection, Connection, parse_url
from redis.exceptions import AuthenticationError, AuthorizationError, RedisError, ResponseError

from accounting.capture.redis.connection import execute_command
from accounting.capture.redis.replies import BoundedParser
from accounting.capture.source import SourceLost
from accounting.errors import ConfigurationError

CONNECT_TIMEOUT_SECONDS: Final = 5.0

HOST: Final = re.compile(rb"[A-Za-z0-9._:%-]{1,255}")
"""A name or an address, which becomes a part of a URL."""
MAX_PORT_DIGITS: Final = 5

EXPECTED_URL: Final = (
    "ACCOUNTING_REDIS_URL is not understood: expected redis://[user:password@]host:port,"
    " rediss:// for TLS, unix:///path, or redis+sentinel://host:port,host:port/service,"
    " with options that redis-py knows"
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server; ``url`` holds the login and the options of redis-py.

    ``by_sentinels``: sentinels named it.
    """

    url: str = field(repr=False)
    by_sentinels: bool = False

    @property
    def shown_address(self) -> str:
        """Host and port, or the path of the socket: for messages, without the login."""
        parts = urlsplit(self.url)
        return parts.netloc.rpartition("@")[2] or parts.path

    def new_connection(
        self, *, timeout_seconds: float = CONNECT_TIMEOUT_SECONDS
    ) -> AbstractConnection:
        """A connection that is not connected yet. Raises ConfigurationError for a wrong URL.

        It selects no database: PUBLISH ignores the number, and SELECT needs a permission.
        """
        try:
            options: dict[str, Any] = parse_url(self.url)  # type: ignore[no-untyped-call]
            connection_class = options.pop("connection_class", Connection)
            options.pop("db", None)
            # With RESP2 the reply to a PING comes in order with the messages, as ``pong`` + token.
            options |= {
                "protocol": 2,
                "parser_class": BoundedParser,
                "socket_timeout": timeout_seconds,
                "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
            }
            connection: AbstractConnection = connection_class(**options)
        except (ValueError, TypeError, RedisError):
            # The texts of these errors may contain parts of the URL, and so the password.
            raise ConfigurationError(EXPECTED_URL) from None
        return connection


class Address(Protocol):
    """A way to find the server that coturn publishes to."""

    def resolve(self) -> Endpoint:
        """Where the server is now. Raises SourceLost when that can't be found out."""
        ...


@dataclass(frozen=True, slots=True)
class StaticAddress:
    """One endpoint that never changes."""

    endpoint: Endpoint

    def resolve(self) -> Endpoint:
        return self.endpoint


@dataclass(frozen=True, slots=True)
class SentinelAddress:
    """Sentinels that name the current master of a service.

    ``login`` and ``options`` become part of the master's URL.
    """

    urls: Sequence[str] = field(repr=False)
    service: str
    scheme: str
    login: str = field(repr=False)
    options: str = field(repr=False)

    def resolve(self) -> Endpoint:
        """The master, by the first sentinel that knows it.

        Raises SourceLost when no sentinel replies, with advice when none knows the service.
        """
        master = None
        replied = False
        for url in self.urls:
            connection = Endpoint(url).new_connection()
            try:
                connection.connect()  # type: ignore[no-untyped-call]
                master = execute_command(
                    connection, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service
                )
            except (AuthenticationError, AuthorizationError, ResponseError) as error:
                raise SourceLost(
                    "redis_unreachable",
                    f"a sentinel refuses the query: {error}",
                    "check sentinel_username and sentinel_password in ACCOUNTING_REDIS_URL",
                ) from None
            except (RedisError, OSError):
                continue
            finally:
                connection.disconnect()  # type: ignore[no-untyped-call]
            replied = True
            if master is not None:
                break
        if master is not None:
            host, port = parse_master(master)
            url_host = f"[{host}]" if ":" in host else host
            url = f"{self.scheme}://{self.login}{url_host}:{port}{self.options}"
            return Endpoint(url, by_sentinels=True)
        if replied:
            raise SourceLost(
                "redis_unreachable",
                f"the sentinels know no master of service {self.service!r}",
                "set the service in ACCOUNTING_REDIS_URL to its name in sentinel.conf",
            )
        raise SourceLost("redis_unreachable", "no sentinel replies")


class ReloadedAddress:
    """The address in a URL that may change, such as its password; read at each ``resolve``."""

    def __init__(self, read_url: Callable[[], str]) -> None:
        """Raises ConfigurationError when the first URL is malformed."""
        self._read_url = read_url
        self._url = read_url()
        self._address = parse_address(self._url)

    def resolve(self) -> Endpoint:
        """Where the server is, by the URL that is set now; by the one before if it is malformed."""
        url = self._read_url()
        if url != self._url:
            self._url = url
            with suppress(ConfigurationError):
                self._address = parse_address(url)
        return self._address.resolve()


def parse_master(reply: object) -> tuple[str, int]:
    """Host and port in a sentinel's reply. Raises SourceLost when they can't be that."""
    match reply:
        case [bytes(host), bytes(port)] if (
            HOST.fullmatch(host) and len(port) <= MAX_PORT_DIGITS and port.isdigit()
        ):
            return host.decode("ascii"), int(port)
    raise SourceLost("redis_unreachable", "a sentinel's reply is not an address")


def parse_address(url: str) -> Address:
    """The address in a URL. Raises ConfigurationError when the URL is malformed."""
    scheme, is_url, _ = url.partition("://")
    if not is_url or not scheme.endswith("+sentinel"):
        endpoint = Endpoint(url)
        endpoint.new_connection()  # checks the URL
        return StaticAddress(endpoint)
    try:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
    except ValueError:
        raise ConfigurationError(EXPECTED_URL) from None
    scheme = scheme.removesuffix("+sentinel")
    login, at, host_list = parts.netloc.rpartition("@")
    hosts = host_list.split(",")
    service = unquote(parts.path.strip("/").partition("/")[0])
    if scheme not in ("redis", "rediss") or not service or not all(hosts):
        raise ConfigurationError(EXPECTED_URL)
    user, password = query.pop("sentinel_username", ""), query.pop("sentinel_password", "")
    options = f"?{urlencode(query)}" if query else ""
    sentinel_login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if password else ""
    sentinels = SentinelAddress(
        urls=[
            f"{scheme}://{sentinel_login}{host if _has_port(host) else f'{host}:26379'}{options}"
            for host in hosts
        ],
        service=service,
        scheme=scheme,
        login=login + at,
        options=options,
    )
    for checked_url in (*sentinels.urls, f"{scheme}://{login}{at}localhost:1{options}"):
        Endpoint(checked_url).new_connection()
    return sentinels


def _has_port(host: str) -> bool:
    return ":" in host.rpartition("]")[2]
