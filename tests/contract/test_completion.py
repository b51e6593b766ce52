"""Completion in real shells: what a person types, and the command that then runs."""

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest
import typer

from accounting.cli.completion import candidates, names_in_books
from accounting.cli.main import app
from tests.support.books import READER, Books
from tests.support.command import environment, turn_accounting
from tests.support.realm_rules import set_realm_rule

SECONDS: Final = 30
WRAPPER: Final = """#!/bin/sh
if [ -n "$_TURN_ACCOUNTING_COMPLETE" ] || [ "$1" = --completion ]; then
    exec {python} -m accounting "$@"
fi
echo "ran($*)"
"""
"""Completes as the real command does; run, it prints its arguments."""
TYPED: Final = {
    "turn-accounting us\t": "ran(usage)",
    "turn-accounting realm s\t": "ran(realm set)",
    "turn-accounting usage --per mo\t": "ran(usage --per month)",
}


FISH_SCRIPT: Final = """
turn-accounting --completion fish | source
complete -C 'turn-accounting us'
complete -C 'turn-accounting realm '
complete -C 'turn-accounting usage --per '
"""


@pytest.fixture
def shell_environment(tmp_path: Path) -> dict[str, str]:
    """With a ``turn-accounting`` in the path."""
    program = tmp_path / "bin" / "turn-accounting"
    program.parent.mkdir()
    program.write_text(WRAPPER.format(python=sys.executable))
    program.chmod(0o755)
    root = Path(__file__).parents[2]
    return environment({}) | {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(root),
        "HOME": str(tmp_path),
        "TERM": "vt100",
    }


class Terminal:
    """An interactive shell: types lines and waits for what they print."""

    def __init__(self, *command: str, environ: dict[str, str]) -> None:
        self._process, self._descriptor = pty.fork()
        if self._process == 0:
            os.execvpe(command[0], command, environ)  # noqa: S606
        self._deadline = time.monotonic() + SECONDS

    def type(self, text: str, expected: str) -> None:
        """Type a line and wait until the shell has printed ``expected``."""
        os.write(self._descriptor, f"{text}\n".encode())
        shown = ""
        while f"\n{expected}" not in shown.replace("\r", "\n"):
            ready, _, _ = select.select(
                [self._descriptor], [], [], self._deadline - time.monotonic()
            )
            assert ready, f"{expected!r} does not appear: {shown!r}"
            shown += os.read(self._descriptor, 65536).decode(errors="replace")

    def close(self) -> None:
        os.close(self._descriptor)
        os.waitpid(self._process, 0)


def type_all(terminal: Terminal, *preparation: str) -> None:
    try:
        for number, line in enumerate(preparation):
            terminal.type(f"{line}; echo done-$(({number}))", f"done-{number}")
        for typed, expected in TYPED.items():
            terminal.type(typed, expected)
    finally:
        terminal.close()


def test_completion_in_bash(shell_environment: dict[str, str]) -> None:
    terminal = Terminal("bash", "--norc", "--noprofile", "-i", environ=shell_environment)
    type_all(terminal, "source <(turn-accounting --completion bash)")


@pytest.mark.needs_zsh
def test_completion_in_zsh(shell_environment: dict[str, str]) -> None:
    terminal = Terminal("zsh", "-f", "-i", environ=shell_environment)
    type_all(
        terminal,
        "autoload -U compinit && compinit -u -D",
        "source <(turn-accounting --completion zsh)",
    )


@pytest.mark.needs_fish
def test_completion_in_fish(shell_environment: dict[str, str]) -> None:
    process = subprocess.run(
        [
            "fish",
            "--no-config",
            "-c",
            FISH_SCRIPT,
        ],
        env=shell_environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    words = [line.split("\t")[0] for line in process.stdout.splitlines()]
    assert words == ["usage", "list", "remove", "set", "day", "hour", "month"]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("usage --realm example.", ["example.net", "example.org"]),
        ("statement exa", ["example.net", "example.org"]),
        ("realm set example.o", ["example.org"]),
        ("source retire ", ["default", "second"]),
        ("usage --sort re", ["realm", "received", "received_bytes", "received_packets"]),
        ("sessions --sort -star", ["-started", "-started_at"]),
        ("job run r", ["rollup", "retain"]),
        ("top --by s", ["session"]),
        ("--completion z", ["zsh"]),
    ],
)
def test_values_are_completed(typed: str, words: list[str]) -> None:
    command, before = typer.main.get_command(app), typed.split(" ")
    known = {"realm": [r"a\xff", "example.net", "example.org"], "source": ["default", "second"]}
    found = candidates(command, {}, before, known.__getitem__)
    assert [candidate.word for candidate in found] == words


def test_names_come_from_books_that_answer_and_need_no_quotes(
    books: Books, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("example.org", "$(reboot)", "two words"):
        set_realm_rule(books, name, grace_seconds=1)
    for url, words in ((books.url(READER), ["example.org"]), ("postgresql://127.0.0.1:1/x", [])):
        monkeypatch.setenv("ACCOUNTING_DATABASE_URL", url)
        assert list(names_in_books("realm")) == words
    monkeypatch.delenv("ACCOUNTING_DATABASE_URL")
    monkeypatch.setenv("ACCOUNTING_DATA_DIR", str(tmp_path / "none"))
    assert list(names_in_books("realm")) == []
    assert list(tmp_path.iterdir()) == []


def test_completion_of_another_shell_is_wrong_use() -> None:
    result = turn_accounting("--completion", "tcsh")
    assert result.code == 2
    assert result.error_line == "--completion 'tcsh': expected bash, zsh or fish"
