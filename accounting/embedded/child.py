"""A server as a child process: started, observed and stopped, and never left behind."""

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

import structlog

from accounting.embedded.server_user import THIS_USER, ServerUser
from accounting.errors import ServerError
from accounting.waiting import wait_until

PR_SET_PDEATHSIG: Final = 1  # <linux/prctl.h>
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

log = structlog.get_logger()

LOG_TAIL_LINES: Final = 15
MAX_LOG_BYTES: Final = 16 << 20
LOG_CHECK_SECONDS: Final = 60.0
ENVIRONMENT: Final[Mapping[str, str]] = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
"""The servers inherit nothing else: passwords, and PG* variables that their tools would read."""


def spawn(
    command: Sequence[str | Path],
    *,
    output: IO[bytes],
    death_signal: signal.Signals,
    user: ServerUser = THIS_USER,
    configuration: str = "",
) -> subprocess.Popen[bytes]:
    """Start a server in a process group of its own, so that Ctrl-C doesn't reach it.

    ``configuration`` is its standard input: secrets go there, since everyone on the machine can
    read the arguments of a process.

    On Linux the kernel sends it ``death_signal`` when the thread that called this ends, however it
    ends: call it from a thread that lives as long as the server should (the main thread).
    """
    process = subprocess.Popen(
        [os.fspath(word) for word in command],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=dict(ENVIRONMENT),
        process_group=0,
        preexec_fn=die_with_parent(death_signal),  # noqa: PLW1509  # one system call, no lock
        user=user.uid,
        group=user.gid,
        extra_groups=user.extra_groups,
    )
    assert process.stdin is not None  # it is a pipe
    with suppress(BrokenPipeError), process.stdin as standard_input:  # a server that ended at once
        standard_input.write(configuration.encode())
    return process


def die_with_parent(death_signal: signal.Signals) -> Callable[[], None]:
    """The function that a child runs before its program; does nothing except on Linux.

    It makes the kernel send the child ``death_signal`` when its parent ends, however it ends. The
    parent is the *thread* that starts the child. A change of user clears the setting, so it must be
    made after that, as :mod:`subprocess` does.
    """
    parent_pid = os.getpid()

    def set_death_signal() -> None:
        if _libc is not None:
            _libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
            if os.getppid() != parent_pid:  # the parent ended before the call
                os._exit(1)

    return set_death_signal


def stop_server(
    name: str,
    is_running: Callable[[], bool],
    send_signal: Callable[[signal.Signals], None],
    steps: Sequence[tuple[signal.Signals, float]],
) -> None:
    """Send each step's signal in turn, and wait its seconds, until the server has stopped.

    Raises ServerError when it still runs after the last step.
    """
    for number, (step_signal, timeout_seconds) in enumerate(steps):
        if number:
            log.warning("server is slow to stop", server=name, signal=step_signal.name)
        send_signal(step_signal)
        if wait_until(lambda: not is_running(), timeout_seconds):
            return
    raise ServerError(f"the embedded {name} does not stop, even when killed")


def send_signal(pid: int, number: signal.Signals) -> None:
    """Signal a process, unless it has ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def runs_in(pid: int, directory: Path) -> bool:
    """Whether that process runs in this directory: both servers change into theirs.

    A pid file outlives its process, and another process may have the pid by now. False also where
    the system doesn't show the directory of that process.
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


def has_ended(pid: int) -> bool:
    """Whether a process has ended, also of another user: some systems hide the rest of it."""
    if Path("/proc/self/stat").exists():
        return _is_zombie(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _is_zombie(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return status.rpartition(")")[2].split()[0] in "ZX"


_WRONG_DIRECTORY: Final = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
}


@contextmanager
def os_errors_as_server_error(action: str) -> Iterator[None]:
    """Turn an OSError (no space, no permission) into ServerError."""
    try:
        yield
    except OSError as error:
        where = f" {error.filename}:" if error.filename else ""
        remedy = (
            ": set ACCOUNTING_DATA_DIR, or run this as the user of the service"
            if error.errno in _WRONG_DIRECTORY
            else ""
        )
        raise ServerError(f"can't {action}:{where} {error.strerror or error}{remedy}") from error


def make_server_directory(home: Path, user: ServerUser, binary: Path) -> None:
    """Make a server's directory, and the data directory above it, private to their users.

    Lets ``user`` reach its directory and the server's binary.
    """
    home.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    home.mkdir(exist_ok=True, mode=0o700)
    user.chown(home)
    user.allow_traversal_to(home, binary)


def open_log(path: Path) -> IO[bytes]:
    """A new log for a server; the previous one is kept as ``<name>.1``."""
    if path.exists():
        path.replace(path.with_name(path.name + ".1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    return os.fdopen(descriptor, "ab", buffering=0)


@contextmanager
def bounded_log(path: Path, max_bytes: int = MAX_LOG_BYTES) -> Iterator[None]:
    """Keep the log of a running server below ``max_bytes``, with the part before as ``<name>.1``.

    The server goes on appending to the emptied file; lines that it writes in between may be lost.
    """
    ended = threading.Event()

    def check() -> None:
        while not ended.wait(LOG_CHECK_SECONDS):
            limit_log(path, max_bytes)

    thread = threading.Thread(target=check, name=f"log of {path.parent.name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def limit_log(path: Path, max_bytes: int) -> None:
    """Move a log that is longer aside, by copying it: the server has the file open."""
    # No links: the directory belongs to the user of the server, this process may be root.
    with (
        suppress(OSError),  # a full disk, for example; the next check tries again
        os.fdopen(os.open(path, os.O_RDWR | os.O_NOFOLLOW), "r+b") as source,
    ):
        if os.fstat(source.fileno()).st_size <= max_bytes:
            return
        former = path.with_name(path.name + ".1")
        former.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(former, flags, 0o600), "wb") as copy:
            shutil.copyfileobj(source, copy)
        source.truncate(0)


def log_tail(path: Path) -> str:
    """The last lines of a server's log, for error messages."""
    try:
        lines = path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    except OSError:
        return "(no log)"
    return "\n".join(lines) or "(its log is empty)"
