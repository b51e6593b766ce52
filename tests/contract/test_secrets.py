"""A running service keeps its secrets: passwords are neither in its arguments nor its output."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psycopg
import pytest
import redis
from sqlalchemy import insert
from sqlalchemy.exc import DBAPIError

from accounting.db.schema import sources
from tests.support.books import READER, Books, cloned_database
from tests.support.command import environment, turn_accounting
from tests.support.servers import PostgresServer, ValkeyServer, wait_until

REDIS_PASSWORD: Final = "r3dis-p4ssword"
DATABASE_PASSWORD: Final = "p0stgres-p4ssword"
USERNAME: Final = "secretive-alice"
CAPTURING: Final = "SELECT FROM reporting.sources WHERE captured_until IS NOT NULL"
ACCOUNTED: Final = "SELECT FROM reporting.user_usage_hourly"
CHANNEL: Final = f"turn/realm/example.org/user/{USERNAME}/allocation/000000000000000001/status"


def with_password(url: str) -> str:
    """The same URL with a password."""
    before, at, after = url.partition("@")
    return f"{before}:{DATABASE_PASSWORD}{at}{after}"


def arguments_of_all_processes() -> bytes:
    arguments = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments.append(path.read_bytes())
        except OSError:  # the process ended meanwhile
            continue
    return b"\n".join(arguments)


@contextmanager
def running(
    command: str, settings: Mapping[str, str], output_file: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """The service's process, with its output in a file; killed at the end of the block."""
    with output_file.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "accounting", command],
            env=environment(settings),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.kill()  # its child processes die with it
        process.wait()


def returns_rows(url: str, query: str) -> bool:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).rowcount > 0


def test_up_prints_neither_passwords_nor_the_identity_key(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """At debug, where libraries log too; events at info and above have no usernames."""
    password = {"requirepass": REDIS_PASSWORD}
    with ValkeyServer(password) as valkey, cloned_database(postgres_server) as name:
        output_file = tmp_path / "said"
        settings = {
            "database_url": with_password(postgres_server.url("postgres", name)),
            "redis_url": valkey.url,
            "data_dir": str(tmp_path / "data"),
            "log_level": "debug",
            "log_format": "json",
            "capture": "replication",
            "settle_interval_seconds": "0.2",
            "rollup_interval_seconds": "0.2",
        }
        reader = postgres_server.url(READER, name)
        with running("up", settings, output_file) as process:
            wait_until(lambda: returns_rows(reader, CAPTURING), 60, "nothing is captured")
            with redis.Redis.from_url(valkey.url) as client:
                client.publish(CHANNEL, "new lifetime=600")
                client.publish(CHANNEL, f"nonsense of {USERNAME}")
            wait_until(lambda: returns_rows(reader, ACCOUNTED), 60, "nothing was accounted")
            process_arguments = arguments_of_all_processes()
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        with psycopg.connect(postgres_server.url(database=name)) as connection:
            [(key,)] = connection.execute("SELECT identity_key FROM accounting.installation")
    output = output_file.read_bytes()
    assert b"redis-statsdb=" in output
    assert b"password=<password>" in output
    for secret in (REDIS_PASSWORD, DATABASE_PASSWORD):
        assert secret.encode() not in output
        # The test starts the server with its password as an argument; the service must not.
        own_arguments = b"\n".join(
            line for line in process_arguments.split(b"\n") if b"--requirepass" not in line
        )
        assert secret.encode() not in own_arguments
    assert key.hex().encode() not in output
    assert repr(key).encode() not in output
    assert json.dumps(repr(key)).strip('"').encode() not in output
    events = [json.loads(line) for line in output.splitlines() if line.startswith(b"{")]
    assert {event["level"] for event in events} >= {"debug", "info"}
    assert not [event for event in events if event["level"] != "debug" and USERNAME in str(event)]


def test_config_masks_what_it_prints() -> None:
    result = turn_accounting(
        "config",
        "--json",
        database_url=f"postgresql://u:{DATABASE_PASSWORD}@127.0.0.1/books",
        redis_url=f"redis://:{REDIS_PASSWORD}@127.0.0.1/0",
    )
    values = {row["variable"]: (row["value"], row["origin"]) for row in result.rows}
    assert values["ACCOUNTING_DATABASE_URL"] == (
        "postgresql://u:***@127.0.0.1/books",
        "ACCOUNTING_DATABASE_URL",
    )
    assert values["ACCOUNTING_REDIS_URL"] == ("redis://:***@127.0.0.1/0", "ACCOUNTING_REDIS_URL")
    assert DATABASE_PASSWORD not in result.out + result.err
    assert REDIS_PASSWORD not in result.out + result.err


def test_an_error_of_the_database_holds_no_names(books: Books) -> None:
    """Errors are logged with tracebacks, and the parameters of a statement are usernames."""
    with pytest.raises(DBAPIError) as raised, books.engine.begin() as connection:
        connection.execute(
            insert(sources), {"source": USERNAME, "mode": "a mode that the table refuses"}
        )
    assert "mode_is_known" in str(raised.value)
    assert "parameters hidden" in str(raised.value)
