"""The settings: their sources, the precedence of these, and the errors for wrong values."""

from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from accounting.config import (
    SECRETS,
    Settings,
    default_data_dir,
    environment_variable,
    load_settings,
    mask_url,
)
from accounting.errors import ConfigurationError


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the settings of the shell that runs the tests."""
    for name in Settings.model_fields:
        monkeypatch.delenv(environment_variable(name), raising=False)
        monkeypatch.delenv(environment_variable(name) + "_FILE", raising=False)


def refusal(**arguments: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(**arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_hold_when_nothing_is_given() -> None:
    settings = load_settings()
    assert settings.database_url is None
    assert settings.redis_url is None
    assert settings.capture == "auto"
    assert settings.source == "default"
    assert settings.spool_retention_seconds == 86_400
    assert settings.spool_queue_bytes == 256 * 2**20
    assert settings.time_zone == "UTC"
    assert settings.grace_seconds == 60
    assert set(settings.origins().values()) == {"default"}


def test_argument_wins_over_environment_and_environment_over_toml(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    toml = tmp_path / "settings.toml"
    toml.write_text('source = "toml"\ngrace_seconds = 5\nlog_level = "debug"\n')
    monkeypatch.setenv("ACCOUNTING_CONFIG", str(toml))
    monkeypatch.setenv("ACCOUNTING_SOURCE", "environment")
    monkeypatch.setenv("ACCOUNTING_LOG_LEVEL", "warning")
    settings = load_settings(source="argument", capture=None)
    assert settings.source == "argument"
    assert settings.log_level == "warning"
    assert settings.grace_seconds == 5
    assert {name: origin for name, origin in settings.origins().items() if origin != "default"} == {
        "source": "argument",
        "log_level": "ACCOUNTING_LOG_LEVEL",
        "grace_seconds": f"{toml}: grace_seconds",
        "config": "ACCOUNTING_CONFIG",
    }


def test_secret_is_read_from_the_file_named_by_its_file_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("redis://:hunter2@redis.example:6380/1\n")
    monkeypatch.setenv("ACCOUNTING_REDIS_URL_FILE", str(secret))
    settings = load_settings()
    assert settings.redis_url == SecretStr("redis://:hunter2@redis.example:6380/1")
    assert settings.origins()["redis_url"] == "ACCOUNTING_REDIS_URL_FILE"


def test_secret_given_twice_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A rotated password in the file must not lose against a forgotten variable, or the reverse."""
    monkeypatch.setenv("ACCOUNTING_REDIS_URL", "redis://h")
    monkeypatch.setenv("ACCOUNTING_REDIS_URL_FILE", str(tmp_path / "secret"))
    assert refusal() == (
        "ACCOUNTING_REDIS_URL and ACCOUNTING_REDIS_URL_FILE are both set: expected one of them"
    )


def test_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose files pass what is not set as the empty string."""
    monkeypatch.setenv("ACCOUNTING_SOURCE", "")
    monkeypatch.setenv("ACCOUNTING_REDIS_URL", "")
    settings = load_settings()
    assert (settings.source, settings.redis_url) == ("default", None)


def test_mistyped_variable_is_refused_with_a_similar_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCOUNTING_SPOOL_RETENTON_SECONDS", "60")
    assert refusal() == (
        "ACCOUNTING_SPOOL_RETENTON_SECONDS is not a setting of turn-accounting: "
        "did you mean ACCOUNTING_SPOOL_RETENTION_SECONDS?"
    )


@pytest.mark.parametrize("name", ["ACCOUNTING_LOGO", "ACCOUNTING_DATABASE", "ACCOUNTING_X"])
def test_a_setting_that_resembles_none_gets_no_suggestion(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "1")
    text = refusal()
    assert text.startswith(f"{name} is not a setting of turn-accounting")
    suggestion = text.partition("did you mean ")[2]
    assert suggestion in ("", "ACCOUNTING_DATABASE_URL?")


def test_variable_in_lower_case_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("accounting_source", "x")
    assert refusal().startswith("accounting_source is not a setting of turn-accounting")


def test_variables_of_a_kubernetes_service_named_accounting_are_ignored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCOUNTING_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("ACCOUNTING_SERVICE_PORT_HTTP", "80")
    monkeypatch.setenv("ACCOUNTING_PORT", "tcp://10.0.0.1:80")
    monkeypatch.setenv("ACCOUNTING_PORT_80_TCP_ADDR", "10.0.0.1")
    assert load_settings().valkey_port is None


def test_unknown_key_in_toml_is_refused(tmp_path: Path) -> None:
    toml = tmp_path / "settings.toml"
    toml.write_text("grace_second = 5\n")
    assert refusal(config=toml) == (
        f"{toml}: grace_second is not a setting of turn-accounting: did you mean grace_seconds?"
    )


def test_wrong_value_in_toml_names_file_and_key(tmp_path: Path) -> None:
    toml = tmp_path / "settings.toml"
    toml.write_text('log_level = "loud"\n')
    assert refusal(config=toml) == (
        f"{toml}: log_level='loud' is wrong: input should be 'debug', 'info', 'warning' or 'error'"
    )


def test_damaged_toml_is_refused(tmp_path: Path) -> None:
    toml = tmp_path / "settings.toml"
    toml.write_text("log_level: debug\n")
    assert refusal(config=toml).startswith(f"{toml} is not valid TOML: ")


def test_missing_files_are_refused_by_their_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missing = tmp_path / "missing"
    assert refusal(config=missing) == (
        f"ACCOUNTING_CONFIG='{missing}' can't be read (No such file or directory): "
        "expected the path of a readable file"
    )
    monkeypatch.setenv("ACCOUNTING_DATABASE_URL_FILE", str(missing))
    assert refusal().startswith(f"ACCOUNTING_DATABASE_URL_FILE='{missing}' can't be read")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("CAPTURE", "guess", "='guess' is wrong: input should be 'auto', 'replication'"),
        ("SOURCE", "a/b", "='a/b' is wrong: expected 1 to 63 printable characters without '/'"),
        ("SOURCE", "x" * 64, "expected 1 to 63 printable characters"),
        ("SOURCE", "a\nb", "expected 1 to 63 printable characters"),
        ("TIME_ZONE", "Europe/Berln", "expected a name such as 'Europe/Berlin'"),
        ("TIME_ZONE", "Europe", "='Europe' is wrong: time zone 'Europe' is not in tzdata 2"),
        ("TIME_ZONE", "../etc/passwd", "time zone '../etc/passwd' is not in tzdata 2"),
        ("TIME_ZONE", "localtime", "time zone 'localtime' is not in tzdata 2"),
        ("GRACE_SECONDS", "-1", "='-1' is wrong: input should be greater than or equal to 0"),
        ("SETTLE_INTERVAL_SECONDS", "0", "input should be greater than 0"),
        ("VALKEY_PORT", "70000", "input should be less than or equal to 65535"),
        ("SPOOL_QUEUE_BYTES", "lots", "expected a number of bytes, such as 268435456 or 256MiB"),
        ("LOG_FORMAT", "xml", "input should be 'auto', 'console' or 'json'"),
    ],
)
def test_wrong_value_gets_one_line_with_variable_value_and_expectation(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(f"ACCOUNTING_{name}", value)
    message = refusal()
    assert message.startswith(f"ACCOUNTING_{name}=")
    assert expected in message


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("DATABASE_URL", "hunter2"),
        ("DATABASE_URL", "mysql://u:hunter2@h/d"),
        ("DATABASE_URL", "postgresql://u:hunter2@h:port/d"),
        ("DATABASE_URL", "postgresql://u:12/hunter2@h/d"),
        ("DATABASE_URL", "postgresql://u:12#hunter2@h/d"),
        ("DATABASE_URL", "postgresql://u:12?hunter2@h/d"),
        ("REDIS_URL", "http://u:hunter2@h"),
        ("REDIS_URL", "redis://u:hunter2@h:99999/0"),
        ("REDIS_URL", "redis://u:hunter2@h/zero"),
        ("REDIS_URL", "unix://u:hunter2@"),
        ("REDIS_URL", "redis+sentinel://u:hunter2@a:1,b:2/"),
        ("REDIS_URL", "redis+sentinel://u:hunter2@a:1,b:x/service"),
        ("REDIS_URL", "hunter2 hunter2://"),
        ("REDIS_URL", "redis://u:hunter2@[::1/0"),
    ],
)
def test_wrong_url_is_refused_without_showing_its_secret(
    monkeypatch: pytest.MonkeyPatch, name: str, url: str
) -> None:
    monkeypatch.setenv(f"ACCOUNTING_{name}", url)
    message = refusal()
    assert message.startswith(f"ACCOUNTING_{name} is wrong: ")
    assert "expected " in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://writer@db.example/usage",
        "postgres://writer:x%40y@db.example:5433/usage?sslmode=require",
        "postgresql:///usage?host=/run/postgresql",
        "postgresql://a.example:5432,b.example:5433/usage?target_session_attrs=read-write",
    ],
)
def test_every_form_of_libpq_url_is_valid(url: str) -> None:
    settings = load_settings(database_url=url)
    assert settings.database_url == SecretStr(url)


@pytest.mark.parametrize(
    ("given_url", "used"),
    [
        ("redis://h", "redis://h"),
        ("rediss://u:p@h:6380/2", "rediss://u:p@h:6380/2"),
        ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock?db=1"),
        ("valkey://h:6379/0", "redis://h:6379/0"),
        ("valkeys://h:6379/0", "rediss://h:6379/0"),
        ("redis+sentinel://u:p@a:1,b/turn/0", "redis+sentinel://u:p@a:1,b/turn/0"),
        ("valkeys+sentinel://a:1/turn", "rediss+sentinel://a:1/turn"),
    ],
)
def test_valkey_urls_become_redis_urls(given_url: str, used: str) -> None:
    assert load_settings(redis_url=given_url).redis_url == SecretStr(used)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1048576", 2**20), ("64MiB", 64 * 2**20), ("1 GB", 10**9), ("256k", 256_000)],
)
def test_sizes_have_optional_units(text: str, size: int) -> None:
    assert load_settings(spool_queue_bytes=text).spool_queue_bytes == size


def test_masked_settings_and_their_text_hold_no_password() -> None:
    settings = load_settings(
        database_url="postgresql://u:hunter2@/d?host=/run/pg&password=hunter2&sslmode=require",
        redis_url="rediss://:hunter2@h:6380/0",
    )
    masked = settings.masked()
    assert (
        masked["database_url"] == "postgresql://u:***@/d?host=/run/pg&password=***&sslmode=require"
    )
    assert masked["redis_url"] == "rediss://:***@h:6380/0"
    assert masked["valkey_port"] == ""
    assert masked["webhook_private_addresses"] == "false"
    assert set(masked) == set(Settings.model_fields)
    assert "hunter2" not in f"{settings!r} {settings} {masked}"


@given(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=8), st.booleans())
def test_no_password_survives_masking(password: str, in_query: bool) -> None:
    url = f"redis://h?password={password}" if in_query else f"redis://u:{password}@h"
    assert password not in mask_url(url) or password in "redis://h?password=***"


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().source = "other"  # type: ignore[misc]


def test_settings_made_directly_read_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test must not reach the database that its shell happens to name."""
    monkeypatch.setenv("ACCOUNTING_DATABASE_URL", "postgresql://production.example/usage")
    assert Settings().database_url is None


def test_data_directory_is_the_users_own_unless_root(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert default_data_dir({}) == tmp_path / ".local/state/turn-accounting"
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert default_data_dir({}) == Path("/var/lib/turn-accounting")
    assert default_data_dir({"XDG_STATE_HOME": "/state"}) == Path("/state/turn-accounting")
    assert default_data_dir({"XDG_STATE_HOME": "relative"}) == Path("/var/lib/turn-accounting")


def test_relative_data_directory_becomes_absolute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings(data_dir=".demo").data_dir == tmp_path / ".demo"


def test_every_setting_has_a_description() -> None:
    assert all(field.description for field in Settings.model_fields.values())
    secrets = {
        name
        for name, field in Settings.model_fields.items()
        if SecretStr in get_args(field.annotation)
    }
    assert secrets == set(SECRETS)
