"""The help pages: every command, in groups, in plain words, with two examples that work."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
import typer
from typer.testing import CliRunner

from accounting.cli.admin import FRONT_JOB_NAMES, JOB_NAMES
from accounting.cli.examples import EXAMPLES
from accounting.cli.main import COMMAND_GROUPS, COMMANDS, app
from accounting.installation import version
from accounting.ops.registry import FRONT_JOBS, JOBS
from accounting.sources.rename import rename_source
from tests.support.books import WRITER, Books
from tests.support.command import turn_accounting
from tests.support.realm_rules import set_realm_rule
from tests.support.reference import command_paths
from tests.support.sample_books import open_sample_books
from tests.support.servers import PostgresServer, ValkeyServer

INTERNAL_WORDS: Final = re.compile(
    r"<|>|\b(str|int|float|bool|INTEGER|FLOAT|PATH|None)\b|_argument"
)


PATHS: Final = list(command_paths(typer.main.get_command(app), COMMANDS))


def test_every_command_has_two_examples() -> None:
    assert set(EXAMPLES) == {"", *PATHS}
    for path, examples in EXAMPLES.items():
        assert len(set(examples)) == 2
        for example in examples:
            assert f"turn-accounting {path}".rstrip() in example


def test_the_first_page_lists_every_command_in_its_group_on_one_line() -> None:
    page = turn_accounting("--help").out
    for title, group in COMMAND_GROUPS.items():
        section = page.split(f"\n{title}:\n")[1].split("\n\n")[0]
        assert section.splitlines() == [
            f"  {name:<10}  {entry.summary}" for name, entry in group.items()
        ]
    assert all(len(line) <= 80 for line in page.splitlines())
    assert "turn-accounting demo" not in page
    assert len(COMMANDS) == sum(map(len, COMMAND_GROUPS.values()))


@pytest.mark.parametrize("path", ["", "realm", *PATHS])
def test_a_page_has_plain_words_and_its_examples(path: str) -> None:
    runner = CliRunner()
    page = runner.invoke(app, [*path.split(), "--help"], prog_name="turn-accounting").output
    assert runner.invoke(app, [*path.split(), "-h"], prog_name="turn-accounting").output == page
    body, _, examples = page.partition("\nExamples:\n")
    words = re.sub(r"(?s)`.*?`", "", body)
    assert not INTERNAL_WORDS.search(words.replace("bash", "")), INTERNAL_WORDS.search(words)
    assert all(len(line) <= 80 for line in body.splitlines())
    for example in EXAMPLES.get(path, ()):
        assert f"  {example}\n" in examples


HELP_PAGES: Final = """
import json, sys
from typer.testing import CliRunner
import accounting.__main__
from accounting.cli.main import app
for path in json.loads(sys.argv[1]):
    assert CliRunner().invoke(app, [*path.split(), "-h"]).exit_code == 0
print(*{name.partition(".")[0] for name in sys.modules})
"""
WORKING_LIBRARIES: Final = {"alembic", "apscheduler", "psycopg", "redis", "sqlalchemy", "structlog"}


def test_a_page_waits_for_nothing_that_only_its_command_needs() -> None:
    """Importing these libraries takes longer than all else of a help page."""
    done = subprocess.run(
        [sys.executable, "-c", HELP_PAGES, json.dumps(PATHS)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not WORKING_LIBRARIES & set(done.stdout.split())


def test_the_help_names_every_job() -> None:
    assert tuple(JOBS) == JOB_NAMES
    assert tuple(FRONT_JOBS) == FRONT_JOB_NAMES


def test_version() -> None:
    result = turn_accounting("--version")
    assert (result.code, result.err) == (0, "")
    assert result.out == f"turn-accounting {version()}\n"


SERVICES: Final = {"up", "collect", "schedule", "serve", "demo"}
"""They run until they are stopped: test_service_examples.py."""
EXIT_CODES: Final = {
    "period close": 3, "doctor": 1, "reconcile": 1, "simulate --history": 2, "webhook test": 1,
    "front": 2,
}  # fmt: skip
"""November is not over, no collector runs in this test, the logs are of other books, these are
not empty and no front, and nothing is at the addresses of webhooks."""
GO_ON: Final = {"export usage", "webhook add"}
"""Other commands' first examples go on with what the second example of these has made."""
RECORDINGS: Final = Path(__file__).parents[1] / "data" / "recordings"


@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.long)])
def test_the_examples_work(
    postgres_server: PostgresServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    """Each is run as it stands, in the order of the help, on books that have what it names.

    ``number``: how many of each command.
    """
    monkeypatch.chdir(tmp_path)
    for day, recording in ((3, "unauthenticated"), (4, "usernames")):
        shutil.copy(RECORDINGS / f"{recording}-4.17.1.log", f"turn_2026-11-0{day}.log")
    Path("lago.key").write_text("key")
    Path("customers.csv").write_text("realm,user,customer\nexample.org,alice,cus_1\n")
    with ValkeyServer() as valkey, open_sample_books(postgres_server, tmp_path / "books") as books:
        rename_source(books.engine, "second", "berlin")
        for realm in ("exmaple.org", "my test"):  # to be removed
            set_realm_rule(books, realm, anchor_day=15)
        Path("front-url").write_text(postgres_server.url(database=books.name))
        Path("secret").write_text("secret")
        Path("database-url").write_text(postgres_server.url(database=books.name))
        for path, examples in EXAMPLES.items():
            if path.split(" ")[0] not in SERVICES:
                for example in examples[: 2 if path in GO_ON else number]:
                    run_example(example, books, valkey)


def run_example(example: str, books: Books, valkey: ValkeyServer) -> None:
    words = shlex.split(example)
    settings = {
        "database_url": books.url(WRITER),
        "redis_url": valkey.url,
        "data_dir": str(Path.cwd() / "data"),
        "log_level": "error",
    }
    while "=" in words[0]:
        name, value = words.pop(0).split("=", 1)
        settings[name.removeprefix("ACCOUNTING_").lower()] = value
    if "database_url_file" in settings:
        del settings["database_url"]
    elif words[1] in {"db", "front"}:
        settings["database_url"] = books.url()
    arguments = [
        path
        for word in words[1:]
        for path in (sorted(map(str, Path().glob(word))) if "*" in word else [word])
    ]
    result = turn_accounting(*arguments, **settings)
    codes = [code for path, code in EXIT_CODES.items() if f"turn-accounting {path}" in example]
    assert result.code == (codes or [0])[0], (example, result.out[-500:], result.err)
    assert not set(example) & set("|;&<>$`"), example
