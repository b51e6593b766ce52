"""The settings: their names, defaults and checks. `loading` reads their values."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    field_validator,
)

from accounting.config.parsing import (
    check_database_url,
    check_hosts,
    check_proxies,
    check_root_path,
    check_source_name,
    check_web_listen_address,
    mask_url,
    normalize_redis_url,
    parse_bytes,
    parse_listen_address,
    split_names,
)
from accounting.domain.time_zones import time_zone
from accounting.errors import ConfigurationError

PREFIX: Final = "ACCOUNTING_"
SECRETS: Final = ("database_url", "redis_url")


def default_data_dir(environ: Mapping[str, str] | None = None) -> Path:
    """The data directory when none is set.

    ``$XDG_STATE_HOME/turn-accounting`` where that variable has an absolute path, else
    ``/var/lib/turn-accounting`` for root and ``~/.local/state/turn-accounting`` for other users.
    Raises ConfigurationError for a user without a home directory.
    """
    state_home = (os.environ if environ is None else environ).get("XDG_STATE_HOME", "")
    if state_home.startswith("/"):  # XDG: relative paths are to be ignored
        return Path(state_home) / "turn-accounting"
    if os.geteuid() == 0:
        return Path("/var/lib/turn-accounting")
    try:
        return Path.home() / ".local/state/turn-accounting"
    except RuntimeError:
        raise ConfigurationError(
            f"{PREFIX}DATA_DIR is not set and this user has no home directory: "
            "expected the path of a directory to keep data in"
        ) from None


def environment_variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


class Settings(BaseModel):
    """All settings, checked and frozen.

    `Settings(...)` reads neither the environment nor a file, so that a test can't reach a database
    that is configured in its shell. The service uses `load_settings()`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    database_url: SecretStr | None = Field(
        default=None,
        description="Postgres to account in, as a libpq URL. Unset: an embedded Postgres in the "
        "data directory.",
    )
    redis_url: SecretStr | None = Field(
        default=None,
        description="Redis or Valkey that coturn publishes to, as `redis://`, `rediss://`, "
        "`valkey://` or `unix://` URL, or as its sentinels: "
        "`redis+sentinel://host:26379,host:26379/service`. Unset: `up` runs an embedded Valkey.",
    )
    capture: Literal["auto", "replication", "subscribe"] = Field(
        default="auto",
        description="How messages are captured from Redis: `replication`, `subscribe`, or `auto` "
        "for the best that the server allows.",
    )
    source: str = Field(
        default="default",
        description="Name of the Redis that this collector reads, 1 to 63 printable characters "
        "without `/`. Collectors of different servers need different names.",
    )
    data_dir: Path = Field(
        default_factory=default_data_dir,
        description="Directory for the spool and the embedded servers. Unset: "
        "`$XDG_STATE_HOME/turn-accounting`, else `/var/lib/turn-accounting` for root and "
        "`~/.local/state/turn-accounting` for other users.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info",
        description="Lowest level that is logged: `debug`, `info`, `warning` or `error`.",
    )
    log_format: Literal["auto", "console", "json"] = Field(
        default="auto",
        description="Format of the log on standard error: `console`, `json`, or `auto`: `console` "
        "on a terminal, else `json`.",
    )
    spool_retention_seconds: int = Field(
        default=86_400,
        ge=0,
        description="How long messages stay in the spool after they were loaded, in seconds.",
    )
    report_retention_days: int | None = Field(
        default=None,
        ge=1,
        le=36_500,
        description="How many days reports stay in Postgres; older ones are dropped, a day at a "
        "time, once the periods that contain their usage are closed and verified. Unset: for ever.",
    )
    report_archive: str | None = Field(
        default=None,
        min_length=1,
        description="Directory, or `s3://`, `gs://`, `az://` or `sftp://` URL, in which a day of "
        "reports is archived as Parquet, read back and checked before it is dropped. Unset: days "
        "are dropped without an archive.",
    )
    rejected_messages_per_hour: int = Field(
        default=100,
        ge=0,
        le=1_000_000,
        description="How many messages that can't be parsed are stored of each source and hour; "
        "the others are only counted.",
    )
    rejected_retention_days: int = Field(
        default=30,
        ge=1,
        le=36_500,
        description="How many days messages that can't be parsed stay in Postgres; their counts "
        "stay for ever.",
    )
    unattributed_retention_days: int = Field(
        default=7,
        ge=1,
        le=36_500,
        description="How many days sessions that coturn never confirmed stay in Postgres, with "
        "their reports and names; their usage by realm and hour stays for ever.",
    )
    unattributed_sessions: int = Field(
        default=100_000,
        ge=0,
        description="How many sessions that coturn never confirmed, and that are over, stay of "
        "each source; the newest stay.",
    )
    client_addresses: Literal["keep", "network", "drop"] = Field(
        default="keep",
        description="What is stored of the addresses of clients: `keep`, `network` (without port; "
        "the /24 of IPv4, the /48 of IPv6), or `drop`. A realm's rule can be stricter.",
    )
    spool_queue_bytes: Annotated[int, BeforeValidator(parse_bytes)] = Field(
        default=256 * 2**20,
        ge=2**16,
        description="Memory for received messages that are not spooled yet, in bytes or as "
        "`256MiB`.",
    )
    lease_seconds: float = Field(
        default=15.0,
        gt=1,
        description="How long a collector keeps its source without renewing its lease, in seconds; "
        "then a standby collector takes over.",
    )
    settle_interval_seconds: float = Field(
        default=2.0, gt=0, description="Pause between two runs of settling, in seconds."
    )
    rollup_interval_seconds: float = Field(
        default=2.0, gt=0, description="Pause between two runs of the roll-up, in seconds."
    )
    time_zone: str = Field(
        default="UTC",
        description="Time zone (a name such as `Europe/Berlin`) of realms without a rule of their "
        "own.",
    )
    grace_seconds: int = Field(
        default=60,
        ge=0,
        description="How long after its lifetime an allocation without reports counts as open, in "
        "seconds, for realms without a rule of their own.",
    )
    valkey_port: int | None = Field(
        default=None,
        ge=1,
        le=65_535,
        description="Port of the embedded Valkey on 127.0.0.1. Unset: 6379 if free, else another, "
        "chosen once and kept.",
    )
    metrics_listen: str | None = Field(
        default=None,
        description="Address and port that serve `/metrics` and `/healthz`, such as "
        "`127.0.0.1:9464`. Unset or `off`: not served.",
    )
    web_listen: str | None = Field(
        default=None,
        description="Address and port of the page and the API, such as `127.0.0.1:8400`, or "
        "`unix:/path`; `off`: `up` serves none. Unset: 127.0.0.1:8400, or for `up` another port, "
        "where that one is taken.",
    )
    web_login: Literal["auto", "required"] = Field(
        default="auto",
        description="Whether the page and the API ask for a token: `required`, or `auto`: not on "
        "loopback without a proxy and without other names.",
    )
    web_hosts: Annotated[tuple[str, ...], BeforeValidator(split_names)] = Field(
        default=(),
        description="Names by which browsers address the page, separated by commas, beside the "
        "names of loopback and the address that it listens on.",
    )
    web_proxies: Annotated[tuple[str, ...], BeforeValidator(split_names)] = Field(
        default=(),
        description="Addresses or networks of proxies in front of the page, separated by commas, "
        "or `unix`; their `X-Forwarded-For`, `-Proto` and `-Host` are believed.",
    )
    web_root_path: str = Field(
        default="",
        description="Path below which a proxy shows the page, such as `/turn`.",
    )
    webhook_private_addresses: bool = Field(
        default=False,
        description="Whether every webhook may be at a private, link-local or loopback address; "
        "else only those that were added with `--allow-private`.",
    )
    cells_away: Literal["refuse", "leave_out"] = Field(
        default="refuse",
        description="On a front, what reads do while a cell does not answer: `refuse` with an "
        "error, or `leave_out` what it has, and say so.",
    )
    config: Path | None = Field(
        default=None,
        description="Path of a TOML file with the same settings under their names in lower case.",
    )

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_database_url(value.get_secret_value())
        return value

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: SecretStr | None) -> SecretStr | None:
        return None if value is None else SecretStr(normalize_redis_url(value.get_secret_value()))

    @field_validator("source")
    @classmethod
    def _check_source(cls, value: str) -> str:
        return check_source_name(value)

    @field_validator("metrics_listen")
    @classmethod
    def _check_metrics_listen(cls, value: str | None) -> str | None:
        if value is None or value == "off":
            return None
        parse_listen_address(value)
        return value

    @field_validator("web_listen")
    @classmethod
    def _check_web_listen(cls, value: str | None) -> str | None:
        if value is not None and value != "off":
            check_web_listen_address(value)
        return value

    @field_validator("web_hosts")
    @classmethod
    def _check_web_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_hosts(value)
        return tuple(host.lower() for host in value)

    @field_validator("web_proxies")
    @classmethod
    def _check_web_proxies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_proxies(value)
        return value

    @field_validator("web_root_path")
    @classmethod
    def _check_web_root_path(cls, value: str) -> str:
        check_root_path(value)
        return value

    @field_validator("data_dir", "config")
    @classmethod
    def _make_absolute(cls, value: Path | None) -> Path | None:
        if value is None:
            return None
        try:
            return value.expanduser().absolute()
        except RuntimeError:
            raise ValueError("the home directory is not known: expected an absolute path") from None

    @field_validator("time_zone")
    @classmethod
    def _check_time_zone(cls, value: str) -> str:
        time_zone(value)
        return value

    def masked(self) -> dict[str, str]:
        """Every setting as text by its name: passwords as ``***``, unset ones as ``''``."""
        values: dict[str, str] = {}
        for name in type(self).model_fields:
            match getattr(self, name):
                case None:
                    values[name] = ""
                case SecretStr() as secret:
                    values[name] = mask_url(secret.get_secret_value())
                case tuple() as names:
                    values[name] = ",".join(names)
                case bool() as is_on:
                    values[name] = str(is_on).lower()  # as in TOML
                case value:
                    values[name] = str(value)
        return values

    def set_origins(self, origins: Mapping[str, str]) -> None:
        """Record where values came from; only `load_settings` calls it."""
        self._origins.update(origins)

    def origins(self) -> dict[str, str]:
        """Where each setting is from: variable, ``<file>: <key>``, ``argument`` or ``default``."""
        given = self.model_fields_set
        return {
            name: self._origins.get(name, "argument" if name in given else "default")
            for name in type(self).model_fields
        }
