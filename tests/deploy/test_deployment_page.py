"""The commands of docs/deployment.md, as they stand, under a real systemd and real servers."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import psycopg
import pytest

from tests.support.command import environment
from tests.support.deployments import DEPLOY
from tests.support.page_commands import command_blocks
from tests.support.postgres_programs import programs_directory
from tests.support.servers import PostgresServer, ValkeyServer, free_port, wait_until
from tests.support.systemd import Systemd

BLOCKS: Final = command_blocks("docs/deployment.md")
REDIS: Final = "redis://accounting:secret-of-the-collector@127.0.0.1:6379/0"
UNITS: Final = ("collect@default", "schedule", "serve")


def test_the_units_have_the_extras_that_they_need() -> None:
    export = (DEPLOY / "systemd" / "turn-accounting-export.service").read_text()
    assert "--format parquet" in export
    assert "'.[web,webhooks,parquet]'" in BLOCKS["install"]


@pytest.mark.long
@pytest.mark.needs_root
@pytest.mark.needs_systemd
def test_the_page_leads_from_an_empty_server_to_books(
    servers: tuple[PostgresServer, ValkeyServer],
) -> None:
    """Of ``install`` the test's systemd has the result already."""
    postgres, valkey = servers
    host = str(postgres.running.socket_dir)
    files = {
        "collect-default.env": f"ACCOUNTING_METRICS_LISTEN=127.0.0.1:{free_port()}\n",
        "schedule.env": f"ACCOUNTING_METRICS_LISTEN=127.0.0.1:{free_port()}\n",
        "serve.env": f"ACCOUNTING_WEB_LISTEN=127.0.0.1:{free_port()}\n",
    }
    with Systemd(files) as systemd:

        def run(name: str) -> str:
            commands = BLOCKS[name].replace("@127.0.0.1/accounting", f"@/accounting?host={host}")
            commands = commands.replace("PGHOST=127.0.0.1", f"PGHOST={host}")
            commands = commands.replace(REDIS, valkey.url)
            path = f"{programs_directory()}:/usr/sbin:/usr/bin:/sbin:/bin"
            script = f"set -eu; export PATH={path} PGHOST={host}; {commands}"
            return systemd.run("bash", "-c", script)

        for name in ("database", "secrets"):
            run(name)
        modes = systemd.run(
            "bash",
            "-c",
            "stat --format %a:%U /etc/turn-accounting/[dpr]*-url* /etc/turn-accounting/pgpass",
        )
        assert set(modes.split()) == {"600:root"}
        run("start")
        for unit in UNITS:
            assert systemd.properties(f"turn-accounting-{unit}.service", "ActiveState") == {
                "ActiveState": "active"
            }
        assert "restored and verified" in systemd.logs()
        with psycopg.connect(postgres.url(database="accounting"), autocommit=True) as admin:
            captured = "SELECT FROM reporting.sources WHERE captured_until IS NOT NULL"
            wait_until(lambda: admin.execute(captured).fetchone() is not None, 30)
        assert "everything is loaded" in run("doctor")


@pytest.mark.long
def test_the_logins_of_kubernetes_are_enough(
    servers: tuple[PostgresServer, ValkeyServer], tmp_path: Path
) -> None:
    """The owner upgrades, without a superuser."""
    postgres, _ = servers
    programs = f"{programs_directory()}:{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-euc", BLOCKS["logins"]],
        env={"PATH": programs, "ADMIN_URL": postgres.url()},
        check=True,
        timeout=30,
    )
    for login, words in (
        ("accounting_owner", ["db", "upgrade"]),
        ("accounting_writer", ["job", "run", "partitions"]),
        ("accounting_reader", ["usage", "--since", "today"]),
    ):
        settings = {"database_url": postgres.url(login, "accounting"), "data_dir": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-m", "accounting", *words],
            env=environment(settings),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
