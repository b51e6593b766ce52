"""Runs the stages of the Dockerfile without an engine, each in an overlay over this machine.

This machine's files and its Python, at ``/opt/python``, stand for the base image; everything else
is done as the Dockerfile says: RUN by a shell in the stage's root, COPY from what .dockerignore
allows. Only root can do it.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[2]
NEW_NAMESPACES: Final = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
RUN: Final = """
set -eu
stage=$1 workdir=$2
mount -t overlay -o "lowerdir=/,upperdir=$stage/upper,workdir=$stage/work" overlay "$stage/root"
mkdir -p "$stage/root/opt/python" "$stage/root$workdir"
mount --bind "$PYTHON" "$stage/root/opt/python"
mount --rbind /dev "$stage/root/dev"
mount -t proc proc "$stage/root/proc"
exec chroot "$stage/root" sh -c "cd \\"\\$1\\" && eval \\"\\$2\\"" sh "$workdir" "$3"
"""


class Instruction(NamedTuple):
    """One instruction of a Dockerfile, with its continued lines joined."""

    word: str
    rest: str


@dataclass
class Stage:
    """A stage and its root. ``upper`` has what it adds to the base image."""

    name: str
    directory: Path
    workdir: str = "/"
    environment: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def upper(self) -> Path:
        return self.directory / "upper"


def instructions() -> list[Instruction]:
    """The instructions of the Dockerfile."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [Instruction(*line.split(maxsplit=1)) for line in lines if line.strip()]


def build(directory: Path) -> Stage:
    """Run all stages below a directory; return the last one."""
    context = directory / "context"
    copy_context(context)
    stages: list[Stage] = []
    for word, rest in instructions():
        match word:
            case "FROM":
                name = rest.partition(" AS ")[2] or "image"
                stages.append(Stage(name, directory / name, environment=base_environment()))
                for part in ("upper", "work", "root"):
                    (directory / name / part).mkdir(parents=True)
            case "WORKDIR":
                stages[-1].workdir = rest
                (stages[-1].upper / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "ENV":
                for setting in shlex.split(rest):
                    variable, value = setting.split("=", 1)
                    stages[-1].environment[variable] = value.replace(
                        "$PATH", stages[-1].environment["PATH"]
                    )
            case "COPY":
                copy(stages, context, shlex.split(rest))
            case "RUN":
                run(stages[-1], rest)
            case "ARG" | "LABEL" | "USER" | "VOLUME" | "HEALTHCHECK" | "ENTRYPOINT" | "CMD":
                stages[-1].settings[word] = rest
            case _:
                raise AssertionError(f"an instruction that this does not know: {word} {rest}")
    return stages[-1]


def copy_context(context: Path) -> None:
    """What .dockerignore lets through: nothing but the paths after ``!``."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert [line for line in lines if not line.startswith(("#", "!", "**/"))] == ["*"]
    for line in lines:
        if line.startswith("!"):
            source, target = ROOT / line[1:], context / line[1:]
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(
                    source, target, ignore=shutil.ignore_patterns("__pycache__", "*.so")
                )
            else:
                shutil.copy(source, target)


def copy(stages: list[Stage], context: Path, words: list[str]) -> None:
    """COPY, from the context or an earlier stage."""
    source = context
    if words[0].startswith("--from="):
        name = words.pop(0).removeprefix("--from=")
        [source] = [stage.upper for stage in stages if stage.name == name]
    *paths, where = words
    target = stages[-1].upper / stages[-1].workdir.lstrip("/") / where
    target = stages[-1].upper / where.lstrip("/") if where.startswith("/") else target
    for path in paths:
        found = source / path.lstrip("/")
        into = target / found.name if where.endswith("/") else target
        into.parent.mkdir(parents=True, exist_ok=True)
        if found.is_dir():
            shutil.copytree(found, into, symlinks=True)
        else:
            shutil.copy(found, into)


def run(stage: Stage, command: str) -> None:
    """RUN."""
    done = subprocess.run(
        [*NEW_NAMESPACES, "sh", "-c", RUN, "run", str(stage.directory), stage.workdir, command],
        env={**stage.environment, "PYTHON": sys.base_prefix, **package_settings()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"RUN {command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def base_environment() -> dict[str, str]:
    """What the base image sets; its Python is one that this machine has."""
    return {
        "PATH": "/opt/python/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LD_LIBRARY_PATH": "/opt/python/lib",
        "DEBIAN_FRONTEND": "noninteractive",
    }


def package_settings() -> Mapping[str, str]:
    """How this machine reaches packages."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("PIP_", "SSL_")) or name.lower().endswith("_proxy")
    }
