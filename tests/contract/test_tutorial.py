"""docs/tutorial.md: from an empty server to an invoice, each command as it stands, in order."""

import os
import sys
from pathlib import Path
from typing import Final

import psycopg
import pytest

from tests.support.command import environment
from tests.support.page_commands import PageShell, command_blocks
from tests.support.postgres_programs import programs_directory
from tests.support.servers import PostgresServer, RedisServer, ValkeyServer, free_port, wait_until
from tests.support.system_postgres import SystemPostgres

BLOCKS: Final = command_blocks("docs/tutorial.md")
BILLED: Final = "SELECT coalesce(sum(sessions_ended), 0) FROM reporting.realm_usage_hourly"


@pytest.mark.long
@pytest.mark.parametrize(
    ("postgres_class", "redis_class"),
    [
        pytest.param(PostgresServer, ValkeyServer, id="wheels"),
        pytest.param(
            SystemPostgres,
            RedisServer,
            id="distribution",
            marks=[pytest.mark.needs_postgres, pytest.mark.needs_redis],
        ),
    ],
)
def test_the_tutorial_goes_from_an_empty_server_to_an_invoice(
    postgres_class: type[PostgresServer], redis_class: type[RedisServer], tmp_path: Path
) -> None:
    """This environment stands for the installed one; servers and page are at other addresses."""
    ran = ["install"]
    with postgres_class(fsync=True) as postgres, redis_class() as redis:
        with psycopg.connect(postgres.url()) as connection:
            roles = connection.execute("SELECT count(*) FROM pg_roles WHERE rolname !~ '^pg_'")
            assert roles.fetchone() == (1,)
        page_port = str(free_port())
        programs = [str(Path(sys.executable).parent), str(programs_directory()), os.environ["PATH"]]
        variables = {
            **environment({"web_listen": f"127.0.0.1:{page_port}"}),
            **postgres.login(),
            "PATH": os.pathsep.join(programs),
        }
        with PageShell(tmp_path, variables) as shell:

            def run(name: str) -> str:
                ran.append(name)
                commands = BLOCKS[name].replace("localhost:6379", f"localhost:{redis.port}")
                return shell.run(commands.replace("@localhost/", "@/"))

            def has_usage() -> bool:
                with psycopg.connect(postgres.url(database="accounting")) as books:
                    return books.execute(BILLED).fetchone() == (40,)

            for name in ("database", "logins", "start"):
                run(name)
            assert "Europe/Berlin" in run("realm")
            assert "40 sessions" in run("publish")
            wait_until(has_usage, 60)
            assert "error" not in run("doctor")
            assert "example.org" in run("look")
            assert "preview" in run("invoice")
            assert len((tmp_path / "invoice.csv").read_text().splitlines()) == 5
            run("stop")
    assert ran == list(BLOCKS)
