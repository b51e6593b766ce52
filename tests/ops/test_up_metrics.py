"""``up`` serves the metrics and health of the whole service."""

import http.client
import json
from math import inf
from pathlib import Path

from tests.support.books import Books
from tests.support.monitoring import Samples, parse_metrics
from tests.support.servers import ValkeyServer, free_port
from tests.support.service import Service


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
    with ValkeyServer() as valkey:
        settings = {
            "ACCOUNTING_DATABASE_URL": books.url("turn_accounting_writer"),
            "ACCOUNTING_REDIS_URL": valkey.url,
            "ACCOUNTING_METRICS_LISTEN": f"127.0.0.1:{port}",
        }

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

        with Service("up", tmp_path / "data", settings) as up:
            up.wait_for(is_at_work)
            code, body = get(port, "/healthz")
            assert (code, json.loads(body)) == (200, {"status": "ok"})
            assert up.stop() == 0, up.log_text()
