"""The fork server: it starts the processes, and they end with the one that ordered them."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.books import Books
from tests.support.servers import ValkeyServer, wait_until
from tests.support.service import (
    ROOT,
    SHORT_SERVICE,
    Service,
    arguments,
    descendants,
    processes_in,
    title,
)

PROGRAM = """
    import os, signal, threading
    from accounting.ops.fork_server import fork_server

    def run(command, starter):
        if command == "exit":
            raise SystemExit(int(os.environ["CODE"]))
        if command == "title":
            print(open("/proc/self/cmdline").read().replace(chr(0), " ").strip(), flush=True)
        if command == "nested":
            print(starter.wait(starter.start("exit", {"CODE": "5"}, 1)), flush=True)
        if command == "sleep":
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            threading.Event().wait()

    with fork_server(run) as starter:
"""


def output_of(body: str) -> list[str]:
    """The lines that a program with a fork server prints; it must end with 0."""
    program = textwrap.dedent(PROGRAM) + textwrap.indent(textwrap.dedent(body), "    ")
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_exit_codes_come_back_also_from_a_process_of_a_process() -> None:
    assert output_of(
        """
        print(starter.wait(starter.start("exit", {"CODE": "3"}, 1)), flush=True)
        print(starter.wait(starter.start("title", {}, 1)), flush=True)
        print(starter.wait(starter.start("nested", {}, 1)), flush=True)
        """
    ) == ["3", "accounting title", "0", "5", "0"]


def test_a_process_that_was_killed_says_by_which_signal() -> None:
    assert output_of(
        """
        pid = starter.start("sleep", {}, 1)
        print(starter.wait(pid, 0))
        starter.send_signal(pid, signal.SIGTERM)
        print(starter.wait(pid))
        starter.send_signal(pid, signal.SIGTERM)  # the pid may be another process's by now
        """
    ) == ["None", str(-signal.SIGTERM)]


def test_a_process_with_threads_does_not_fork() -> None:
    program = """
        import threading
        from accounting.ops.fork_server import fork_server
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        with fork_server(print):
            pass
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "a process with threads must not fork" in result.stderr


@contextmanager
def running_up(books: Books, data_dir: Path) -> Iterator[Service]:
    with ValkeyServer() as valkey:
        settings = {
            "ACCOUNTING_DATABASE_URL": books.url("turn_accounting_writer"),
            "ACCOUNTING_REDIS_URL": valkey.url,
        }
        with Service("up", data_dir, settings, module=SHORT_SERVICE) as up:
            up.wait_until_capturing()
            for command in ("collect", "schedule", "load"):
                up.wait_for_child(command)
            yield up


def test_everything_ends_with_the_fork_server(books: Books, tmp_path: Path) -> None:
    """All drain: `up` fails, so that what runs it starts it again."""
    with running_up(books, tmp_path) as up:
        os.kill(up.child_pid("fork-server"), signal.SIGKILL)
        assert up.process.wait(60) == 1, up.log_text()
        wait_until(lambda: not processes_in(tmp_path), 60, "orphans go on")
        assert up.events("capture stopped")
        assert "the process that starts the others has ended" in up.log_text()


def test_everything_ends_with_up_and_processes_are_told_apart(books: Books, tmp_path: Path) -> None:
    with running_up(books, tmp_path) as up:
        titles = {title(pid) for pid in descendants(up.pid)}
        names = ("collect", "fork-server", "load", "schedule")
        assert titles >= {f"accounting {name}" for name in names}
        assert arguments(up.pid)[-1] == "up"
        up.stop(signal.SIGKILL)
        wait_until(lambda: not processes_in(tmp_path), 60, "orphans go on")
        assert up.events("capture stopped")
