"""The Postgres that the system's packages bring, beside the newer one of the wheel."""

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import IO, Final

import psycopg

from accounting.embedded import DATABASE, child
from accounting.embedded.server_user import ServerUser
from tests.support.servers import PostgresServer, wait_until

_SEARCH_PATH: Final = os.pathsep.join(
    [
        *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"))),
        os.environ.get("PATH", ""),
    ]
)
"""Debian keeps the server's programs off PATH; the oldest version comes first."""


def find_program(name: str) -> str | None:
    """The path of an installed program, those of the system's Postgres included."""
    return shutil.which(name, path=_SEARCH_PATH)


class SystemPostgres(PostgresServer):
    """The oldest Postgres of the system, in a cluster of its own and with a socket only."""

    _process: subprocess.Popen[bytes] | None = None
    _log: IO[bytes]

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server isn't started"
        return self._process.pid

    def url(self, role: str | None = None, database: str = DATABASE) -> str:
        return f"postgresql://{role or 'postgres'}@/{database}?host={self.data_dir}&port=5432"

    def start(self) -> None:
        user = ServerUser.for_servers()
        user.chown(self.data_dir)
        user.allow_traversal_to(self.data_dir)
        cluster = self.data_dir / "cluster"
        initdb = ["--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8", "--auth=trust"]
        subprocess.run(
            [program_path("initdb"), "--pgdata", cluster, "--no-sync", *initdb],
            env=dict(child.ENVIRONMENT),
            cwd="/",
            check=True,
            capture_output=True,
            user=user.uid,
            group=user.gid,
            extra_groups=user.extra_groups,
        )
        settings = {
            **self.settings,
            "listen_addresses": "",
            "unix_socket_directories": str(self.data_dir),
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._log = (self.data_dir / "server.log").open("wb")
        self._process = child.spawn(
            [program_path("postgres"), "-D", cluster, *options],
            user=user,
            output=self._log,
            death_signal=signal.SIGINT,
        )
        wait_until(self._is_ready)
        with psycopg.connect(self.url(database="postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}".encode())

    def _is_ready(self) -> bool:
        try:
            psycopg.connect(self.url(database="postgres")).close()
        except psycopg.OperationalError:
            return False
        return True

    def _shut_down(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGINT)
            process.wait(30)
            self._log.close()


def program_path(name: str) -> str:
    """The path of an installed program; fails the test without it."""
    path = find_program(name)
    assert path is not None, f"{name} is not installed"
    return path
