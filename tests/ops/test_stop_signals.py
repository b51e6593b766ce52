"""Stop signals: any number of them at any time ends a process once, after its drain."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from accounting.capture.clock import wall_clock
from accounting.capture.spool.file import spool_path
from accounting.capture.spool.spool import Spool
from tests.support.books import Books, channel, status_payload
from tests.support.servers import PostgresServer, ValkeyServer, wait_until
from tests.support.service import (
    ROOT,
    Service,
    all_paused,
    environment,
    processes_in,
    run_command,
    title,
)

MAX_SPACING_SECONDS = 0.002


def send_until_exit(process: "subprocess.Popen[str]", seed: int) -> int:
    """Send SIGTERM at random spacing until the process has ended; returns how many."""
    spacing, count = random.Random(seed), 0
    deadline = time.monotonic() + 60
    never = threading.Event()
    while process.poll() is None:
        assert time.monotonic() < deadline, f"the process hangs after {count} signals"
        process.send_signal(signal.SIGTERM)
        count += 1
        never.wait(spacing.uniform(0, MAX_SPACING_SECONDS))
    return count


@pytest.mark.parametrize(
    ("kind", "seed"),
    [
        ("service", 0),
        ("feed", 1),
        pytest.param("service", 2, marks=pytest.mark.long),
        pytest.param("feed", 3, marks=pytest.mark.long),
    ],
)
def test_thousands_of_signals_at_random_spacing_never_hang_a_process(kind: str, seed: int) -> None:
    rounds = 1000
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.signal_rounds", kind, str(rounds)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            assert send_until_exit(process, seed) >= rounds
        finally:
            process.kill()
    assert process.returncode == 0, f"{kind} ended with {process.returncode}"


def test_a_burst_of_signals_to_every_process_ends_in_one_drain(
    books: Books, tmp_path: Path
) -> None:
    """As systemd does by default: SIGTERM to all of the group, and the parents pass it on."""
    spacing, never = random.Random(1), threading.Event()
    with ValkeyServer() as valkey:
        settings = {
            "ACCOUNTING_DATABASE_URL": books.url("turn_accounting_writer"),
            "ACCOUNTING_REDIS_URL": valkey.url,
        }
        with Service("up", tmp_path, settings) as up:
            up.wait_until_capturing()
            pids = [up.pid, *(up.wait_for_child(name) for name in ("collect", "schedule", "load"))]
            for _ in range(300):
                for pid in pids:
                    if up.process.poll() is None:
                        send_if_running(pid)
                never.wait(spacing.uniform(0, MAX_SPACING_SECONDS))
            assert up.process.wait(60) == 0, up.log_text()
            assert not up.events("child process exited with an error"), up.log_text()
            assert processes_in(tmp_path) == []


def send_if_running(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


def test_a_second_ctrl_c_ends_a_process_at_once() -> None:
    script = """
        import signal, sys, threading
        from accounting.ops.stop_signals import stop_on_signals
        stop = stop_on_signals()
        print(flush=True)
        stop.wait()
        print(flush=True)
        threading.Event().wait()  # a drain that takes for ever
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 128 + signal.SIGINT


PARENT = """
    import threading
    from accounting.cli.run import run_process
    from accounting.ops.fork_server import fork_server
    from accounting.ops.processes import ChildProcess
    with fork_server(run_process) as starter:
        child = ChildProcess(starter, "load", stop_timeout_seconds=2)
        child.start()
        threading.Event().wait()
"""


def start_parent(data_dir: Path, database_url: str) -> "subprocess.Popen[bytes]":
    """A process whose child is a loader, and does nothing else."""
    data_dir.mkdir(exist_ok=True)
    settings = {"ACCOUNTING_DATABASE_URL": database_url}
    with (data_dir / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PARENT)],
            cwd=ROOT,
            env=environment(data_dir, settings),
            stdin=subprocess.DEVNULL,
            stderr=log,
        )


def log_of(data_dir: Path) -> str:
    return (data_dir / "log").read_text()


def test_a_loader_whose_parent_was_killed_ends(books: Books, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    parent = start_parent(data_dir, books.url("turn_accounting_writer"))
    wait_until(lambda: "accounting load" in map(title, processes_in(data_dir)))
    parent.kill()
    parent.wait()
    wait_until(lambda: not processes_in(data_dir), 30, "the orphan goes on")
    assert "the parent process has ended" in log_of(data_dir)


@pytest.mark.long
def test_an_orphan_whose_database_hangs_ends_too(tmp_path: Path) -> None:
    """The query never returns, so that the loader itself can't notice anything."""
    data_dir = tmp_path / "data"
    with PostgresServer() as server:
        settings = {"ACCOUNTING_DATABASE_URL": server.url()}
        upgraded = run_command("db", "upgrade", data_dir=tmp_path, settings=settings)
        assert upgraded.returncode == 0, upgraded.stderr
        parent = start_parent(data_dir, server.url())
        try:
            wait_until(lambda: has_client(server))
            with all_paused(server.pid):
                with Spool.open(spool_path(data_dir, "default"), "default") as spool:
                    now = wall_clock()
                    spool.append([(now, 0, channel("status"), status_payload("new"))], now)
                parent.kill()
                parent.wait()
                wait_until(lambda: not processes_in(data_dir), 30, "the orphan goes on")
        finally:
            parent.kill()
    assert "does not end in time" in log_of(data_dir)


def has_client(server: PostgresServer) -> bool:
    with psycopg.connect(server.url()) as connection:
        (count,) = connection.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        ).fetchone() or (0,)
        return bool(count)
