"""A real Prometheus, with the alerts of ``deploy`` and its own data."""

import json
import shutil
from pathlib import Path
from typing import Any, Final
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from tests.support.deployments import DEPLOY
from tests.support.servers import ADDRESS, Server, free_port

INTERVAL: Final = "300ms"


class PrometheusServer(Server):
    """Scrapes as deploy/prometheus/prometheus.yaml says, but other targets and more often."""

    def __init__(self, *targets: str) -> None:
        super().__init__()
        self.port = free_port()
        self._config = self.directory / "prometheus.yaml"
        config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())
        job = next(each for each in config["scrape_configs"] if each["job_name"] != "coturn")
        job |= {"scrape_interval": INTERVAL, "scrape_timeout": INTERVAL}
        job["static_configs"] = [{"targets": list(targets)}]
        config["scrape_configs"] = [job]
        config["global"] = {"evaluation_interval": INTERVAL}
        config["rule_files"] = [str(DEPLOY / Path(name)) for name in config["rule_files"]]
        self._config.write_text(yaml.safe_dump(config))

    def command(self) -> list[str]:
        program = shutil.which("prometheus")
        assert program is not None, "prometheus is not installed"
        return [
            program,
            f"--config.file={self._config}",
            f"--storage.tsdb.path={self.directory / 'data'}",
            f"--web.listen-address={ADDRESS}:{self.port}",
        ]

    def is_ready(self) -> bool:
        try:
            with urlopen(f"http://{ADDRESS}:{self.port}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, ConnectionError):
            return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an expression now: ``metric``, its labels, and ``value``."""
        result = self.get("query", query=expression)["result"]
        return list(result)

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of the API."""
        url = f"http://{ADDRESS}:{self.port}/api/v1/{path}?{urlencode(parameters)}"
        with urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]
