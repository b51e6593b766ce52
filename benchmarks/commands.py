"""CPU time of the commands that a person waits for: the help, and lists of many hostile names.

A list is read from its database as the reader, into a pipe or onto a terminal of 80 columns. The
time is that of the command; the server's is not in it.
"""

import fcntl
import os
import pty
import resource
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from contextlib import suppress
from typing import Final

import psycopg

from accounting.ops.servers import READER_ROLE
from benchmarks.export import FILL
from benchmarks.figures import Figure, Rounds
from benchmarks.fixture import benchmark_database
from benchmarks.scale import Scale
from tests.support.command import environment
from tests.support.servers import PostgresServer
from tests.support.service import ROOT

MAX_HELP_SECONDS: Final = 0.25
MAX_READ_SECONDS: Final = 0.4
MAX_LIST_SECONDS: Final = 1.0
HOSTILE: Final = """
UPDATE accounting.users SET user_id = CASE substr(user_id, 5)::int % 5
    WHEN 0 THEN E'\\x1b[31m' || repeat('\u754c', 9) WHEN 1 THEN repeat('\u05e9', 12) || E'\\u202e'
    WHEN 2 THEN repeat(E'Z\\u0310', 14) WHEN 3 THEN repeat('\U0001f98a', 5) || E'\\n\\t'
    ELSE repeat('x', 60) END || user_id
"""
"""Control characters, wide and combining ones, right-to-left ones, and long names."""


def run(server: PostgresServer, scale: Scale) -> list[Figure]:
    rounds = Rounds("commands")
    with benchmark_database(server) as bed:
        with psycopg.connect(server.url(database=bed.name), autocommit=True) as connection:
            connection.execute(FILL.format(rows=scale.listed_users))
            connection.execute(HOSTILE)
        url = server.url(READER_ROLE, database=bed.name)
        names = f"{scale.listed_users:,} hostile names"
        day = ("usage", "--per", "day")
        for _ in range(scale.rounds):
            for name, arguments, target in (
                ("--help", ("--help",), MAX_HELP_SECONDS),
                ("usage -h", ("usage", "-h"), MAX_HELP_SECONDS),
                ("source list", ("source", "list"), MAX_READ_SECONDS),
                ("top --once, no session", ("top", "--once"), MAX_READ_SECONDS),
                ("usage --top 10", (*day, "--top", "10"), MAX_READ_SECONDS),
                (f"usage, {names}", day, MAX_LIST_SECONDS),
            ):
                for place, is_terminal in (("pipe", False), ("terminal", True)):
                    seconds = cpu_of_command(*arguments, url=url, is_terminal=is_terminal)
                    rounds.add(f"CPU, {name}, {place}", seconds, "s", target=target)
    return rounds.figures()


def cpu_of_command(*arguments: str, url: str, is_terminal: bool) -> float:
    """Run ``turn-accounting`` to its end; return the CPU seconds that it used."""
    output, shown = pty.openpty() if is_terminal else os.pipe()
    if is_terminal:
        fcntl.ioctl(shown, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    reader = threading.Thread(target=_drain, args=(output,))
    reader.start()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as data_dir:
        subprocess.run(
            [sys.executable, "-m", "accounting", *arguments],
            cwd=ROOT,
            env=environment({"database_url": url, "data_dir": data_dir}),
            stdout=shown,
            check=True,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    os.close(shown)
    reader.join()
    os.close(output)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _drain(descriptor: int) -> None:
    with suppress(OSError):  # EIO: the terminal is closed
        while os.read(descriptor, 65536):
            pass
