"""A server as a child process: started, watched and stopped so that none is ever left behind.

Owns the rules that both servers share: whose user they run as, what they may see of our
environment, one owner for a directory, how they end. Must know nothing of either server.
"""

import ctypes
import errno
import fcntl
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final, NamedTuple

import structlog

from accounting.errors import ServerError
from accounting.waiting import wait_until

PR_SET_PDEATHSIG: Final = 1  # <linux/prctl.h>
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

log = structlog.get_logger()

LOG_TAIL_LINES: Final = 15
# The servers see nothing of our environment: it may hold passwords, and PG* variables would steer
# the clients among their programs.
ENVIRONMENT: Final[Mapping[str, str]] = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


class Account:
    """The operating system's user that a server runs as: `postgres` or `nobody` when we are root.

    Postgres refuses to run as root, and a Valkey that anybody on this machine can reach must not.
    """

    def __init__(self, name: str, uid: int, gid: int) -> None:
        self.name, self.uid, self.gid = name, uid, gid

    @classmethod
    def for_servers(cls) -> "Account | None":
        """None when this process isn't root: then servers run as its own user."""
        if os.geteuid() != 0:
            return None
        for name in ("postgres", "nobody"):
            try:
                entry = pwd.getpwnam(name)
            except KeyError:
                continue
            return cls(name, entry.pw_uid, entry.pw_gid)
        raise ServerError(
            "the embedded servers can't run as root, and there is neither a user 'postgres' nor "
            "'nobody' to run them: create one of them, or run as an ordinary user"
        )

    def chown(self, path: Path) -> None:
        """Give a file or directory to this user."""
        os.chown(path, self.uid, self.gid)

    def allow_traversal_to(self, *paths: Path) -> None:
        """Let this user search (not list) the directories above `paths`; says so in the log."""
        above = dict.fromkeys(parent for path in paths for parent in reversed(path.parents))
        opened = []
        for directory in above:
            status = directory.stat()
            if status.st_uid == self.uid:
                needed = 0o100
            elif status.st_gid == self.gid:
                needed = 0o010
            else:
                needed = 0o001
            if not status.st_mode & needed:
                directory.chmod(status.st_mode & 0o7777 | needed)
                opened.append(str(directory))
        if opened:
            log.warning(
                "directories opened for search, so that the embedded servers reach their files",
                user=self.name,
                directories=opened,
            )


class Identity(NamedTuple):
    """The arguments of `subprocess` that make a program run as an account (None: as we do)."""

    user: int | None
    group: int | None
    extra_groups: list[int] | None

    @classmethod
    def of(cls, account: Account | None) -> "Identity":
        return cls(None, None, None) if account is None else cls(account.uid, account.gid, [])


def spawn(
    command: Sequence[str | Path],
    *,
    account: Account | None,
    output: IO[bytes],
    death_signal: signal.Signals,
) -> subprocess.Popen[bytes]:
    """Start a server in a process group of its own, so that Ctrl-C reaches us and not it.

    On Linux the kernel sends it `end_with_us` when the thread that called this ends, however it
    ends: call it from a thread that lives as long as the server should (the main thread).
    """
    who = Identity.of(account)
    return subprocess.Popen(
        [os.fspath(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=dict(ENVIRONMENT),
        process_group=0,
        preexec_fn=die_with_parent(death_signal),  # noqa: PLW1509  # one system call, no lock
        user=who.user,
        group=who.group,
        extra_groups=who.extra_groups,
    )


def stop_process(
    name: str,
    is_alive: Callable[[], bool],
    kill: Callable[[signal.Signals], None],
    steps: Sequence[tuple[signal.Signals, float]],
) -> None:
    """Stop a server with ever less patience: each step is a signal and the seconds to wait then.

    The last step's wait ends in ServerError.
    """
    for number, (step, patience) in enumerate(steps):
        if number:
            log.warning("server is slow to stop", server=name, signal=step.name)
        kill(step)
        if wait_until(lambda: not is_alive(), patience):
            return
    raise ServerError(f"the embedded {name} does not stop, even when killed")


def send_signal(pid: int, step: signal.Signals) -> None:
    """Signal a process that may be gone by now."""
    with suppress(ProcessLookupError):
        os.kill(pid, step)


def runs_in(pid: int, directory: Path) -> bool:
    """Whether that process lives and works in this directory (both servers change into theirs).

    A pid file outlives its process, and the number may be somebody else's by now: where this
    can't be told, the answer is no.
    """
    if pid <= 0:
        return False
    link = Path(f"/proc/{pid}/cwd")
    if Path("/proc/self/cwd").exists():
        try:
            return link.readlink() == directory and not _is_zombie(pid)
        except OSError:
            return False
    listing = subprocess.run(
        ["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return str(directory) in listing.stdout


def _is_zombie(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return status.rpartition(")")[2].split()[0] in "ZX"


@contextmanager
def os_errors_as_server_error(doing: str) -> Iterator[None]:
    """Turn the operating system's refusals (no space, no permission) into ServerError."""
    try:
        yield
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        raise ServerError(f"can't {doing}:{where} {error.strerror or error}") from error


def make_server_directory(home: Path) -> None:
    """Make a server's directory, and the data directory above it, readable by nobody else."""
    home.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    home.mkdir(exist_ok=True, mode=0o700)


def open_log(path: Path) -> IO[bytes]:
    """A fresh log for a server; the one before is kept as `<name>.1`."""
    if path.exists():
        path.replace(path.with_name(path.name + ".1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    return os.fdopen(descriptor, "ab", buffering=0)


def log_tail(path: Path) -> str:
    """The last lines of a server's log, to be told with an error."""
    try:
        lines = path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    except OSError:
        return "(no log)"
    return "\n".join(lines) or "(its log is empty)"


class OwnerLock:
    """The lock on a server's directory: whoever holds it may start, stop and repair that server.

    It goes with the process that holds it, so a kill leaves nothing to clean up.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def owner_pid(self) -> int | None:
        """The pid of the process that holds the lock now, or None (0 when it wrote none yet)."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
                raise
            return int(os.read(descriptor, 32) or b"0")
        finally:
            os.close(descriptor)
        return None

    @contextmanager
    def hold(
        self, name: str, timeout_seconds: float, cancelled: Callable[[], bool]
    ) -> Iterator[None]:
        """Hold the lock; ServerError names the owner when it isn't free after so many seconds.

        Or when ``give_up()`` becomes true before.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not self._try_lock(descriptor):
                log.info("waiting for the embedded server's owner to end", server=name)
                wait_until(lambda: cancelled() or self._try_lock(descriptor), timeout_seconds)
                if not self._try_lock(descriptor):
                    owner = int(os.read(descriptor, 32) or b"0")
                    raise ServerError(
                        f"the embedded {name} in {self.path.parent} is run by process {owner}: "
                        "stop that one first, or use another data directory"
                    )
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def _try_lock(self, descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
                raise
            return False
        return True


def die_with_parent(death_signal: signal.Signals) -> Callable[[], None]:
    """What a child runs before its program: the kernel sends it ``ending`` when its parent ends.

    However the parent ends, on Linux; elsewhere nothing is tied. The parent is the *thread* that
    starts the child: start it from one that lives as long as the child should. A change of user
    clears the setting, so it must run after that, as :mod:`subprocess` does.
    """
    parent = os.getpid()

    def tie() -> None:
        if _libc is not None:
            _libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
            if os.getppid() != parent:  # the parent ended before the setting held
                os._exit(1)

    return tie
