"""The deployment files for nightly exports: their commands export real books."""

import shlex
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.support.books import READER, Books
from tests.support.command import turn_accounting

DEPLOY: Final = Path(__file__).resolve().parents[2] / "deploy"
SERVICE: Final = DEPLOY / "systemd" / "turn-accounting-export.service"


def systemd_command() -> list[str]:
    [line] = [line for line in SERVICE.read_text().splitlines() if line.startswith("ExecStart=")]
    words = shlex.split(line.removeprefix("ExecStart="))
    assert words[:2] == ["/usr/bin/env", "turn-accounting"]
    return words[2:]


def container() -> dict[str, Any]:
    job = yaml.safe_load((DEPLOY / "kubernetes" / "export" / "cronjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    assert {"schedule", "concurrencyPolicy", "jobTemplate"} <= job["spec"].keys()
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["restartPolicy"] in {"Never", "OnFailure"}
    [only] = pod["containers"]
    assert isinstance(only, dict)
    return only


@pytest.mark.parametrize("platform", ["systemd", "kubernetes"])
def test_the_nightly_command_exports_closed_statements(
    november_books: Books, tmp_path: Path, platform: str
) -> None:
    arguments = systemd_command() if platform == "systemd" else container()["args"]
    names = {"${EXPORT_OUTPUT}", "$(EXPORT_OUTPUT)"}
    command = [str(tmp_path) if word in names else word for word in arguments]
    assert command != arguments
    for _night in range(2):
        result = turn_accounting(*command, database_url=november_books.url(READER))
        assert result.code == 0, result.err
    assert [path.name for path in tmp_path.rglob("*.parquet")] == ["statements.parquet"]
