"""Redis with TLS, replicas, and sentinels."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import redis

from tests.support.collectors import PROMPT_SYNC, redis_client
from tests.support.servers import RedisServer, free_port, wait_until


class TlsRedisServer(RedisServer):
    """Debian's Redis with an additional TLS port and a self-signed certificate for 127.0.0.1."""

    def start(self) -> None:
        certificate, key = self.directory / "certificate.pem", self.directory / "key.pem"
        key_options = [
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ]
        subject = ["-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
        subprocess.run(
            ["openssl", "req", *key_options, *subject, "-keyout", key, "-out", certificate],
            check=True,
            capture_output=True,
        )
        port = str(free_port())
        self.options |= {"tls-port": port, "tls-auth-clients": "no"}
        self.options |= {"tls-cert-file": str(certificate), "tls-key-file": str(key)}
        self.tls_url = f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate}"
        super().start()


# In milliseconds. By default a sentinel asks a server for its replicas every ten seconds, and
# promotes none that has not answered for five of the periods of pings.
SENTINEL_PERIODS: Final = {"info-period": 100, "ping-period": 400, "publish-period": 200}


class Sentinel(RedisServer):
    """A sentinel, same binary; it starts a failover half a second after its master died."""

    def __init__(self, master: RedisServer) -> None:
        super().__init__()
        self._master = master

    def start(self) -> None:
        super().start()
        with redis.Redis.from_url(self.url) as client:
            periods = (str(word) for item in SENTINEL_PERIODS.items() for word in item)
            client.execute_command("SENTINEL", "DEBUG", *periods)

    def command(self) -> list[str]:
        return [self._master.binary, str(self.write_config(self._master.port)), "--sentinel"]

    def write_config(self, port: int, *lines: str) -> Path:
        """Write sentinel.conf for the master at that port."""
        path = self.directory / "sentinel.conf"
        config = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {self.directory}",
            *lines,
            f"sentinel monitor turn 127.0.0.1 {port} 1",
            "sentinel down-after-milliseconds turn 500",
            "sentinel failover-timeout turn 1500",
        ]
        path.write_text("\n".join(config))
        return path


class TlsSentinel(Sentinel):
    """A sentinel with an additional TLS port, its master's certificate, and a password."""

    def __init__(self, master: TlsRedisServer) -> None:
        super().__init__(master)
        self._tls_master = master
        self.options = {"tls-port": str(free_port()), "requirepass": "hush&more"}

    def command(self) -> list[str]:
        certificate, key = (self._tls_master.directory / f"{n}.pem" for n in ("certificate", "key"))
        path = self.write_config(
            int(self._tls_master.options["tls-port"]),
            *(f"{name} {value}" for name, value in self.options.items()),
            f"tls-cert-file {certificate}",
            f"tls-ca-cert-file {certificate}",
            f"tls-key-file {key}",
            "tls-auth-clients no",
            "tls-replication yes",
        )
        return [self._master.binary, str(path), "--sentinel"]

    @property
    def url(self) -> str:
        return f"redis://:hush%26more@127.0.0.1:{self.port}/0"


_REPLICAS: Final[dict[type[RedisServer], RedisServer]] = {}
"""A server of each kind that goes on until this process ends, and so looks old."""


@contextmanager
def replica_of(master: RedisServer, **options: str) -> Iterator[RedisServer]:
    """A replica that is in sync and looks older than a restarted server.

    One with ``options`` is a new server.
    """
    if options:
        with type(master)({**PROMPT_SYNC, **options}) as replica:
            await_age(replica)
            replicate(replica, master)
            yield replica
        return
    replica = _REPLICAS.get(type(master)) or type(master)(PROMPT_SYNC)
    if type(master) not in _REPLICAS:
        replica.start()
        _REPLICAS[type(master)] = replica
    await_age(replica)
    replicate(replica, master)
    try:
        yield replica
    finally:
        with redis_client(replica) as client:
            client.replicaof("NO", "ONE")
            client.flushall()
            for kind in ("normal", "replica", "pubsub"):
                client.client_kill_filter(_type=kind, skipme=True)


def await_age(server: RedisServer) -> None:
    """The uptime is in whole seconds: a younger server looks like one that was restarted."""
    with redis_client(server) as client:
        wait_until(lambda: client.info("server")["uptime_in_seconds"] > 1)


def is_online(replication: dict[str, Any], port: int) -> bool:
    """Whether a master takes the replica at a port for one that it can promote."""
    replicas = (value for key, value in replication.items() if key.startswith("slave"))
    return any(
        (each["port"], each["state"]) == (port, "online")
        for each in replicas
        if isinstance(each, dict)
    )


def replicate(replica: RedisServer, master: RedisServer) -> None:
    """Make a server a replica, and wait until it is in sync and its master knows that."""
    with redis_client(replica) as client, redis_client(master) as of_master:
        client.replicaof("127.0.0.1", master.port)
        wait_until(lambda: client.info("replication")["master_link_status"] == "up")
        wait_until(lambda: is_online(of_master.info("replication"), replica.port))


@contextmanager
def sentinel_of(master: RedisServer, *, replicas: int = 1) -> Iterator[RedisServer]:
    """A sentinel that knows so many replicas of ``master``; a collector is one of them."""
    sentinel = Sentinel(master)
    with sentinel:
        with redis_client(sentinel) as client:
            wait_until(lambda: client.info("sentinel")["master0"]["slaves"] == replicas)
        yield sentinel
