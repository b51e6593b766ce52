"""The systemd units: valid, restricted, and run by a real systemd against real servers."""

import re
import subprocess
from functools import partial
from pathlib import Path
from socket import create_server
from typing import Final
from urllib.request import urlopen

import pytest
import redis

from tests.support.books import READER, WRITER, Books, channel, status_payload, traffic_payload
from tests.support.servers import ValkeyServer, free_port, wait_until
from tests.support.systemd import UNITS, Systemd

pytestmark = pytest.mark.needs_systemd
MAX_EXPOSURE: Final = 2.0
SERVICES: Final = (
    "turn-accounting-collect@default.service",
    "turn-accounting-schedule.service",
    "turn-accounting-serve.service",
)


def analyze(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_systemd_accepts_every_unit(tmp_path: Path) -> None:
    units = [path for path in UNITS.iterdir() if path.suffix != ".sysusers"]
    assert {path.suffix for path in units} == {".service", ".timer", ".target"}
    checked = analyze("verify", "--man=no", *units)
    # It also complains of the units of other packages that it finds.
    own = [line for line in checked.stderr.splitlines() if "turn-accounting" in line]
    assert (checked.returncode, own) == (0, [])
    (tmp_path / "etc").mkdir()
    created = subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}", UNITS / "turn-accounting.sysusers"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert created.returncode == 0, created.stderr
    [user] = (tmp_path / "etc" / "passwd").read_text().splitlines()
    assert user.startswith("turn-accounting:x:")
    assert user.endswith(":/var/lib/turn-accounting:/usr/sbin/nologin")


@pytest.mark.parametrize("unit", sorted(UNITS.glob("*.service")), ids=lambda unit: unit.stem)
def test_a_service_is_restricted(unit: Path) -> None:
    shown = analyze("security", "--offline=true", "--no-pager", unit).stdout
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", shown)
    assert found is not None, shown
    assert float(found[1]) < MAX_EXPOSURE


def is_inactive(systemd: Systemd, unit: str) -> bool:
    return systemd.properties(unit, "ActiveState")["ActiveState"] == "inactive"


def status_of(systemd: Systemd, unit: str) -> dict[str, str]:
    """What the kernel says of the main process of a unit."""
    pid = systemd.properties(unit, "MainPID")["MainPID"]
    lines = systemd.run("cat", f"/proc/{pid}/status").splitlines()
    return {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}


@pytest.mark.long
@pytest.mark.needs_root
def test_the_units_keep_the_books_under_a_real_systemd(open_books: Books) -> None:
    """Secrets come as credentials; each process has lost its rights; a stop drains, with code 0."""
    books, web = open_books, free_port()
    with ValkeyServer({"requirepass": "secret"}) as valkey:
        files = {
            "database-url": books.url(WRITER),
            "database-url.reader": books.url(READER),
            "redis-url.default": valkey.url,
            "collect-default.env": f"ACCOUNTING_METRICS_LISTEN=127.0.0.1:{free_port()}\n",
            "schedule.env": f"ACCOUNTING_METRICS_LISTEN=127.0.0.1:{free_port()}\n",
            "serve.env": f"ACCOUNTING_WEB_LISTEN=127.0.0.1:{web}\n",
            "backup.env": f"PGHOST={books.server.running.socket_dir}\nPGUSER=postgres\n"
            f"PGDATABASE={books.name}\n",
            "pgpass": "*:*:*:postgres:secret\n",
        }
        with Systemd(files) as systemd, redis.Redis.from_url(valkey.url) as client:
            systemd.run("systemctl", "start", "turn-accounting.target", *SERVICES)
            wait_until(lambda: books.rows("sources", "source"), 30, "nothing is captured")
            wait_until(lambda: client.info("replication")["connected_slaves"], 30)
            for word, payload in (
                ("status", status_payload("new")),
                ("traffic", traffic_payload(1, 100, 1, 50)),
                ("status", b"deleted"),
                ("total_traffic", traffic_payload(1, 100, 1, 50)),
            ):
                client.publish(channel(word), payload)
            wait_until(lambda: books.rows("user_usage_hourly", "received_bytes"), 60)
            page = partial(urlopen, f"http://127.0.0.1:{web}/", timeout=30)
            with page() as answer:
                assert answer.status == 200
            for service in SERVICES:
                status = status_of(systemd, service)
                assert status["Uid"].split()[0] != "0"
                assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
                assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
            for service in ("turn-accounting-export.service", "turn-accounting-backup.service"):
                systemd.run("systemctl", "start", service)
            assert "restored and verified, 1 months of realms" in systemd.logs()
            systemd.run("systemctl", "stop", "turn-accounting.target")
            for service in SERVICES:
                wait_until(partial(is_inactive, systemd, service), 30)
                assert systemd.properties(service, "Result", "ExecMainStatus", "NRestarts") == {
                    "Result": "success",
                    "ExecMainStatus": "0",
                    "NRestarts": "0",
                }
    assert [row["received_bytes"] for row in books.rows("user_usage_hourly", "received_bytes")] == [
        100
    ]
    books.assert_conserved()


@pytest.mark.long
@pytest.mark.needs_root
def test_a_collector_waits_for_its_address(open_books: Books) -> None:
    """What is wrong with its metrics at boot must not end capture for good."""
    unit = "turn-accounting-collect@default.service"
    with ValkeyServer() as valkey, create_server(("127.0.0.1", 0)) as taken:
        files = {
            "database-url": open_books.url(WRITER),
            "redis-url.default": valkey.url,
            "collect-default.env": f"ACCOUNTING_METRICS_LISTEN=127.0.0.1:{taken.getsockname()[1]}",
        }
        with Systemd(files) as systemd:
            systemd.run("systemctl", "start", unit)
            wait_until(lambda: systemd.properties(unit, "NRestarts") != {"NRestarts": "0"}, 30)
            taken.close()
            wait_until(lambda: open_books.rows("sources", "source"), 30, "nothing is captured")
