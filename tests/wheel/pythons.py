"""The Pythons of this machine that the project supports, for installing it into each."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

SUPPORTED: Final = ("3.11", "3.12", "3.13")
PRINT_VERSION: Final = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"


@cache
def pythons() -> dict[str, Path]:
    """One interpreter of each version that is here: this one's, on PATH, or of pyenv."""
    found = {version: next(_working(version), None) for version in SUPPORTED}
    return {version: path for version, path in found.items() if path is not None}


def _working(version: str) -> Iterator[Path]:
    name = f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [
        Path(sys.base_prefix) / "bin" / name,
        Path(shutil.which(name) or "/nonexistent"),
        *sorted(pyenv.glob(f"versions/{version}.*/bin/{name}")),
    ]
    for path in filter(Path.exists, candidates):
        said = subprocess.run(
            [path, "-c", PRINT_VERSION], capture_output=True, text=True, check=False
        )
        if said.stdout.strip() == version:
            yield path
