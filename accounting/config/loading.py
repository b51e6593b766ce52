"""Loads the settings from arguments, environment variables, files of secrets, and a TOML file.

The first of these that has a setting wins. A mistyped setting is an error: to ignore it would cost
money in a service that bills.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr, ValidationError
from pydantic_core import ErrorDetails

from accounting.config.settings import PREFIX, SECRETS, Settings, environment_variable
from accounting.errors import ConfigurationError

# Kubernetes gives every pod variables with this prefix when a service is named ``accounting``.
_SERVICE_LINK = re.compile(
    rf"{PREFIX}(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://")


SIMILARITY: Final = 0.7
"""A misspelled setting is this similar to the right one, without their prefix."""


def load_settings(**arguments: object) -> Settings:
    """The settings from ``arguments`` (None for not given), the environment, and files.

    Raises ConfigurationError, one line, for anything unknown, ambiguous or wrong.
    """
    environ = os.environ
    _check_variables(environ)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    path = arguments.get("config") or environ.get(environment_variable("config"))
    if path:
        for name, value in _read_toml(Path(str(path))).items():
            values[name], origins[name] = value, f"{path}: {name}"
    for name in SECRETS:
        variable = file_variable(name)
        if secret_path := environ.get(variable):
            values[name] = _read_secret(Path(secret_path), variable)
            origins[name] = variable
    for name in Settings.model_fields:
        if value := environ.get(environment_variable(name)):
            values[name], origins[name] = value, environment_variable(name)
    for name, argument in arguments.items():
        if argument is not None:
            values[name], origins[name] = argument, "argument"
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise ConfigurationError(
            "; ".join(_explain(detail, origins) for detail in error.errors(include_url=False))
        ) from None
    settings.set_origins(origins)
    return settings


def reload_secret(settings: Settings, name: str) -> str | None:
    """A secret setting as its file, or the TOML file, has it now: secrets are rotated.

    What was loaded, where it came from elsewhere, or where the files can't be read right now.
    """
    loaded: SecretStr | None = getattr(settings, name)
    current = loaded
    if settings.origins()[name] not in ("argument", "default", environment_variable(name)):
        with suppress(ConfigurationError):
            current = getattr(load_settings(config=settings.config), name)
    return None if current is None else current.get_secret_value()


def file_variable(name: str) -> str:
    """The environment variable with the path of a file that has a secret setting."""
    return environment_variable(name) + "_FILE"


def _check_variables(environ: Mapping[str, str]) -> None:
    """Refuse variables with our prefix that are no settings, and secrets that are set twice."""
    known = {environment_variable(name) for name in Settings.model_fields}
    known |= {file_variable(name) for name in SECRETS}
    for name in sorted(environ):
        if not name.upper().startswith(PREFIX) or name in known:
            continue
        if _SERVICE_LINK.fullmatch(name) or _SERVICE_LINK_VALUE.match(environ[name]):
            continue
        raise ConfigurationError(_not_a_setting(name, known))
    for name in SECRETS:
        variable, variable_of_file = environment_variable(name), file_variable(name)
        if environ.get(variable) and environ.get(variable_of_file):
            raise ConfigurationError(
                f"{variable} and {variable_of_file} are both set: expected one of them"
            )


def _not_a_setting(name: str, known: Iterable[str]) -> str:
    """The message for an unknown setting, with the most similar known one if there is any.

    The prefix, which all variables have, makes none similar.
    """
    stems = {setting.upper().removeprefix(PREFIX): setting for setting in sorted(known)}
    stem = name.upper().removeprefix(PREFIX)
    similar = difflib.get_close_matches(stem, stems, n=1, cutoff=SIMILARITY)
    suggestion = f": did you mean {stems[similar[0]]}?" if similar else ""
    return f"{name} is not a setting of turn-accounting{suggestion}"


def _read_secret(path: Path, variable: str) -> str:
    secret = _read(path, variable).strip()
    if not secret:
        raise ConfigurationError(
            f"{variable}={str(path)!r} is empty: expected a file that holds the URL"
        )
    return secret


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(_read(path, environment_variable("config")))
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from None
    known = set(Settings.model_fields) - {"config"}
    for key in values:
        if key not in known:
            raise ConfigurationError(f"{path}: {_not_a_setting(key, known)}")
    return values


def _read(path: Path, variable: str) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(
            f"{variable}={str(path)!r} can't be read ({reason}): expected the path of a "
            "readable file"
        ) from None
    except UnicodeDecodeError:
        raise ConfigurationError(
            f"{variable}={str(path)!r} is not text in UTF-8: expected a readable text file"
        ) from None


def _explain(detail: ErrorDetails, origins: Mapping[str, str]) -> str:
    """One error in one line: the setting, its value unless it is secret, what was expected."""
    name = str(detail["loc"][0]) if detail["loc"] else "?"
    if detail["type"] == "extra_forbidden":
        return _not_a_setting(name, Settings.model_fields)
    origin = origins.get(name, environment_variable(name))
    label = environment_variable(name) if origin == "argument" else origin
    shown_value = "" if name in SECRETS else f"={detail['input']!r}"[:100]
    message = detail["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:] if message.startswith("Input") else message
    return f"{label}{shown_value} is wrong: {' '.join(message.split())}"
