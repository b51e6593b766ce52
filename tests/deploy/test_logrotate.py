"""The configuration of logrotate: a real coturn's log loses no line that `reconcile` needs."""

import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Final

import pytest
import redis

from accounting.audit.log_files import read_logs
from tests.support.coturn_server import (
    TurnServer,
    run_client,
    running_client,
    wait_until_closed,
)
from tests.support.deployments import DEPLOY
from tests.support.servers import ValkeyServer, wait_until

CONFIGURATION: Final = (DEPLOY / "logrotate" / "coturn").read_text()
LOG: Final = "/var/log/turnserver/turn.log"
SIGNAL: Final = "systemctl kill --kill-whom=main --signal=HUP coturn.service"


class Rotation:
    """The configuration for a coturn that no systemd runs."""

    def __init__(self, server: TurnServer, directory: Path) -> None:
        self.log = Path(server.coturn_log(1))
        self._files = [directory / "logrotate.conf", directory / "state"]
        assert SIGNAL in CONFIGURATION
        text = CONFIGURATION.replace(SIGNAL, f"kill -HUP {server.pid}")
        self._files[0].write_text(text.replace(LOG, str(self.log)))
        self._files[0].chmod(0o644)

    def rotate(self) -> None:
        """Rotate now, and wait until coturn writes to the new file."""
        done = subprocess.run(
            ["logrotate", "--force", f"--state={self._files[1]}", self._files[0]],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        wait_until(lambda: self.log.stat().st_size > 0, 20, "coturn does not open its log again")

    def files(self) -> list[Path]:
        return sorted(self.log.parent.glob(f"{self.log.name}*"))


@pytest.mark.long
@pytest.mark.needs_root
@pytest.mark.needs_coturn
@pytest.mark.needs_logrotate
def test_rotated_logs_have_every_line(tmp_path: Path) -> None:
    """Also of a session that goes on while its log is rotated, twice."""
    users = dict.fromkeys(("alice", "bob", "carol"), "secret")
    carol = b"username=<carol>, rp="
    with (
        ValkeyServer() as valkey,
        redis.Redis.from_url(valkey.url) as client,
        client.pubsub(ignore_subscribe_messages=True) as published,
        TurnServer(valkey.port, users=users) as server,
    ):
        published.psubscribe("turn/realm/*/traffic")
        assert published.get_message(timeout=10) is None  # the confirmation
        server.directory.chmod(0o755)
        rotation = Rotation(server, tmp_path)
        assert run_client(server, "alice", "secret", messages=50).code == 0
        with running_client(server, "carol", "secret"):
            for _ in range(2):
                wait_until(lambda: carol in rotation.log.read_bytes(), 30)
                rotation.rotate()
            wait_until(lambda: carol in rotation.log.read_bytes(), 30)
        assert run_client(server, "bob", "secret", messages=50).code == 0
        wait_until(lambda: b"username=<bob>" in rotation.log.read_bytes(), 20)
        wait_until_closed(server)
        server.stop()
        files = rotation.files()
        assert [path.suffix == ".gz" for path in files] == [False, True, False]
        expected: Counter[str] = Counter()
        client.publish("turn/realm/end/traffic", "")
        for message in iter(lambda: published.get_message(timeout=30), None):
            if message["data"] == b"":
                break
            user = re.fullmatch(rb"turn/realm/[^/]+/user/(\w*)/.*", message["channel"])
            received = re.search(rb"rcvb=(\d+)", message["data"])
            assert user is not None
            assert received is not None
            expected[user[1].decode()] += int(received[1])
        logged: Counter[str] = Counter()
        for session in read_logs(files).sessions:
            logged[session.first.username.decode()] += session.counters[1]
    assert +logged == +expected
    assert {"alice", "bob", "carol"} <= expected.keys()
