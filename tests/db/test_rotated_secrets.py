"""Secrets in files are read again when a server refuses the log-in."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from accounting.config import Settings, load_settings, reload_secret
from accounting.db.engine import lost_connections
from accounting.errors import ConnectionLost
from accounting.ops import servers
from accounting.ops.monitoring.snapshot import SnapshotReader
from tests.support.books import WRITER, Books
from tests.support.password_logins import PasswordLogin, password_login
from tests.support.servers import PostgresServer


@pytest.fixture
def login(postgres_server: PostgresServer) -> Iterator[PasswordLogin]:
    with password_login(postgres_server, WRITER, "first") as login:
        yield login


def user_of(engine: Engine) -> str:
    with lost_connections(), engine.begin() as connection:
        user: str = connection.execute(text("SELECT session_user")).scalar_one()
        return user


@pytest.fixture(params=["secret file", "TOML file"])
def secret(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "secret"
    variable = (
        "ACCOUNTING_CONFIG" if request.param == "TOML file" else "ACCOUNTING_DATABASE_URL_FILE"
    )
    monkeypatch.setenv(variable, str(path))
    return path


def write_secret(path: Path, url: str, request: pytest.FixtureRequest) -> None:
    is_toml = "TOML" in request.node.callspec.id
    path.write_text(f'database_url = "{url}"\n' if is_toml else f"{url}\n")


def test_the_database_url_is_read_again_when_a_login_is_refused(
    books: Books,
    login: PasswordLogin,
    secret: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    write_secret(secret, login.url("first", books.name), request)
    settings = load_settings(data_dir=tmp_path)
    with servers.database(settings, WRITER) as engine:
        assert user_of(engine) == login.name
        login.set_password("second")
        assert user_of(engine) == login.name  # an open connection stays
        login.end_sessions()
        with pytest.raises(ConnectionLost, match="password authentication failed"):
            user_of(engine)
        write_secret(secret, login.url("second", books.name), request)
        assert user_of(engine) == login.name
        # A file that is being replaced is not an error.
        secret.unlink()
        login.end_sessions()
        assert user_of(engine) == login.name
    assert reload_secret(settings, "database_url") == login.url("first", books.name)


def test_monitoring_reads_the_database_url_again(
    books: Books, login: PasswordLogin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "secret"
    monkeypatch.setenv("ACCOUNTING_DATABASE_URL_FILE", str(path))
    path.write_text(login.url("outdated", books.name))
    settings = load_settings(data_dir=tmp_path)
    find_url = partial(servers.running_database_url, settings)
    with SnapshotReader(settings, find_url) as reader:
        assert "password authentication failed" in (reader.read().database_error or "")
    path.write_text(login.url("first", books.name))
    with SnapshotReader(settings, find_url) as reader:
        assert reader.read().database_error is None


def test_settings_that_come_from_no_file_stay(tmp_path: Path) -> None:
    url = "postgresql://u:p@127.0.0.1/db"
    assert reload_secret(Settings(data_dir=tmp_path, database_url=url), "database_url") == url
    assert reload_secret(Settings(data_dir=tmp_path), "database_url") is None
