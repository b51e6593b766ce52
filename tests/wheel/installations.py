"""Installs the wheel as an operator does: by pip, pipx or uv, each into an empty environment."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TOOLS: Final = ("pip", "inactive venv", "venv without pip", "pipx", "uv tool", "uv pip")


@dataclass(frozen=True)
class Installation:
    """A wheel that is installed. ``environment``: of a shell in which its program is found."""

    program: Path
    environment: Mapping[str, str]
    directory: Path

    def run(
        self, *arguments: str, variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run its command in the directory."""
        return subprocess.run(
            [self.program, *arguments],
            cwd=self.directory,
            env={**self.environment, **(variables or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )

    def shell(self, *lines: str) -> str:
        """Run lines as they are printed, in a shell; returns the standard output."""
        done = subprocess.run(
            ["bash", "-ec", "\n".join(lines)],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, (lines, done.stdout, done.stderr)
        return done.stdout


def install(
    tool: str, python: Path, wheel: Path, directory: Path, extras: Sequence[str] = ()
) -> Installation:
    """Install the wheel with these extras for a Python; prints how long it took, and the size."""
    started = time.monotonic()
    work, tools, environment_dir = (directory / name for name in ("work", "tools", "environment"))
    for path in (work, tools):
        path.mkdir(parents=True)
    for name in ("pip", "pipx", "uv"):
        (tools / name).symlink_to(Path(sys.executable).with_name(name))
    programs = directory / "programs" if tool in {"pipx", "uv tool"} else environment_dir / "bin"
    is_active = tool not in {"inactive venv", "venv without pip", "uv pip"}
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ACCOUNTING_", "PYTHON", "VIRTUAL_ENV", "PYTEST"))
    } | {
        "PATH": ":".join([*([str(programs)] if is_active else []), str(tools), "/usr/bin", "/bin"]),
        "PIPX_HOME": str(environment_dir),
        "PIPX_BIN_DIR": str(programs),
        "UV_TOOL_DIR": str(environment_dir),
        "UV_TOOL_BIN_DIR": str(programs),
        "UV_PYTHON_DOWNLOADS": "never",
    }
    requirement = f"{wheel}[{','.join(extras)}]" if extras else str(wheel)
    for command in _commands(tool, str(python), str(environment_dir), requirement):
        done = subprocess.run(
            command, cwd=work, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    seconds = time.monotonic() - started
    size = sum(p.stat().st_size for p in environment_dir.rglob("*") if not p.is_symlink())
    name = f"{tool}, {python.name}, {' '.join(extras) or 'no extra'}"
    print(f"{name}: {seconds:.1f} s, {size / 1e6:.0f} MB")  # noqa: T201  # pytest -rP shows it
    return Installation(programs / "turn-accounting", environment, work)


def _commands(tool: str, python: str, directory: str, requirement: str) -> list[list[str]]:
    own = f"{directory}/bin/python"
    match tool:
        case "pip" | "inactive venv":
            return [
                [python, "-m", "venv", directory],
                [own, "-m", "pip", "install", "--quiet", requirement],
            ]
        case "venv without pip":  # as in the image
            return [
                [python, "-m", "venv", "--without-pip", directory],
                ["pip", "--python", own, "install", "--quiet", requirement],
            ]
        case "pipx":
            return [["pipx", "install", "--quiet", "--python", python, requirement]]
        case "uv tool":
            return [["uv", "tool", "install", "--quiet", "--python", python, requirement]]
        case "uv pip":
            return [
                ["uv", "venv", "--quiet", "--python", python, directory],
                ["uv", "pip", "install", "--quiet", "--python", own, requirement],
            ]
        case _:
            raise AssertionError(tool)
