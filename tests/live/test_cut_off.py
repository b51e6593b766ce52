"""examples/cut_off against coturn: at a limit a user's sessions end, and no new one begins."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import md5
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from accounting.domain.realm_rules import RealmRule
from accounting.identities.realm_rules import set_rule
from accounting.usage.limits.limit_rules import set_limit
from tests.support.books import READER, Books
from tests.support.coturn_server import TurnServer, run_client, running_client
from tests.support.servers import ADDRESS, ValkeyServer, free_port, wait_until
from tests.support.service import ROOT, Service

pytestmark = pytest.mark.needs_coturn

EXAMPLE: Final = ROOT / "examples/cut_off"
SECRET: Final = "north"
CLI_PASSWORD: Final = "south"
LIFETIME_SECONDS: Final = 4
REST: Final = "example.org"
KEYS: Final = "keys.example"
LIMIT_BYTES: Final = 300_000


@contextmanager
def program(
    name: str, log: Path, settings: Mapping[str, str], *options: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A program of the example, which runs until the block ends."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, EXAMPLE / name, *options],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **settings},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield process
        assert process.poll() is None, log.read_text()
    finally:
        process.terminate()
        process.wait(30)


def ask_credentials(port: int, user: str) -> tuple[int, dict[str, Any]]:
    """The answer of the credential service."""
    connection = HTTPConnection(ADDRESS, port, timeout=10)
    try:
        connection.request("GET", f"/?user={user}")
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def answers(port: int) -> bool:
    try:
        return ask_credentials(port, "nobody")[0] == 200
    except OSError:
        return False


def session_ends(books: Books, user: str) -> list[str | None]:
    return [row["end_cause"] for row in books.rows("sessions") if row["user_id"] == user]


def limit_every_user(books: Books, realm: str, amount: int) -> None:
    set_limit(books.engine, realm, every_user=True, measure="bytes", per="day", amount=amount)


def long_term_key(user: str, realm: str, password: str) -> str:
    """What ``turnadmin --add`` stores."""
    return md5(f"{user}:{realm}:{password}".encode(), usedforsecurity=False).hexdigest()


def test_a_user_over_a_limit_is_cut_off_and_others_are_not(books: Books, tmp_path: Path) -> None:
    """REST credentials in one realm; in the other one keys in Redis, which come back."""
    data_dir = tmp_path / "data"
    port = free_port()
    with ValkeyServer() as valkey, redis.Redis.from_url(valkey.url) as userdb:
        settings = {
            "ACCOUNTING_DATABASE_URL": books.url(),
            "ACCOUNTING_REDIS_URL": valkey.url,
        }
        for realm in (REST, KEYS):
            set_rule(
                books.engine, realm, {"time_zone": "UTC"}, default=RealmRule(), holds_from=None
            )
            limit_every_user(books, realm, LIMIT_BYTES)
        userdb.set(f"turn/realm/{KEYS}/user/carol/key", long_term_key("carol", KEYS, "c"))
        with (
            Service("up", data_dir, settings) as up,
            TurnServer(valkey.port, realm=REST, secret=SECRET, cli_password=CLI_PASSWORD) as rest,
            TurnServer(
                valkey.port,
                realm=KEYS,
                cli_password=CLI_PASSWORD,
                options=[f"--redis-userdb=ip={ADDRESS} dbname=0 port={valkey.port}"],
            ) as keys,
            program(
                "credentials.py",
                tmp_path / "credentials.log",
                {"ACCOUNTING_DATABASE_URL": books.url(READER), "TURN_SECRET": SECRET},
                *("--realm", REST, "--port", str(port), "--lifetime", str(LIFETIME_SECONDS)),
            ),
            program(
                "cut_off.py",
                tmp_path / "cut_off.log",
                {
                    "ACCOUNTING_DATABASE_URL": books.url(READER),
                    "COTURN_CLI_PASSWORD": CLI_PASSWORD,
                },
                *(f"--server={ADDRESS}:{server.cli_port}" for server in (rest, keys)),
                *("--userdb", valkey.url, "--lifetime", str(LIFETIME_SECONDS)),
            ),
        ):
            up.wait_until_capturing()
            wait_until(lambda: answers(port))
            alice, bob = (ask_credentials(port, user)[1] for user in ("alice", "bob"))
            with (
                running_client(rest, bob["username"], bob["password"], interval_ms=100),
                running_client(keys, "carol", "c"),
                running_client(rest, alice["username"], alice["password"]),
            ):
                up.wait_for(lambda: "deleted" in session_ends(books, "alice"))
                up.wait_for(lambda: "deleted" in session_ends(books, "carol"))
            # Her credentials are still valid, and end her sessions again.
            status, answer = ask_credentials(port, "alice")
            assert (status, answer["detail"]) == (403, "alice has used up a limit")
            assert ask_credentials(port, "bob")[0] == 200
            assert set(session_ends(books, "bob")) == {None}
            assert run_client(keys, "carol", "c", messages=5).code != 0
            assert not userdb.exists(f"turn/realm/{KEYS}/user/carol/key")
            expires_at = int(alice["username"].partition(":")[0])
            # coturn reads the clock once a second.
            wait_until(lambda: time.time() > expires_at + 2)
            again = run_client(rest, alice["username"], alice["password"], messages=5)
            assert again.code != 0
            limit_every_user(books, KEYS, 10**12)
            wait_until(lambda: userdb.exists(f"turn/realm/{KEYS}/user/carol/key"))
            assert run_client(keys, "carol", "c", messages=5).code == 0
            assert up.stop() == 0
