"""A PgBouncer in transaction mode before a test's Postgres."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import psycopg

from accounting.embedded import DATABASE, child
from accounting.embedded.server_user import ServerUser
from tests.support.books import READER
from tests.support.servers import PostgresServer, Server, free_port, wait_until
from tests.support.system_postgres import program_path

_CONFIGURATION: Final = """
[databases]
* = host={socket} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = transaction
default_pool_size = {pool_size}
server_login_retry = 1
"""


class PooledPostgres(PostgresServer):
    """A server that the logins of the service reach through a pooler, and its owner directly."""

    def __init__(self, server: PostgresServer, port: int) -> None:
        self.server = server
        self.port = port

    def url(self, role: str | None = None, database: str = DATABASE) -> str:
        if role is None:
            return self.server.url(None, database)
        return f"postgresql://{role}@127.0.0.1:{self.port}/{database}"


class PgBouncer(Server):
    """The pooler, with at most ``pool_size`` connections for each database and user."""

    def __init__(self, server: PostgresServer, pool_size: int) -> None:
        super().__init__()
        self._server = server
        self._pool_size = pool_size
        self.pooled = PooledPostgres(server, free_port())

    def start(self) -> None:
        assert self.process is None, "the pooler runs already"
        info = psycopg.conninfo.conninfo_to_dict(self._server.url())
        users = self.directory / "users.txt"
        users.write_text(
            "".join(
                f'"{role}" ""\n'
                for role in ("postgres", "turn_accounting_writer", "turn_accounting_reader")
            )
        )
        configuration = self.directory / "pgbouncer.ini"
        configuration.write_text(
            _CONFIGURATION.format(
                socket=info["host"],
                port=info.get("port", 5432),
                listen_port=self.pooled.port,
                users=users,
                pool_size=self._pool_size,
            )
        )
        user = ServerUser.for_servers()
        for path in (self.directory, users, configuration):
            user.chown(path)
        user.allow_traversal_to(configuration)
        with self.log_path.open("ab") as log:
            self.process = child.spawn(
                [program_path("pgbouncer"), configuration],
                user=user,
                output=log,
                death_signal=signal.SIGINT,
            )

    def is_ready(self) -> bool:
        try:
            psycopg.connect(self.pooled.url(READER)).close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def run_pgbouncer(server: PostgresServer, pool_size: int) -> Iterator[PooledPostgres]:
    """Run a pooler with so many connections at most for each database and user."""
    with PgBouncer(server, pool_size) as pooler:
        wait_until(pooler.is_ready)
        yield pooler.pooled
