"""docs/billing.md: the walk from an empty machine to an invoice, command by command."""

import os
import re
import shlex
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from string import Template
from typing import Final

import pytest

from tests.support.books import WRITER, Books
from tests.support.command import environment, turn_accounting

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = (ROOT / "docs/billing.md").read_text()
BLOCKS: Final = dict(
    re.findall(r"^<!-- walk: (\w+) -->\n```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
)
SHELL_SYNTAX: Final = re.compile(r"[|>&]|=\$\(")


class Walk:
    """Runs the lines of the page in order, in one directory. Variables are kept, as in a shell."""

    def __init__(self, books: Books, directory: Path) -> None:
        self._settings = {"database_url": books.url(WRITER), "log_level": "error"}
        self._variables = dict[str, str]()
        self._directory = directory

    def run_block(self, name: str) -> list[str]:
        """Run the lines of a block; returns what each prints."""
        return [self._run(line) for line in BLOCKS[name].splitlines()]

    def _run(self, line: str) -> str:
        if assigned := re.match(r"(\w+)=\$\(", line):
            name = assigned[1]
            self._variables[name] = self._shell(f'{line}\nprintf %s "${name}"')
            return self._variables[name]
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

    def _shell(self, script: str) -> str:
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self._directory,
            env={**environment(self._settings), **self._variables, "PATH": programs},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, (script, done.stderr)
        return done.stdout


def test_the_walk_goes_from_an_empty_machine_to_an_invoice(
    books: Books, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    books.set_database_clock(datetime(2026, 11, 20, 12, tzinfo=UTC))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    walk = Walk(books, tmp_path)
    # The test's installation and database stand for these.
    *installing, upgrade = BLOCKS["install"].splitlines()
    assert [line.split()[0] for line in installing] == ["pip", "createdb", "export"]
    assert upgrade == "turn-accounting db upgrade"
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
