"""Processes of the service for tests: forked, with short waits, or ``python -m accounting ...``.

with Service("up", data_dir, {"ACCOUNTING_REDIS_URL": valkey.url}) as up:
    up.wait_until_capturing()
    assert up.end(signal.SIGTERM) == 0

The processes end with the test, however it ends.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from accounting.embedded.child import die_with_parent
from tests.support.command import run_service
from tests.support.fork_server import ForkedProcess
from tests.support.servers import wait_until

ROOT: Final = Path(__file__).resolve().parents[2]
SERVICE: Final = "accounting"
"""The module that an operator runs."""
SHORT_SERVICE: Final = "tests.support.short_service"
"""With short waits in a Python of its own, whose modules and arguments are its own too."""
TEST_SETTINGS: Final[Mapping[str, str]] = {
    "ACCOUNTING_SETTLE_INTERVAL_SECONDS": "0.2",
    "ACCOUNTING_ROLLUP_INTERVAL_SECONDS": "0.2",
    "ACCOUNTING_CAPTURE": "subscribe",
    "ACCOUNTING_WEB_LISTEN": "off",  # most tests are not about the page
    "ACCOUNTING_LOG_LEVEL": "info",
    "ACCOUNTING_LOG_FORMAT": "json",
}


def environment(data_dir: Path, settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of the service: short job intervals, and no setting of this shell."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("ACCOUNTING_")
    }
    return {**inherited, **TEST_SETTINGS, "ACCOUNTING_DATA_DIR": str(data_dir), **(settings or {})}


class Service:
    """One running command of the service."""

    def __init__(
        self,
        command: str,
        data_dir: Path,
        settings: Mapping[str, str] | None = None,
        *,
        options: Sequence[str] = (),
        module: str | None = None,
    ) -> None:
        """Start it: forked, with short waits, unless a ``module`` is given."""
        self.command = command
        self.data_dir = data_dir
        data_dir.mkdir(parents=True, exist_ok=True)
        number = len(list(data_dir.glob(f"{command}-*.out")))
        self._out = data_dir / f"{command}-{number}.out"
        self._log = data_dir / f"{command}-{number}.log"
        self._out.touch()
        self._log.touch()
        environ = environment(data_dir, settings)
        self.process: ForkedProcess | subprocess.Popen[bytes]
        if module is None:
            words = (command, *options)
            self.process = ForkedProcess(run_service, words, environ, self._out, self._log)
            return
        with self._out.open("wb") as out, self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, command, *options],
                cwd=ROOT,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                process_group=0,
                preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509  # one system call
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def output(self) -> str:
        """Its standard output so far."""
        return self._out.read_text()

    def log_text(self) -> str:
        return self._log.read_text(errors="replace")

    def events(self, *names: str) -> list[dict[str, Any]]:
        """The events of these names in its log, which is also its child processes'."""
        lines = [line for line in self.log_text().splitlines() if line.startswith("{")]
        events = []
        for line in lines:
            try:
                events.append(json.loads(line))
            except ValueError:  # a line that is not written completely yet
                continue
        return [event for event in events if event["event"] in names]

    def wait_for_conf_line(self, deadline_seconds: float = 60.0) -> str:
        """The line for turnserver.conf, once ``up`` runs."""
        self.wait_for(lambda: self.output().endswith("\n"), deadline_seconds)
        return self.output().strip()

    def wait_until_capturing(self, times: int = 1) -> None:
        """Return once its collector has attached ``times`` times in all."""
        self.wait_for(lambda: len(self.events("capturing", "capturing again after a gap")) >= times)

    def wait_for(self, condition: Callable[[], object], deadline_seconds: float = 60.0) -> None:
        """Wait until the condition holds; fail with the log at the deadline, or when it exits."""

        def holds() -> bool:
            code = self.process.poll()
            assert code is None, f"{self.command} ended, code {code}:\n{self.log_text()[-3000:]}"
            return bool(condition())

        try:
            wait_until(holds, deadline_seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log_text()[-3000:]}") from error

    def child_pid(self, command: str) -> int:
        """The pid of its child process with that command, 0 without one."""
        for pid in descendants(self.pid):
            if title(pid) == f"accounting {command}":
                return pid
        return 0

    def wait_for_child(self, command: str, *, other_than: int = 0) -> int:
        """Wait for a child process with a pid other than ``other_than``; return its pid."""
        self.wait_for(lambda: self.child_pid(command) not in {0, other_than}, 30)
        return self.child_pid(command)

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout_seconds: float = 60.0) -> int:
        """Signal it and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
        wait_until(lambda: not processes_in(self.data_dir), 60, "the service left processes behind")


def run_command(
    *words: str, data_dir: Path, settings: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "accounting", *words],
        cwd=ROOT,
        env=environment(data_dir, settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def json_rows(*words: str, data_dir: Path) -> list[dict[str, Any]]:
    """The objects that a command writes with ``--json``."""
    result = run_command(*words, "--json", data_dir=data_dir)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def processes_in(data_dir: Path) -> list[int]:
    """The pids of all processes with this data directory in their environment or as their cwd."""
    name = os.fsencode(data_dir)
    pids = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            has_setting = b"ACCOUNTING_DATA_DIR=" + name + b"\0" in (entry / "environ").read_bytes()
            directory = os.fsencode((entry / "cwd").readlink())
        except OSError:  # it has ended, or is a zombie
            continue
        if has_setting or (directory + b"/").startswith(name + b"/"):
            pids.append(int(entry.name))
    return pids


def descendants(pid: int) -> list[int]:
    """The pids of all descendants of a process, now."""
    children_of: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The program's name, in parentheses, may have spaces and parentheses.
            words = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if words[0] not in "ZX":
            children_of.setdefault(int(words[1]), []).append(int(entry.name))
    pids, waiting = [], [pid]
    while waiting:
        children = children_of.get(waiting.pop(), [])
        pids += children
        waiting += children
    return pids


def send_signal(pid: int, step: signal.Signals) -> bool:
    """Send a signal; returns whether the process exists."""
    if not pid:
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, step)
        return True
    return False


@contextmanager
def all_paused(pid: int) -> Iterator[None]:
    """A process and its descendants stand still; the first is stopped first, and starts no more."""
    assert pid, "no process to pause: all are descendants of 0"
    send_signal(pid, signal.SIGSTOP)
    children = [each for each in descendants(pid) if send_signal(each, signal.SIGSTOP)]
    try:
        yield
    finally:
        for each in (*reversed(children), pid):  # it waits for those that have ended
            send_signal(each, signal.SIGCONT)


def title(pid: int) -> str:
    """What `ps` shows of a process that the fork server has started."""
    return " ".join(arguments(pid)).strip()


def arguments(pid: int) -> list[str]:
    """The arguments of a process; none when it has ended."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:
        return []
    return [os.fsdecode(word) for word in words]
