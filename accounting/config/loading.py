"""Loads the settings from arguments, environment, secret files and a TOML file.

Rejects names that are unknown or ambiguous, and turns every error into one line. `settings` checks
the values.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from accounting.config.settings import PREFIX, SECRETS, Settings, environment_variable
from accounting.errors import ConfigurationError

# In Kubernetes, a service named `accounting` gives every pod variables with this prefix.
_SERVICE_LINK = re.compile(
    rf"{PREFIX}(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://")


class LoadedSettings(Settings, BaseSettings):
    """Settings from arguments, environment, secret files and TOML; the first one that has it."""

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
    """The settings in force. `arguments` precede all other sources; None means not given.

    Raises ConfigurationError, one line, for anything unknown, ambiguous or wrong: ignoring a
    mistyped setting would cost money in a service that bills.
    """
    _check_variables(os.environ)
    given = {name: value for name, value in arguments.items() if value is not None}
    try:
        settings = LoadedSettings(**given)  # type: ignore[arg-type]  # pydantic checks them
    except ValidationError as error:
        origins = _origins(given)
        raise ConfigurationError(
            "; ".join(_explain(detail, origins) for detail in error.errors(include_url=False))
        ) from None
    settings.set_origins(_origins(given))
    return settings


def _check_variables(environ: Mapping[str, str]) -> None:
    known = {environment_variable(name) for name in Settings.model_fields}
    known |= {environment_variable(name) + "_FILE" for name in SECRETS}
    for name in sorted(environ):
        if not name.upper().startswith(PREFIX) or name in known:
            continue
        if _SERVICE_LINK.fullmatch(name) or _SERVICE_LINK_VALUE.match(environ[name]):
            continue
        raise ConfigurationError(
            f"{name} is no setting of turn-accounting: {_suggestion(name, known)}"
        )
    for name in SECRETS:
        if environ.get(environment_variable(name)) and environ.get(
            environment_variable(name) + "_FILE"
        ):
            raise ConfigurationError(
                f"{environment_variable(name)} and {environment_variable(name)}_FILE are both "
                "set: expected one of them"
            )


def _suggestion(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"did you mean {near[0]}?" if near else f"expected one of {', '.join(sorted(known))}"


def _read_secret_files(environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in SECRETS:
        path = environ.get(environment_variable(name) + "_FILE")
        if path:
            values[name] = _read(Path(path), environment_variable(name) + "_FILE").strip()
            if not values[name]:
                raise ConfigurationError(
                    f"{environment_variable(name)}_FILE={path!r} is empty: expected a file "
                    "that holds the URL"
                )
    return values


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(_read(path, environment_variable("config")))
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is no valid TOML: {error}") from None
    known = set(Settings.model_fields) - {"config"}
    for key in values:
        if key not in known:
            raise ConfigurationError(
                f"{path}: {key} is no setting of turn-accounting: {_suggestion(key, known)}"
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
    """The origin of each setting that is not the default, in the order of LoadedSettings."""
    path = arguments.get("config") or os.environ.get(environment_variable("config"))
    origins = {name: f"{path}: {name}" for name in (_read_toml(Path(str(path))) if path else ())}
    for name in Settings.model_fields:
        for candidate in (environment_variable(name) + "_FILE", environment_variable(name)):
            if os.environ.get(candidate) and (
                candidate == environment_variable(name) or name in SECRETS
            ):
                origins[name] = candidate
    return origins | dict.fromkeys(arguments, "argument")


def _explain(detail: ErrorDetails, origins: Mapping[str, str]) -> str:
    """One error in one line: the setting, its value unless it is secret, what was expected."""
    name = str(detail["loc"][0]) if detail["loc"] else "?"
    if detail["type"] == "extra_forbidden":
        return (
            f"{name} is no setting of turn-accounting: "
            f"{_suggestion(name, set(Settings.model_fields))}"
        )
    origin = origins.get(name, environment_variable(name))
    where = environment_variable(name) if origin == "argument" else origin
    shown = "" if name in SECRETS else f"={detail['input']!r}"[:100]
    message = detail["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:] if message.startswith("Input") else message
    return f"{where}{shown} is wrong: {' '.join(message.split())}"
