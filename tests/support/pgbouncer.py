"""A PgBouncer in transaction mode before a test's Postgres."""

import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg

from accounting.embedded import DATABASE, child
from accounting.embedded.server_user import ServerUser
from tests.support.servers import PostgresServer, free_port, wait_until
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
"""


class PooledPostgres(PostgresServer):
    """A server that is reached through a pooler."""

    def __init__(self, port: int) -> None:
        self.port = port

    def url(self, role: str | None = None, database: str = DATABASE) -> str:
        return f"postgresql://{role or 'postgres'}@127.0.0.1:{self.port}/{database}"


@contextmanager
def run_pgbouncer(server: PostgresServer, pool_size: int) -> Iterator[PooledPostgres]:
    """Run a pooler with so many connections at most for each database and user."""
    with tempfile.TemporaryDirectory(prefix="ta-test-") as name:
        directory = Path(name)
        info = psycopg.conninfo.conninfo_to_dict(server.url())
        users = directory / "users.txt"
        users.write_text(
            "".join(
                f'"{role}" ""\n'
                for role in ("postgres", "turn_accounting_writer", "turn_accounting_reader")
            )
        )
        listen_port = free_port()
        configuration = directory / "pgbouncer.ini"
        configuration.write_text(
            _CONFIGURATION.format(
                socket=info["host"],
                port=info.get("port", 5432),
                listen_port=listen_port,
                users=users,
                pool_size=pool_size,
            )
        )
        user = ServerUser.for_servers()
        for path in (directory, users, configuration):
            user.chown(path)
        user.allow_traversal_to(configuration)
        with (directory / "pgbouncer.log").open("wb") as log:
            process = child.spawn(
                [program_path("pgbouncer"), configuration],
                user=user,
                output=log,
                death_signal=signal.SIGINT,
            )
        pooled = PooledPostgres(listen_port)

        def is_ready() -> bool:
            try:
                psycopg.connect(pooled.url()).close()
            except psycopg.OperationalError:
                return False
            return True

        try:
            wait_until(is_ready)
            yield pooled
        finally:
            process.terminate()
            process.wait(10)
