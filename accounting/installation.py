"""This installation: its version, and the command that adds an extra to it."""

import json
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Final

PACKAGE: Final = "turn-accounting"


@cache
def version() -> str:
    """The version of this package: an installation has it from pyproject.toml."""
    return metadata.version(PACKAGE)


def missing_extra(needing: str, library: str, extra: str) -> str:
    """The error where a library is not installed. ``needing``: such as "Parquet needs"."""
    return f"{needing} {library} of the extra {extra}: {install_command(extra)}"


def install_command(extra: str) -> str:
    """The command that adds an extra to this installation, for the tool that made it.

    pipx and uv keep the list of what was asked for: theirs names the earlier extras too.
    """
    environment, python = Path(sys.prefix), shlex.quote(sys.executable)
    if (environment / "pipx_metadata.json").exists():
        return f"pipx inject {PACKAGE} {_requirement(*_extras_of_pipx(environment), extra)}"
    if (environment / "uv-receipt.toml").exists():
        return f"uv tool install {_requirement(*_extras_of_uv(environment), extra)}"
    if shutil.which("pip") == str(environment / "bin" / "pip"):
        return f"pip install {_requirement(extra)}"
    if find_spec("pip") is not None:
        return f"{python} -m pip install {_requirement(extra)}"
    if metadata.distribution(PACKAGE).read_text("INSTALLER") == "uv":
        return f"uv pip install --python {python} {_requirement(extra)}"
    return f"pip --python {python} install {_requirement(extra)}"


def _requirement(*extras: str) -> str:
    return f"'{PACKAGE}[{','.join(dict.fromkeys(extras))}]'"


def _extras_of_pipx(environment: Path) -> Sequence[str]:
    recorded = json.loads((environment / "pipx_metadata.json").read_text())
    asked_for = re.search(r"\[([\w,.-]+)\]", recorded["main_package"]["package_or_url"] or "")
    return asked_for[1].split(",") if asked_for else ()


def _extras_of_uv(environment: Path) -> Sequence[str]:
    receipt = tomllib.loads((environment / "uv-receipt.toml").read_text())
    return [
        extra
        for requirement in receipt["tool"]["requirements"]
        if requirement["name"] == PACKAGE
        for extra in requirement.get("extras", ())
    ]
