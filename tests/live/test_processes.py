"""The service with its defaults, started and stopped as an operator does."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from accounting.capture.spool.file import spool_path
from accounting.capture.spool.spool import Spool
from accounting.domain.counters import COUNTERS
from accounting.embedded import (
    EmbeddedPostgres,
    EmbeddedValkey,
    running_postgres,
    running_valkey,
)
from accounting.simulator import Scenario
from accounting.simulator.publisher import run
from tests.support.servers import free_port, wait_until
from tests.support.service import SERVICE, Service, json_rows, processes_in

CONF_LINE: Final = (
    r'redis-statsdb="ip=127\.0\.0\.1 dbname=0 password=<password> port=(\d+) connect_timeout=\d+"'
)


@pytest.mark.parametrize(
    "running", [running_postgres, pytest.param(running_valkey, marks=pytest.mark.long)]
)
def test_up_ends_when_an_embedded_server_does(
    tmp_path: Path, running: Callable[[Path], EmbeddedPostgres | EmbeddedValkey | None]
) -> None:
    # Not on the port that the test below must get again.
    with Service("up", tmp_path, {"ACCOUNTING_VALKEY_PORT": str(free_port())}) as up:
        up.wait_for_conf_line()
        server = running(tmp_path)
        assert server is not None
        os.kill(server.pid, signal.SIGKILL)
        assert up.process.wait(60) == 1
        assert "an embedded server has ended by itself: " in up.log_text()
        assert "start `up` again" in up.log_text()


def test_up_runs_on_its_defaults_and_drains_when_it_is_stopped(tmp_path: Path) -> None:
    """The next run also loads what was captured before the kill.

    The passwords are not in its output, and other users can read none of its files.
    """
    published = [0] * 8
    lines = set()
    for seed, step in enumerate((signal.SIGKILL, signal.SIGTERM)):
        with Service("up", tmp_path, module=SERVICE) as up:
            line = up.wait_for_conf_line()
            found = re.fullmatch(CONF_LINE, line)
            assert found is not None, line
            lines.add(line)
            up.wait_until_capturing()
            scenario = Scenario(sessions=60, users=6, duration_seconds=20.0, rate=0, seed=seed)
            password = (tmp_path / "valkey-coturn-password").read_text().strip()
            expected = run(scenario, f"redis://:{password}@127.0.0.1:{found[1]}/0")
            total = expected.total.usage
            published = [a + b for a, b in zip(published, total, strict=True)]
            if step == signal.SIGKILL:
                up.wait_for(lambda: captured_count(tmp_path) == expected.published)  # noqa: B023
            assert up.stop(step) == (-step if step == signal.SIGKILL else 0), up.log_text()
            wait_until(lambda: not processes_in(tmp_path), 60 if step == signal.SIGKILL else 0)
            assert up.output() == f"{line}\n"
            assert f"its password is in {tmp_path / 'valkey-coturn-password'}" in up.log_text()
            assert password not in up.log_text()
    assert readable_by_others(tmp_path) == []
    assert len(lines) == 1, "the port of the embedded Valkey is not kept"
    for command in (["usage", "--per", "day"], ["sessions"]):
        rows = json_rows(*command, data_dir=tmp_path)
        assert [sum(int(row[name]) for row in rows) for name in COUNTERS] == published
    assert processes_in(tmp_path) == []


def readable_by_others(directory: Path) -> list[Path]:
    """The files that other users can read if they can enter the directory, but the test's own."""
    readable = []
    for entry in directory.iterdir():
        mode = entry.stat().st_mode
        if entry.is_dir():
            readable += readable_by_others(entry) if mode & 0o011 else []
        elif mode & 0o044 and not re.fullmatch(r"up-\d\.(out|log)", entry.name):
            readable.append(entry)
    return readable


def captured_count(data_dir: Path) -> int:
    """The number of messages that the spool has received."""
    with Spool.open(spool_path(data_dir, "default"), "default") as spool:
        return spool.state().captured_position
