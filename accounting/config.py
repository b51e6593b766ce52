"""The settings: what an operator may choose, where a value may come from, and what is refused.

Owns the names, defaults and checks of every setting. Must not connect to anything, start anything
or log; the one thing it reads from disk are the files that the operator named. `cli` makes one
frozen `Settings` with `load_settings()` and passes it down; nothing else reads the environment.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit
from zoneinfo import ZoneInfo, available_timezones

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from accounting.errors import ConfigurationError

PREFIX = "ACCOUNTING_"
SECRETS = ("database_url", "redis_url")
EXPECTED_DATABASE_URL = "postgresql://user@host:5432/database (or ?host=/socket/directory)"
EXPECTED_REDIS_URL = (
    "redis://host:6379/0, rediss://, valkey://, unix:///path/of/socket, or "
    "redis+sentinel://host:26379,host:26379/service"
)

# A cluster that runs a service named `accounting` gives every pod variables with our prefix.
_SERVICE_LINK = re.compile(
    rf"{PREFIX}(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://")
_BYTES = re.compile(r"(\d+)\s*([KMG]i?B?|B)?", re.IGNORECASE)
_BYTES_FACTOR = {"": 1, "k": 1000, "ki": 2**10, "m": 10**6, "mi": 2**20, "g": 10**9, "gi": 2**30}


def default_data_dir(environ: Mapping[str, str] | None = None) -> Path:
    """The data directory when none is set.

    `$XDG_STATE_HOME/turn-accounting` where that variable holds an absolute path, else
    `/var/lib/turn-accounting` for root and `~/.local/state/turn-accounting` for anybody else.
    Raises ConfigurationError for a user without a home.
    """
    state_home = (os.environ if environ is None else environ).get("XDG_STATE_HOME", "")
    if state_home.startswith("/"):  # the XDG specification: a relative path is to be ignored
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


def _bytes(value: object) -> object:
    """A number of bytes as people write it: 1000, 256MiB, 64 kB."""
    if not isinstance(value, str):
        return value
    match = _BYTES.fullmatch(value.strip())
    if match is None:
        raise ValueError("expected a number of bytes, such as 268435456 or 256MiB")
    number, unit = match.groups()
    return int(number) * _BYTES_FACTOR[(unit or "").lower().removesuffix("b")]


def _split_url(url: str, schemes: tuple[str, ...], expected: str) -> None:
    """Refuse what is no URL of these schemes. The message holds no part of it but the scheme."""
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise ValueError(f"no URL: expected {expected}")
    if scheme not in schemes:
        shown = f"scheme {scheme!r}" if re.fullmatch(r"[a-z][a-z0-9+]{0,20}", scheme) else "scheme"
        raise ValueError(f"{shown} is not known: expected {expected}")
    try:
        parts = urlsplit(url)
        for place in parts.netloc.rpartition("@")[2].split(","):  # libpq takes several hosts
            _ = urlsplit(f"//{place}").port
    except ValueError:
        raise ValueError(f"its host or port is no valid one: expected {expected}") from None
    if "@" in parts.path or parts.fragment or "=" not in (parts.query or "="):
        raise ValueError(
            "a special character in its user or password is not percent-encoded: "
            f"expected {expected}"
        )


def listen_address(value: str) -> tuple[str, int]:
    """The host and port of `host:port`, `[address]:port` for IPv6; raises ValueError."""
    expected = "expected an address and a port, such as 127.0.0.1:9464 or [::1]:9464"
    try:
        parts = urlsplit(f"//{value}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(expected) from None
    if not host or not port or parts.netloc != value or "@" in value:
        raise ValueError(expected)
    return host, port


def mask_url(url: str) -> str:
    """The URL with its passwords replaced by `***`, fit for logs and terminals."""
    parts = urlsplit(url)
    user, colon, _ = parts.netloc.rpartition("@")[0].partition(":")
    host = parts.netloc.rpartition("@")[2]
    netloc = (f"{user}{':***' if colon else ''}@" if "@" in parts.netloc else "") + host
    query = [
        (name, "***" if "password" in name.lower() else value)
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
    ]
    masked = urlencode(query, safe="*/", quote_via=quote)
    return urlunsplit((parts.scheme, netloc, parts.path, masked, ""))


class Settings(BaseModel):
    """Everything that can be chosen, checked, in one frozen object.

    Made directly it holds its arguments and the defaults and looks at no environment, so that a
    test cannot reach the database that a shell happens to name. The service uses `load_settings()`.
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
        "`valkey://` or `unix://` URL, or by the sentinels that know its address: "
        "`redis+sentinel://host:26379,host:26379/service`. Unset: `up` serves an embedded Valkey.",
    )
    capture: Literal["auto", "replication", "subscribe"] = Field(
        default="auto",
        description="How events are taken from Redis: `replication`, `subscribe`, or `auto` for "
        "the best that the server allows.",
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
        description="Least level that is logged: `debug`, `info`, `warning`, `error`.",
    )
    log_format: Literal["auto", "console", "json"] = Field(
        default="auto",
        description="Form of the log on standard error: `console`, `json`, or `auto`: console on a "
        "terminal, JSON lines elsewhere.",
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
        "time, once all that they were billed for is closed and verified. Unset: for ever.",
    )
    spool_queue_bytes: Annotated[int, BeforeValidator(_bytes)] = Field(
        default=256 * 2**20,
        ge=2**16,
        description="Memory for received messages that are not spooled yet, in bytes or as "
        "`256MiB`.",
    )
    lease_seconds: float = Field(
        default=15.0,
        gt=1,
        description="How long a source stays this collector's when nothing is heard of it; then "
        "one that stands by takes over. In seconds.",
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
        description="How long after its lifetime an allocation without a sign of life counts as "
        "alive, in seconds, for realms without a rule of their own.",
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
        description="Address and port at which `/metrics` and `/healthz` are served, such as "
        "`127.0.0.1:9464`. Unset or `off`: they are not.",
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
            _split_url(value.get_secret_value(), ("postgresql", "postgres"), EXPECTED_DATABASE_URL)
        return value

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        url = value.get_secret_value()
        servers = ("redis", "rediss", "valkey", "valkeys")
        sentinels = tuple(f"{scheme}+sentinel" for scheme in servers)
        _split_url(url, (*servers, "unix", *sentinels), EXPECTED_REDIS_URL)
        if url.startswith("valkey"):  # redis-py knows the protocol under one name only
            url = "redis" + url.removeprefix("valkey")
        parts = urlsplit(url)
        if parts.scheme == "unix":
            if not parts.path.startswith("/"):
                raise ValueError(f"it names no socket: expected {EXPECTED_REDIS_URL}")
        elif parts.scheme.endswith("+sentinel"):
            if not re.fullmatch(r"/[^/]+(/\d*)?", parts.path):
                raise ValueError(f"it names no service: expected {EXPECTED_REDIS_URL}")
        elif not re.fullmatch(r"/?\d*", parts.path):
            raise ValueError(f"its path is no database number: expected {EXPECTED_REDIS_URL}")
        return SecretStr(url)

    @field_validator("source")
    @classmethod
    def _check_source(cls, value: str) -> str:
        if not 1 <= len(value) <= 63 or not value.isprintable() or "/" in value:
            raise ValueError("expected 1 to 63 printable characters without '/'")
        return value

    @field_validator("metrics_listen")
    @classmethod
    def _check_metrics_listen(cls, value: str | None) -> str | None:
        if value is None or value == "off":
            return None
        listen_address(value)
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
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError):
            near = difflib.get_close_matches(value, available_timezones(), n=1)
            hint = f", such as {near[0]!r}" if near else " such as 'Europe/Berlin'"
            raise ValueError(f"expected the name of a time zone{hint}") from None
        return value

    def masked(self) -> dict[str, str]:
        """Every setting as text by its name, passwords replaced by `***`, unset ones as `''`."""
        values: dict[str, str] = {}
        for name in type(self).model_fields:
            match getattr(self, name):
                case None:
                    values[name] = ""
                case SecretStr() as secret:
                    values[name] = mask_url(secret.get_secret_value())
                case value:
                    values[name] = str(value)
        return values

    def remember_origins(self, origins: Mapping[str, str]) -> None:
        """Note where values came from; for `load_settings` alone."""
        self._origins.update(origins)

    def origins(self) -> dict[str, str]:
        """Where each setting came from: a variable, `<file>: <key>`, `argument` or `default`."""
        given = self.model_fields_set
        return {
            name: self._origins.get(name, "argument" if name in given else "default")
            for name in type(self).model_fields
        }


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


class LoadedSettings(Settings, BaseSettings):
    """Settings from outside: arguments, environment, files of secrets, TOML, in this order."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=PREFIX, env_ignore_empty=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # the library's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        path = init_settings().get("config") or env_settings().get("config")
        return (
            init_settings,
            env_settings,
            InitSettingsSource(settings_cls, _read_secret_files(os.environ)),
            InitSettingsSource(settings_cls, _read_toml(Path(path)) if path else {}),
        )


def load_settings(**arguments: object) -> Settings:
    """The settings in force, from `arguments` (None means not given) and from outside.

    Raises ConfigurationError, one line, for anything unknown, ambiguous or wrong: a mistyped
    setting that is silently ignored costs money in a service that bills.
    """
    _refuse_unknown_variables(os.environ)
    given = {name: value for name, value in arguments.items() if value is not None}
    try:
        settings = LoadedSettings(**given)  # type: ignore[arg-type]  # pydantic checks them
    except ValidationError as error:
        origins = _origins(given)
        raise ConfigurationError(
            "; ".join(_explain(detail, origins) for detail in error.errors(include_url=False))
        ) from None
    settings.remember_origins(_origins(given))
    return settings


def _refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    known = {variable(name) for name in Settings.model_fields}
    known |= {variable(name) + "_FILE" for name in SECRETS}
    for name in sorted(environ):
        if not name.upper().startswith(PREFIX) or name in known:
            continue
        if _SERVICE_LINK.fullmatch(name) or _SERVICE_LINK_VALUE.match(environ[name]):
            continue
        raise ConfigurationError(
            f"{name} is no setting of turn-accounting: {_nearest(name, known)}"
        )
    for name in SECRETS:
        if environ.get(variable(name)) and environ.get(variable(name) + "_FILE"):
            raise ConfigurationError(
                f"{variable(name)} and {variable(name)}_FILE are both set: expected one of them"
            )


def _nearest(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"did you mean {near[0]}?" if near else f"expected one of {', '.join(sorted(known))}"


def _read_secret_files(environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in SECRETS:
        path = environ.get(variable(name) + "_FILE")
        if path:
            values[name] = _read(Path(path), variable(name) + "_FILE").strip()
            if not values[name]:
                raise ConfigurationError(
                    f"{variable(name)}_FILE={path!r} is empty: expected a file that holds the URL"
                )
    return values


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(_read(path, variable("config")))
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is no valid TOML: {error}") from None
    known = set(Settings.model_fields) - {"config"}
    for key in values:
        if key not in known:
            raise ConfigurationError(
                f"{path}: {key} is no setting of turn-accounting: {_nearest(key, known)}"
            )
    return values


def _read(path: Path, origin: str) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(
            f"{origin}={str(path)!r} can't be read ({reason}): expected the path of a readable file"
        ) from None
    except UnicodeDecodeError:
        raise ConfigurationError(
            f"{origin}={str(path)!r} is no text in UTF-8: expected a readable text file"
        ) from None


def _origins(arguments: Mapping[str, object]) -> dict[str, str]:
    """Where each setting that is no default came from, in the order of LoadedSettings."""
    path = arguments.get("config") or os.environ.get(variable("config"))
    origins = {name: f"{path}: {name}" for name in (_read_toml(Path(str(path))) if path else ())}
    for name in Settings.model_fields:
        for candidate in (variable(name) + "_FILE", variable(name)):
            if os.environ.get(candidate) and (candidate == variable(name) or name in SECRETS):
                origins[name] = candidate
    return origins | dict.fromkeys(arguments, "argument")


def _explain(detail: ErrorDetails, origins: Mapping[str, str]) -> str:
    """One wrong value in one line: its name, the value unless it is secret, what was expected."""
    name = str(detail["loc"][0]) if detail["loc"] else "?"
    if detail["type"] == "extra_forbidden":
        return (
            f"{name} is no setting of turn-accounting: {_nearest(name, set(Settings.model_fields))}"
        )
    origin = origins.get(name, variable(name))
    where = variable(name) if origin == "argument" else origin
    shown = "" if name in SECRETS else f"={detail['input']!r}"[:100]
    message = detail["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:] if message.startswith("Input") else message
    return f"{where}{shown} is wrong: {' '.join(message.split())}"
