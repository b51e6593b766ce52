"""Where Redis is: behind one address, or the master that sentinels name.

Owns the way from a URL to a server. Must not log in or read a message: that is `connection`'s. No
error or log of this module holds the URL.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import redis
from redis.connection import AbstractConnection, Connection, parse_url
from redis.exceptions import AuthenticationError, AuthorizationError, RedisError, ResponseError

from accounting.capture.source import SourceLost
from accounting.errors import ConfigurationError

CONNECT_TIMEOUT_SECONDS = 5.0

EXPECTED_URL = (
    "ACCOUNTING_REDIS_URL is not understood: expected redis://[user:password@]host:port,"
    " rediss:// for TLS, unix:///path, or redis+sentinel://host:port,host:port/service,"
    " with options that redis-py knows"
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server; every connection that is prepared goes to it."""

    url: str = field(repr=False)

    def new_connection(
        self, *, timeout_seconds: float = CONNECT_TIMEOUT_SECONDS
    ) -> AbstractConnection:
        """A connection that is not connected yet. Raises ConfigurationError for a wrong URL.

        It chooses no database: publishing ignores the number, and choosing takes a right.
        """
        # The texts of these errors may hold parts of the URL, and with them the password.
        try:
            options: dict[str, Any] = parse_url(self.url)  # type: ignore[no-untyped-call]
            kind = options.pop("connection_class", Connection)
            options.pop("db", None)
            # RESP2 answers a PING in the order of the messages, with the words we match on.
            options |= {
                "protocol": 2,
                "socket_timeout": timeout_seconds,
                "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
            }
            connection: AbstractConnection = kind(**options)
        except (ValueError, TypeError, RedisError):
            raise ConfigurationError(EXPECTED_URL) from None
        return connection


class Address(Protocol):
    """What leads to the server that coturn publishes to, now."""

    def resolve(self) -> Endpoint:
        """Ask where it is. Raises SourceLost when nobody knows."""
        ...


@dataclass(frozen=True, slots=True)
class StaticAddress:
    """An address that never changes."""

    endpoint: Endpoint

    def resolve(self) -> Endpoint:
        return self.endpoint


@dataclass(frozen=True, slots=True)
class SentinelAddress:
    """Sentinels that know which server is the master of a service at the moment.

    Raises SourceLost when none of them answers, with advice when they don't know the service.
    """

    urls: Sequence[str] = field(repr=False)
    service: str
    scheme: str
    user: str = field(repr=False)
    options: str = field(repr=False)

    def resolve(self) -> Endpoint:
        found = None
        answered = False
        for url in self.urls:
            with redis.Redis.from_url(
                url,
                protocol=2,
                socket_timeout=CONNECT_TIMEOUT_SECONDS,
                socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
            ) as client:
                try:
                    found = client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", self.service)
                except (AuthenticationError, AuthorizationError, ResponseError) as error:
                    raise SourceLost(
                        "redis_unreachable",
                        f"a sentinel refuses to answer: {error}",
                        "set sentinel_username and sentinel_password in ACCOUNTING_REDIS_URL right",
                    ) from None
                except (RedisError, OSError):
                    continue  # another one may know
            answered = True
            if found:
                break
        if found:
            host, port = (part.decode() if isinstance(part, bytes) else part for part in found)
            shown = f"[{host}]" if ":" in host else host
            return Endpoint(f"{self.scheme}://{self.user}{shown}:{port}{self.options}")
        if answered:
            raise SourceLost(
                "redis_unreachable",
                f"the sentinels know no master of service {self.service!r}",
                "set the name of the service in ACCOUNTING_REDIS_URL as sentinel.conf has it",
            )
        raise SourceLost("redis_unreachable", "no sentinel answers")


def parse_address(url: str) -> Address:
    """The address that a URL stands for. Raises ConfigurationError when it is no such URL."""
    scheme, is_url, _ = url.partition("://")
    if not is_url or not scheme.endswith("+sentinel"):
        place = Endpoint(url)
        place.new_connection()
        return StaticAddress(place)
    try:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
    except ValueError:
        raise ConfigurationError(EXPECTED_URL) from None
    scheme = scheme.removesuffix("+sentinel")
    user, at, hosts = parts.netloc.rpartition("@")
    service = unquote(parts.path.strip("/").partition("/")[0])
    if scheme not in ("redis", "rediss") or not service or not all(hosts.split(",")):
        raise ConfigurationError(EXPECTED_URL)
    name, password = query.pop("sentinel_username", ""), query.pop("sentinel_password", "")
    options = f"?{urlencode(query)}" if query else ""
    login = f"{quote(name, safe='')}:{quote(password, safe='')}@" if password else ""
    sentinels = SentinelAddress(
        urls=[
            f"{scheme}://{login}{host if _has_port(host) else f'{host}:26379'}{options}"
            for host in hosts.split(",")
        ],
        service=service,
        scheme=scheme,
        user=user + at,
        options=options,
    )
    for one in sentinels.urls:
        Endpoint(one).new_connection()
    Endpoint(f"{scheme}://{user}{at}localhost:1{options}").new_connection()
    return sentinels


def _has_port(host: str) -> bool:
    return ":" in host.rpartition("]")[2]
