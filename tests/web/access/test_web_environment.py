"""The settings of the web server's process in ``up``: the database and no other secret."""

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from accounting.config import load_settings
from accounting.ops.fork_server import ProcessStarter
from accounting.ops.web_process import web_process

DATABASE: Final = "postgresql://u:geheim@db/books"
REDIS: Final = "redis://:verborgen@redis/0"


def environment_of(embedded_url: str | None = None) -> Mapping[str, str]:
    with socket.socket() as channel:
        web = web_process(load_settings(), ProcessStarter(channel), embedded_url)
    assert web is not None
    names = web.process._environment
    assert "verborgen" not in "".join(names.values())
    return {name: value for name, value in names.items() if name.startswith("ACCOUNTING_")}


@pytest.fixture(autouse=True)
def given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name, value in {
        "REDIS_URL": REDIS,
        "DATA_DIR": str(tmp_path),
        "WEB_LISTEN": "127.0.0.1:8400",
        "WEB_HOSTS": "a.example, b.example",
        "METRICS_LISTEN": "127.0.0.1:9464",
    }.items():
        monkeypatch.setenv(f"ACCOUNTING_{name}", value)
    return monkeypatch


def test_it_gets_the_database_and_its_own_settings(given: pytest.MonkeyPatch) -> None:
    given.setenv("ACCOUNTING_DATABASE_URL", DATABASE)
    environment = environment_of()
    assert environment["ACCOUNTING_DATABASE_URL"] == DATABASE
    assert environment["ACCOUNTING_WEB_LISTEN"] == "127.0.0.1:8400"
    assert environment["ACCOUNTING_WEB_HOSTS"] == "a.example,b.example"
    assert not {"ACCOUNTING_REDIS_URL", "ACCOUNTING_METRICS_LISTEN"} & set(environment)


def test_it_gets_the_embedded_database_as_the_reader() -> None:
    url = "postgresql://turn_accounting_reader@/books?host=/run"
    assert environment_of(url)["ACCOUNTING_DATABASE_URL"] == url


def test_it_reads_a_rotated_password_from_the_file(
    given: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "url"
    file.write_text(DATABASE)
    given.setenv("ACCOUNTING_DATABASE_URL_FILE", str(file))
    environment = environment_of()
    assert environment["ACCOUNTING_DATABASE_URL_FILE"] == str(file)
    assert "ACCOUNTING_DATABASE_URL" not in environment


def test_it_reads_a_rotated_password_from_the_toml_file(
    given: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """That file may have the URL of Redis too."""
    file = tmp_path / "settings.toml"
    file.write_text(f'database_url = "{DATABASE}"\n')
    given.setenv("ACCOUNTING_CONFIG", str(file))
    assert environment_of()["ACCOUNTING_CONFIG"] == str(file)
