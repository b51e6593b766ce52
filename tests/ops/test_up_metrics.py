"""``up`` serves the metrics and health of the whole service."""

import http.client
import json
import os
import signal
import subprocess
import sys
from math import inf
from pathlib import Path

from tests.support.books import Books
from tests.support.monitoring import Samples, parse_metrics
from tests.support.servers import ValkeyServer, free_port, wait_until


def get(port: int, path: str) -> tuple[int, str]:
    """The status and body of the response, (0, '') while nothing listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except ConnectionRefusedError:
        return 0, ""
    finally:
        connection.close()


def test_up_serves_the_metrics_of_all_its_processes(books: Books, tmp_path: Path) -> None:
    """Only the parent listens: its child processes would need the same port."""
    port = free_port()
    log = tmp_path / "log"
    with ValkeyServer() as valkey, log.open("w") as output:
        service = subprocess.Popen(
            [sys.executable, "-m", "accounting", "up"],
            env={
                "PATH": os.environ["PATH"],
                "ACCOUNTING_DATABASE_URL": books.url("turn_accounting_writer"),
                "ACCOUNTING_REDIS_URL": valkey.url,
                "ACCOUNTING_DATA_DIR": str(tmp_path / "data"),
                "ACCOUNTING_METRICS_LISTEN": f"127.0.0.1:{port}",
                "ACCOUNTING_WEB_LISTEN": "off",
                "ACCOUNTING_SETTLE_INTERVAL_SECONDS": "0.2",
                "ACCOUNTING_ROLLUP_INTERVAL_SECONDS": "0.2",
            },
            stdout=subprocess.DEVNULL,
            stderr=output,
        )
        try:

            def scrape() -> Samples:
                code, page = get(port, "/metrics")
                return parse_metrics(page) if code == 200 else {}

            def is_at_work() -> bool:
                numbers = scrape()
                lags = [
                    numbers.get((f"turn_accounting_{stage}_lag_seconds", "default"), inf)
                    for stage in ("captured", "loaded", "settled")
                ]
                return max(lags) < 10 and ("turn_accounting_job_runs_total", "rollup") in numbers

            wait_until(is_at_work, 60)
            code, body = get(port, "/healthz")
            assert (code, json.loads(body)) == (200, {"status": "ok"})
        finally:
            service.send_signal(signal.SIGTERM)
            code = service.wait(60)
    assert code == 0, log.read_text()
