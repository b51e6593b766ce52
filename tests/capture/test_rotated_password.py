"""The collector logs in with the password that its file has now."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pytest
import redis
from structlog.testing import capture_logs

from accounting.capture.collector import run_collector
from accounting.capture.spool.file import spool_path
from accounting.capture.spool.spool import Spool
from accounting.config import load_settings
from tests.support.collectors import PROMPT_SYNC, publish, stored_messages
from tests.support.servers import RedisServer, ValkeyServer, wait_until


def set_password(client: Any, password: str) -> None:
    client.execute_command("ACL", "SETUSER", "collector", "resetpass", f">{password}")


def end_connections(client: Any) -> None:
    client.execute_command("CLIENT", "KILL", "USER", "collector")


@pytest.mark.parametrize("capture", ["replication", "subscribe"])
def test_capture_continues_with_a_password_that_was_rotated(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capture: Literal["replication", "subscribe"],
) -> None:
    server: RedisServer
    with ValkeyServer(PROMPT_SYNC) as server, redis.Redis.from_url(server.url) as client:
        client.execute_command("ACL", "SETUSER", "collector", "on", "allcommands", "allchannels")
        set_password(client, "first")
        secret = tmp_path / "redis-url"
        url = "redis://collector:{}@127.0.0.1:" + str(server.port)
        secret.write_text(url.format("first"))
        monkeypatch.setenv("ACCOUNTING_REDIS_URL_FILE", str(secret))
        settings = load_settings(data_dir=tmp_path, capture=capture, source="test")
        stop = threading.Event()
        path = spool_path(tmp_path, "test")
        with capture_logs() as logs, ThreadPoolExecutor() as threads:
            running = threads.submit(run_collector, settings, stop)
            try:
                wait_until(lambda: running.done() or path.exists())
                with Spool.open(path, "test") as spool:
                    wait_until(lambda: spool.state().captured_until and not spool.current_gap())
                    set_password(client, "second")
                    end_connections(client)
                    wait_until(lambda: any("refuses the log-in" in str(entry) for entry in logs))
                    # A subscription has a gap now, and a replica resumes where it stopped.
                    wait_until(lambda: capture == "replication" or spool.current_gap())
                    secret.write_text(url.format("second"))
                    wait_until(lambda: not spool.current_gap())
                    publish(server, b"1")
                    wait_until(lambda: len(stored_messages(spool)) == 1)
            finally:
                stop.set()
            running.result(30)
