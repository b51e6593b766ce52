"""The examples of commands that run until they are stopped, and of the demonstration."""

import shlex
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from accounting.cli.demo import MARKER_FILE
from accounting.cli.examples import EXAMPLES
from accounting.embedded import run_postgres
from tests.support.books import WRITER, Books
from tests.support.command import turn_accounting
from tests.support.servers import ValkeyServer
from tests.support.service import SERVICE, Service

IS_RUNNING: dict[str, Callable[[Service], object]] = {
    "up": lambda service: service.output().endswith("\n") and service.events("capturing"),
    "collect": lambda service: service.events("capturing"),
    "schedule": lambda service: service.log_text(),
}


@pytest.mark.parametrize("command", IS_RUNNING)
def test_the_examples_of_services_run_until_they_are_stopped(
    books: Books, tmp_path: Path, command: str
) -> None:
    for number, example in enumerate(EXAMPLES[command]):
        *given, program, name = shlex.split(example)
        assert (program, name) == ("turn-accounting", command)
        with ValkeyServer() as valkey:  # each source has its own
            settings = dict(setting.split("=", 1) for setting in given) | {
                "ACCOUNTING_DATABASE_URL": books.url(WRITER),
                "ACCOUNTING_REDIS_URL": valkey.url,
            }
            with Service(
                command, tmp_path / f"{command}-{number}", settings, module=SERVICE
            ) as service:
                service.wait_for(partial(IS_RUNNING[command], service))
                assert service.stop() == 0


def test_the_examples_of_the_demonstration_show_right_books(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor() as pool:  # they mostly wait
        runs = [
            pool.submit(turn_accounting, *shlex.split(example)[1:]) for example in EXAMPLES["demo"]
        ]
    for run in runs:
        assert run.result().code == 0, run.result().err
        assert "FAIL" not in run.result().out
        assert "  ok    no capture gaps" in run.result().out


def test_the_demonstration_replaces_no_books_that_are_in_use(tmp_path: Path) -> None:
    directory = tmp_path / "demo"
    directory.mkdir()
    (directory / MARKER_FILE).touch()
    with run_postgres(directory):
        refused = turn_accounting("demo", "--directory", str(directory))
        assert (refused.code, refused.out) == (2, "")
        assert f"{directory} is in use" in refused.err
        assert (directory / "postgres").exists()
