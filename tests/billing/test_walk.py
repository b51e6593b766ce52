"""docs/billing.md: the walk from an empty machine to an invoice, command by command."""

import json
import os
import re
import shlex
import socket
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from string import Template
from typing import Final

import pytest

from tests.support.books import Books, install_settable_clock
from tests.support.command import environment, turn_accounting
from tests.support.page_commands import ROOT, command_blocks
from tests.support.postgres_programs import programs_directory
from tests.support.servers import ADDRESS, PostgresServer, free_port, wait_until

DATABASE: Final = "practice"
BLOCKS: Final = command_blocks("docs/billing.md")
NOW: Final = datetime(2026, 11, 20, 12, tzinfo=UTC)
SHELL_SYNTAX: Final = re.compile(r"[|>&]|=\$\(")


class Walk:
    """Runs the lines of the page in order, in one directory. Variables are kept, as in a shell."""

    def __init__(self, server: PostgresServer, directory: Path) -> None:
        self._settings = {"log_level": "error"}
        self._variables = dict[str, str]()
        self._directory = directory
        self._port = str(free_port())
        programs = [Path(sys.executable).parent, programs_directory(), os.environ["PATH"]]
        self._programs = os.pathsep.join(map(str, programs))
        self._background = list[subprocess.Popen[bytes]]()
        _, *commands = BLOCKS["install"].splitlines()  # this environment is what pip would install
        for command in commands:
            self._run(command)
        install_settable_clock(server, DATABASE)
        self.books = Books(server, DATABASE, directory)

    def run_block(self, name: str) -> list[str]:
        """Run the lines of a block; returns what each prints.

        The books are in the middle of a month, so that it has usage; but a receiver compares the
        time of a signature with its own clock. The port of the page may be taken here.
        """
        printed = list[str]()
        for line in BLOCKS[name].splitlines():
            if "webhook" in line:
                self.books.set_database_clock(ahead=timedelta())
            else:
                self.books.set_database_clock(NOW)
            printed.append(self._run(line.replace("9080", self._port)))
        return printed

    def stop(self) -> None:
        """End what runs in the background, and drop the database."""
        for process in self._background:
            process.kill()
            process.wait()
        self.books.close()
        self._shell(f"dropdb {DATABASE}")

    def _run(self, line: str) -> str:
        if assigned := re.match(r"(\w+)=\$\(", line):
            name = assigned[1]
            self._variables[name] = self._shell(f'{line}\nprintf %s "${name}"')
            return self._variables[name]
        if exported := re.fullmatch(r"export ACCOUNTING_(\w+)=(\S+)", line):
            self._settings[exported[1].lower()] = exported[2]
            return ""
        if line.endswith(" &"):
            self._start(line.removesuffix(" &"))
            return ""
        if not line.startswith("turn-accounting ") or SHELL_SYNTAX.search(line):
            return self._shell(line)
        # A forked process takes a tenth of the time of a started one.
        words = shlex.split(Template(line).substitute(self._variables))[1:]
        arguments = [
            argument
            for word in words
            for argument in (sorted(map(str, Path().glob(word))) if "*" in word else [word])
        ]
        result = turn_accounting(*arguments, **self._settings)
        assert result.code == 0, (line, result)
        return result.out

    def _start(self, line: str) -> None:
        """Start a line in the background, and wait for its port."""
        self._background.append(
            subprocess.Popen(shlex.split(line), cwd=self._directory, env=self._environment())
        )
        wait_until(self._is_listening, message=line)

    def _is_listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((ADDRESS, int(self._port))) == 0

    def _shell(self, script: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self._directory,
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, (script, done.stderr)
        return done.stdout

    def _environment(self) -> dict[str, str]:
        return {**environment(self._settings), **self._variables, "PATH": self._programs}


@pytest.fixture
def walk(
    postgres_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Walk]:
    monkeypatch.chdir(tmp_path)
    for name, value in postgres_server.login().items():
        monkeypatch.setenv(name, value)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    walk = Walk(postgres_server, tmp_path)
    yield walk
    walk.stop()


def test_the_walk_goes_from_an_empty_machine_to_an_invoice_an_alert_and_a_meter(walk: Walk) -> None:
    books = walk.books
    _, listed, month, statement = walk.run_block("books")
    assert month == "2026-10-01"
    assert re.findall("closed|open", listed) == ["closed", "closed", "open"]
    assert "late usage" in statement
    _, _, invoice, _, corrected = walk.run_block("invoice")
    assert "total EUR" in invoice
    assert "a test call" in corrected
    statements = books.rows("statements")
    assert len(list(Path("invoices").glob("0*.html"))) == len(statements) == 4
    with closing(sqlite3.connect("invoices/books.sqlite3")) as invoices:
        [(invoiced,)] = invoices.execute("SELECT sum(bytes) FROM lines").fetchall()
    assert invoiced == sum(line["received_bytes"] + line["sent_bytes"] for line in statements)
    walk.run_block("files")
    assert len(list(Path("exports").iterdir())) == 4
    follow_the_alert(walk)
    follow_the_meter(walk)


def follow_the_alert(walk: Walk) -> None:
    *_, shown = walk.run_block("alert")
    reached = [json.loads(line)["data"] for line in shown.splitlines()]
    assert {event["threshold"] for event in reached} == {80, 100}
    assert all(event["usage"] >= 40_000_000 for event in reached)


def follow_the_meter(walk: Walk) -> None:
    books = walk.books
    *_, count, listed = walk.run_block("meter")
    with Path("received.jsonl").open() as lines:
        events = [json.loads(line) for line in lines if "transaction_id" in line]
    assert int(count) == len(events) == len({event["transaction_id"] for event in events})
    assert "failing" not in listed
    [period] = [row for row in books.rows("periods") if row["state"] == "closed"]
    sums = Counter[str]()
    for event in events:
        at = datetime.fromtimestamp(float(event["timestamp"]), UTC)
        if period["starts_at"] <= at < period["ends_at"]:
            sums[event["external_subscription_id"]] += int(event["properties"]["bytes"])
    assert sums == {
        line["user_id"]: line["received_bytes"] + line["sent_bytes"]
        for line in books.rows("statements")
    }
    adjusted = [event for event in events if event["properties"]["kind"] == "adjustment"]
    assert sum(int(event["properties"]["bytes"]) for event in adjusted) == sum(
        row["received_bytes"] + row["sent_bytes"] for row in books.rows("adjustments")
    )
