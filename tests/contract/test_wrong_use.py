"""Wrong usage and errors: one line that says what is wrong and what to do, and an exit code."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.support.books import READER, WRITER, Books
from tests.support.command import environment, turn_accounting
from tests.support.servers import free_port


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("bogus", "No such command 'bogus': see `turn-accounting --help`"),
        ("version", "version is an option: `turn-accounting --version`"),
        ("completion zsh", "completion is an option: `turn-accounting --completion bash`"),
        ("sessions --bogus", "No such option: --bogus"),
        ("job run", "Missing argument 'NAME': see `turn-accounting job run --help`"),
        ("top --by realm", "--by 'realm': expected user or session"),
        ("top --sort bytes", "--sort 'bytes': expected one of rate, minutes, active, name with"),
        ("top --every 0", "--every '0': expected 0.5 or more"),
        ("sessions --limit 0", "--limit '0': expected 1 or more"),
        ("sessions --limit=many", "--limit 'many': expected an integer"),
        ("sessions --limit 99999999999999999999",
         "--limit '99999999999999999999': expected 2147483647 or less"),
        ("sessions --since tomorrow", "--since 'tomorrow': expected today, yesterday"),
        ("sessions --until 2026-13-01", "--until '2026-13-01': expected today, yesterday"),
        ("sessions --since 2026-11-02 --until 2026-11-02",
         "--since 2026-11-02 is not before --until 2026-11-02"),
        ("sessions --realm exampel.org",
         "no realm 'exampel.org' is known: did you mean 'example.org'?"),
        ("usage --realm nowhere",
         "no realm 'nowhere' is known: known are 'example.net', 'example.org'"),
        ("realm list nowhere", "no realm 'nowhere' is known"),
        ("usage --top 3 --limit 3", "--top goes without --limit: it is one"),
        ("usage --json --csv", "--json goes without --csv"),
        ("usage --sort bytes", "--sort 'bytes': expected one of month, realm, user, sessions,"),
        ("usage --by month", "--by 'month': expected user, realm, server or transport"),
        ("usage --per week", "--per 'week': expected hour, day or month"),
        ("usage --by realm --user alice", "--user goes with --by user"),
        ("export usage -o usage.csv",
         "--output 'usage.csv': expected a directory, for the file and its manifest, or leave"),
        ("export sessions --format jsonl -o /dev/null/x.jsonl",
         "--output '/dev/null/x.jsonl': expected a directory"),
        ("export usage -o /dev/null", "--output '/dev/null': expected a directory, for the file"),
        ("statement example.org", "Missing argument 'PERIOD': see `turn-accounting statement"),
        ("statement", "Missing argument 'REALM': see `turn-accounting statement --help`"),
        ("statement example.org 2026-13", "'2026-13' is not a period: expected its first day, YY"),
        ("usage --realm EXAMPLE.ORG",
         "no realm 'EXAMPLE.ORG' is known: did you mean 'example.org'?"),
        ("usage --user Alice", "no user 'Alice' is known: did you mean 'alice'?"),
        ("usage --since 99999999999d", "--since '99999999999d' is out of range: at most 69993d"),
        ("gaps --until 99999999999m", "--until '99999999999m' is out of range: at most 69993d"),
        ("job run nothing", "no job 'nothing': expected one of settle, rollup, partitions"),
        ("source retire nowhere", "no source 'nowhere' is known: known are 'default', 'second'"),
        ("realm set r", "nothing to set: name at least one rule"),
        ("realm set r --time-zone Europe/Berlim", "time zone 'Europe/Berlim' is not in tzdata 2"),
        ("realm set r --time-zone ../UTC", "time zone '../UTC' is not in tzdata 2"),
        ("realm set r --time-zone localtime", "time zone 'localtime' is not in"),
        ("realm set r --time-zone Factory", "time zone 'Factory' is not in"),
        ("realm set r --time-zone CET", "time zone 'CET' differs between tzdata 2"),
        ("realm set r --grace 1 --from 1.12.2026", "--from '1.12.2026': expected a day, YYYY"),
        ("realm set r --grace 1 --from 0001-01-01", "--from '0001-01-01': expected a day since"),
        ("realm set r --grace 99999999999", "--grace '99999999999': expected 2147483647 or less"),
        ("realm set r --anchor-day 32", "--anchor-day '32': expected 31 or less"),
        ("realm set r --username-rule best", "--username-rule 'best': expected auto, rest or"),
        ("realm set r --client-addresses some", "--client-addresses 'some': expected keep, netw"),
        ("realm set r --client-addresses keep --from 2026-12-01", "--from: --client-addresses and"),
        ("erase example.org", "whose names? expected REALM USER, or REALM --client-addresses"),
        ("erase example.org alice --client-addresses", "--client-addresses is of all clients"),
        ("erase example.org --client-addresses", "realm 'example.org' keeps the addresses of"),
        ("erase nowhere --client-addresses", "no realm 'nowhere' is known: known are"),
        ("realm set r --radacct-username user", "no realm 'r' is known"),
        ("realm set r --radacct-username user --from 2026-12-01", "--from: --client-addresses and"),
        ("realm set r --radacct-username name", "--radacct-username 'name': expected user or us"),
        ("realm set r --separator \udcff", "--separator '\\udcff': expected printable characters"),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line(sample_books: Books, arguments: str, complaint: str) -> None:
    result = turn_accounting(*arguments.split(), database_url=sample_books.url(WRITER))
    assert result.code == 2
    assert result.error_line.startswith(complaint)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"databse_url": "x"}, "ACCOUNTING_DATABSE_URL is not a setting of turn-accounting: did"),
        ({"capture": "magic"}, "ACCOUNTING_CAPTURE='magic' is wrong:"),
        ({"grace_seconds": "-1"}, "ACCOUNTING_GRACE_SECONDS='-1' is wrong:"),
        ({"time_zone": "Berlin"}, "ACCOUNTING_TIME_ZONE='Berlin' is wrong: time zone 'Berlin' is"),
        ({"database_url": "mysql://u:s3cr3t@h/d"}, "ACCOUNTING_DATABASE_URL is wrong: scheme"),
        ({"redis_url_file": "/nonexistent"}, "ACCOUNTING_REDIS_URL_FILE='/nonexistent' can't be"),
        ({"config": "/nonexistent"}, "ACCOUNTING_CONFIG='/nonexistent' can't be read"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["config", "up"])
def test_a_wrong_setting_is_named_by_its_variable(
    settings: dict[str, str], complaint: str, command: str
) -> None:
    result = turn_accounting(command, **settings)
    assert result.code == 2
    assert result.error_line.startswith(complaint)
    assert "s3cr3t" not in result.err


@pytest.mark.parametrize(
    "arguments",
    ["sessions", "source list", "realm list", "job run settle", "db current", "db upgrade", "up"],
)
def test_an_unreachable_postgres_is_one_line(tmp_path: Path, arguments: str) -> None:
    url = f"postgresql://someone:s3cr3t@127.0.0.1:{free_port()}/books"
    result = turn_accounting(*arguments.split(), database_url=url, data_dir=str(tmp_path))
    assert result.code == 1
    assert result.error_line.startswith("Postgres: connection failed: connection to server at")
    assert "s3cr3t" not in result.err


@pytest.mark.parametrize("arguments", ["collect", "simulate"])
def test_a_command_that_needs_redis_says_so(tmp_path: Path, arguments: str) -> None:
    result = turn_accounting(*arguments.split(), data_dir=str(tmp_path))
    assert result.code == 2
    assert result.error_line.startswith("ACCOUNTING_REDIS_URL is not set")


@pytest.mark.parametrize(
    "arguments",
    [
        "job run settle",
        "realm set r --grace 1",
        "source retire second",
        "realm list",
        "simulate --history 1month",
    ],
)
def test_a_reader_that_would_write_gets_the_name_of_the_role(
    sample_books: Books, arguments: str
) -> None:
    result = turn_accounting(*arguments.split(), database_url=sample_books.url(READER))
    assert result.code == 2
    assert "permission denied" in result.error_line
    assert "turn_accounting_writer" in result.error_line


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("usage --realm exampel.org",
         "no realm 'exampel.org' is known: did you mean 'example.org'?"),
        ("usage --realm nowhere",
         "no realm 'nowhere' is known: known are 'example.net', 'example.org'"),
        ("usage --user alcie", "no user 'alcie' is known: did you mean 'alice'?"),
        ("usage --user alise --realm example.org --json",
         "no user 'alise' is known in realm 'example.org': did you mean 'alice'?"),
        ("sessions --user zzz", "no user 'zzz' is known"),
        ("gaps --source secnd --since today",
         "no source 'secnd' is known: did you mean 'second'?"),
        ("period list exampel.org",
         "no realm 'exampel.org' is known: did you mean 'example.org'?"),
        ("statement exampel.org 2026-11-01",
         "no realm 'exampel.org' is known: did you mean 'example.org'?"),
        ("export sessions --realm exampel.org",
         "no realm 'exampel.org' is known: did you mean 'example.org'?"),
    ],
)  # fmt: skip
def test_an_unknown_name_is_not_an_empty_result(
    sample_books: Books, arguments: str, complaint: str
) -> None:
    result = turn_accounting(*arguments.split(), database_url=sample_books.url(READER))
    assert (result.code, result.error_line) == (2, complaint)


def test_a_name_that_is_known_may_have_an_empty_result(sample_books: Books) -> None:
    for arguments in ("--realm example.org", "--user alice", "--user bob --realm example.org"):
        result = turn_accounting(
            "usage", "--since", "2030-01-01", *arguments.split(),
            database_url=sample_books.url(READER),
        )  # fmt: skip
        assert (result.code, result.err) == (0, "")
        assert result.out == "No usage: that span is in the future.\n"
    gaps = turn_accounting(
        "gaps", "--since", "2030-01", "--source", "second", database_url=sample_books.url(READER)
    )
    assert gaps.out == "No gap is recorded yet: that span is in the future.\n"


def test_an_impossible_data_directory_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    for command in ("sessions", "up"):
        result = turn_accounting(command, data_dir=str(path))
        assert result.code == 2
        assert result.error_line == (
            f"can't enter the data directory {path}: Not a directory: set ACCOUNTING_DATA_DIR, or "
            "run this as the user of the service"
        )


def test_a_data_directory_that_can_not_be_made_is_named_with_a_remedy() -> None:
    result = turn_accounting("db", "upgrade", data_dir="/proc/nothing")
    assert result.code == 1
    assert result.error_line == (
        "can't prepare the directory of the embedded Postgres: /proc/nothing: No such file or "
        "directory: set ACCOUNTING_DATA_DIR, or run this as the user of the service"
    )


@pytest.mark.parametrize(
    "command",
    [
        "up",
        "usage",
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ("doctor", "health", "source list")
        ),
    ],
)
def test_a_data_directory_that_this_user_may_not_enter_is_named(
    tmp_path: Path, command: str
) -> None:
    data_dir = tmp_path / "books"
    data_dir.mkdir(mode=0)
    # Root enters every directory, until it gives up the capabilities for that.
    unprivileged = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    process = subprocess.run(
        [
            *(unprivileged if os.geteuid() == 0 else []),
            *(sys.executable, "-m", "accounting", *command.split()),
        ],
        env=environment({"data_dir": str(data_dir)}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == (
        f"turn-accounting: can't enter the data directory {data_dir}: Permission denied: set "
        "ACCOUNTING_DATA_DIR, or run this as the user of the service\n"
    )


READING_COMMANDS: Final = [
    "sessions", "usage --json", "statement r 2026-11-01", "source list", "period list",
    "realm list", "top", "export usage", "feed", "verify", "trace r 2026-11-01 --user u",
    "rebuild --reason x", "erase r u", "reconcile /dev/null", "db current", "job run settle",
    "source retire s", "period close r 2026-11-01",
]  # fmt: skip


@pytest.mark.parametrize("arguments", READING_COMMANDS)
def test_without_books_a_command_says_so_and_creates_nothing(
    tmp_path: Path, arguments: str
) -> None:
    data_dir = tmp_path / "nothing"
    result = turn_accounting(*arguments.split(), data_dir=str(data_dir))
    assert result.code == 2
    assert result.error_line == (
        f"there are no books: ACCOUNTING_DATABASE_URL is not set, and {data_dir} has no database; "
        "set it, or ACCOUNTING_DATA_DIR to the data directory of `turn-accounting up`"
    )
    assert not data_dir.exists()
    data_dir.mkdir()
    assert turn_accounting(*arguments.split(), data_dir=str(data_dir)).code == 2
    assert list(data_dir.iterdir()) == []


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_full_disk_is_an_error(sample_books: Books, form: list[str]) -> None:
    result = turn_accounting(
        "sessions", *form, output="/dev/full", database_url=sample_books.url(READER)
    )
    assert result.code == 1
    assert result.error_line == "can't write to standard output: No space left on device"


@pytest.mark.parametrize(
    "arguments",
    [
        "sessions",
        pytest.param("gaps --json", marks=pytest.mark.long),
        "export usage",
        "--help",
        pytest.param("up -h", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize(
    ("redirection", "reason"),
    [(">&-", "Bad file descriptor"), (">/dev/full", "No space left on device")],
)
def test_what_can_not_be_written_is_one_line(
    sample_books: Books, arguments: str, redirection: str, reason: str
) -> None:
    process = run_in_shell(f"{arguments} {redirection}", sample_books)
    message = f"turn-accounting: can't write to standard output: {reason}\n"
    assert (process.returncode, process.stderr) == (1, message)


def test_closed_descriptors_are_not_taken_by_connections(sample_books: Books) -> None:
    process = run_in_shell("usage --json <&- 2>&-", sample_books)
    assert process.returncode == 0
    assert [json.loads(line)["realm"] for line in process.stdout.splitlines()].count(
        "example.net"
    ) == 2
    assert run_in_shell("usage --realm nowhere <&- >&- 2>&-", sample_books).returncode == 2


def run_in_shell(arguments: str, books: Books) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "-c", f"exec {shlex.quote(sys.executable)} -m accounting {arguments}"],
        env=environment({"database_url": books.url(READER)}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


INTERRUPTED_IMPORT: Final = """
import os, runpy, signal, sys

class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)

module = sys.argv.pop(1)
sys.meta_path.insert(0, Interrupt())
runpy.run_module("accounting", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    "module", ["accounting.cli.main", "typer", "accounting.cli.diagnose", "accounting.config"]
)
def test_an_interrupt_is_quiet_also_while_modules_are_imported(module: str) -> None:
    process = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT, module, "config"],
        env=environment({}),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (process.returncode, process.stdout, process.stderr) == (130, b"", b"")


def test_a_pipe_closed_by_its_reader_is_not_an_error(sample_books: Books) -> None:
    """`turn-accounting sessions --json | head -1`."""
    reading, writing = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", "accounting", "sessions", "--json"],
        env=environment({"database_url": sample_books.url(READER)}),
        stdout=writing,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(writing)
        os.close(reading)
        _, error_output = process.communicate(timeout=60)
    assert (process.returncode, error_output) == (0, b"")


def test_a_letter_that_the_locale_lacks_is_escaped(sample_books: Books) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "accounting", "sessions", "--user", "bob"],
        env=environment({"database_url": sample_books.url(READER)}) | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert process.stdout.isascii()
    assert process.stderr == b""


def test_no_command_prints_the_help_and_is_wrong_usage() -> None:
    result = turn_accounting()
    assert result.code == 2
    assert "simulate" in result.out
    assert result.err == "turn-accounting: no command is given: see `turn-accounting --help`\n"
