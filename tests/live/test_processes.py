"""The service with its defaults, started and stopped as an operator does."""

import re
import signal
from pathlib import Path
from typing import Final

from accounting.capture.spool.file import spool_path
from accounting.capture.spool.spool import Spool
from accounting.domain.counters import COUNTERS
from accounting.simulator import Scenario, run
from tests.support.servers import wait_until
from tests.support.service import Service, json_rows, processes_in

CONF_LINE: Final = r'redis-statsdb="ip=127\.0\.0\.1 dbname=0 port=(\d+) connect_timeout=\d+"'


def test_up_runs_on_its_defaults_and_drains_when_it_is_stopped(tmp_path: Path) -> None:
    """The next run also loads what was captured before the kill."""
    published = [0] * 8
    lines = set()
    for seed, step in enumerate((signal.SIGKILL, signal.SIGTERM)):
        with Service("up", tmp_path) as up:
            line = up.wait_for_conf_line()
            found = re.fullmatch(CONF_LINE, line)
            assert found is not None, line
            lines.add(line)
            up.wait_until_capturing()
            scenario = Scenario(sessions=60, users=6, duration_seconds=20.0, rate=0, seed=seed)
            expected = run(scenario, f"redis://127.0.0.1:{found[1]}/0")
            total = expected.total.usage
            published = [a + b for a, b in zip(published, total, strict=True)]
            if step == signal.SIGKILL:
                up.wait_for(lambda: captured_count(tmp_path) == expected.published)  # noqa: B023
            assert up.stop(step) == (-step if step == signal.SIGKILL else 0), up.log_text()
            wait_until(lambda: not processes_in(tmp_path), 60 if step == signal.SIGKILL else 0)
            assert up.output() == f"{line}\n"
    assert len(lines) == 1, "the port of the embedded Valkey is not kept"
    for command in (["usage", "--per", "day"], ["sessions"]):
        rows = json_rows(*command, data_dir=tmp_path)
        assert [sum(int(row[name]) for row in rows) for name in COUNTERS] == published
    assert processes_in(tmp_path) == []


def captured_count(data_dir: Path) -> int:
    """The number of messages that the spool has received."""
    with Spool.open(spool_path(data_dir, "default"), "default") as spool:
        return spool.state().captured_position
