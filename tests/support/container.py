"""Runs a container without an engine: namespaces, another root that can't be written, another user.

What an image would bring comes from this machine: its programs, this Python, the packages of this
environment and the project. Only root can make one. The network is that of the machine.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.support.servers import wait_until

ROOT: Final = Path(__file__).resolve().parents[2]
IMAGE_USER: Final = 10001
NEW_NAMESPACES: Final = shlex.split(
    "unshare --mount --pid --ipc --uts --cgroup --fork --kill-child"
)
CHECKOUT: Final[Mapping[str, Path]] = {
    "/opt/python": Path(sys.base_prefix),
    "/opt/packages": Path(sysconfig.get_path("purelib")),
    "/opt/project": ROOT,
}
"""What stands for an image: this Python, the packages of its environment, and the project."""
CHECKOUT_ENVIRONMENT: Final[Mapping[str, str]] = {
    "PATH": "/opt/python/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONPATH": "/opt/project:/opt/packages",
    "LD_LIBRARY_PATH": "/opt/python/lib",
    "PYTHONUNBUFFERED": "1",
    "ACCOUNTING_DATA_DIR": "/data",
}
# Arguments: the root, user and group; path here, path in the container and mode; `--`; the command.
START: Final = """
set -eu
root=$1 user=$2 group=$3
shift 3
mount -t tmpfs -o mode=0755 root "$root"
for path in usr bin sbin lib lib64; do
    if [ -L "/$path" ]; then
        cp --no-dereference "/$path" "$root/$path"
    elif [ -d "/$path" ]; then
        mkdir "$root/$path"
        mount --bind "/$path" "$root/$path"
        mount -o remount,bind,ro "$root/$path"
    fi
done
mkdir "$root/proc" "$root/dev" "$root/etc"
mount -t proc proc "$root/proc"
cp /etc/hosts "$root/etc/hosts"
for device in null zero full random urandom; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then mkdir -p "$root$2"; else mkdir -p "$root${2%/*}"; touch "$root$2"; fi
    mount --bind "$1" "$root$2"
    if [ "$3" = ro ]; then mount -o remount,bind,ro "$root$2"; fi
    shift 3
done
shift
mount -o remount,ro "$root"
exec chroot "$root" setpriv --reuid="$user" --regid="$group" --clear-groups --no-new-privs \\
    --inh-caps=-all --bounding-set=-all "$@"
"""


@dataclass(kw_only=True)
class Container:
    """``turn-accounting`` with these arguments, as the first process of its namespace.

    ``volumes`` and ``files`` are paths of this machine by their paths in the container; only
    volumes can be written.
    """

    arguments: Sequence[str]
    environment: Mapping[str, str]
    volumes: Mapping[str, Path] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    user: int = IMAGE_USER
    group: int = IMAGE_USER
    command: Sequence[str] = ("python", "-m", "accounting")
    image: Mapping[str, Path] = field(default_factory=lambda: dict(CHECKOUT))
    image_environment: Mapping[str, str] = field(default_factory=lambda: dict(CHECKOUT_ENVIRONMENT))
    directory: Path = field(init=False)
    _process: subprocess.Popen[bytes] | None = field(init=False, default=None)

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="ta-test-"))
        (self.directory / "root").mkdir()
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self._start([*self.command, *self.arguments]),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        self._process.kill()  # --kill-child
        self._process.wait()
        if kind is None:
            shutil.rmtree(self.directory)

    @property
    def log_path(self) -> Path:
        return self.directory / "log"

    def log_text(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait(self, timeout_seconds: float = 60.0) -> int:
        """Wait for its end; return its exit code."""
        assert self._process is not None
        return self._process.wait(timeout_seconds)

    def stop(self) -> int:
        """As an engine stops it: SIGTERM to its first process. Returns its exit code."""
        os.kill(self.pid, signal.SIGTERM)
        return self.wait()

    @property
    def pid(self) -> int:
        """Of its first process, as this machine sees it."""
        assert self._process is not None
        own = self._process.pid
        wait_until(lambda: Path(f"/proc/{own}/task/{own}/children").read_text())
        return int(Path(f"/proc/{own}/task/{own}/children").read_text().split()[0])

    def execute(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run another command in it, as ``docker exec`` does."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--ipc", "--root", "--wd"]
        confined = ["setpriv", f"--reuid={self.user}", f"--regid={self.group}", "--clear-groups"]
        return subprocess.run(
            [*enter, *confined, *command],
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
        )

    def status(self) -> dict[str, str]:
        """What the kernel says of its first process."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}

    def _start(self, command: Sequence[str]) -> list[str]:
        mounts = [
            *(("ro", path, where) for where, path in self.image.items()),
            *(("rw", path, where) for where, path in self.volumes.items()),
            *(("ro", path, where) for where, path in self.files.items()),
        ]
        words = [word for mode, path, where in mounts for word in (str(path), where, mode)]
        given = [str(self.directory / "root"), str(self.user), str(self.group), *words, "--"]
        return [*NEW_NAMESPACES, "sh", "-c", START, "container", *given, *command]

    def _environment(self) -> dict[str, str]:
        """Without HOME, as with a user that the image does not know."""
        return {**self.image_environment, **self.environment}
