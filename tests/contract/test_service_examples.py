"""The examples of commands that run until they are stopped, and of the demonstration."""

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.request import urlopen

import pytest

from accounting.cli.examples import EXAMPLES
from accounting.cli.run import DEMO_MARKER
from accounting.embedded import run_postgres
from tests.support.books import WRITER, Books
from tests.support.command import environment, turn_accounting
from tests.support.page_commands import command_blocks
from tests.support.servers import ValkeyServer, free_port, wait_until
from tests.support.service import SERVICE, Service


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as running:
        yield running


IS_RUNNING: dict[str, Callable[[Service], object]] = {
    "up": lambda service: service.output().endswith("\n") and service.events("capturing"),
    "collect": lambda service: service.events("capturing"),
    "schedule": lambda service: service.log_text(),
    "serve": lambda service: "serving on http://127.0.0.1:" in service.log_text(),
}


# Of several examples of a service, the first tells whether it runs at all.
@pytest.mark.parametrize(
    ("command", "number"),
    [
        pytest.param(command, number, marks=[pytest.mark.long] if number else [])
        for command in IS_RUNNING
        for number, _ in enumerate(EXAMPLES[command])
    ],
)
def test_the_examples_of_services_run_until_they_are_stopped(
    books: Books, valkey: ValkeyServer, tmp_path: Path, command: str, number: int
) -> None:
    words = shlex.split(EXAMPLES[command][number])
    at = words.index("turn-accounting")
    given, name, options = words[:at], words[at + 1], words[at + 2 :]
    assert name == command
    listen = f"127.0.0.1:{free_port()}"  # the example's may be taken here
    if "--listen" in options:
        options[options.index("--listen") + 1] = listen
    settings = dict(setting.split("=", 1) for setting in given) | {
        "ACCOUNTING_DATABASE_URL": books.url(WRITER),
        "ACCOUNTING_REDIS_URL": valkey.url,
        "ACCOUNTING_WEB_LISTEN": listen,
    }
    # The first as it is, the others with short waits.
    module = None if number else SERVICE
    with Service(
        command, tmp_path / "service", settings, options=options, module=module
    ) as service:
        service.wait_for(partial(IS_RUNNING[command], service))
        assert service.stop() == 0


def run_demonstration(example: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What it shows, run in that directory."""
    monkeypatch.chdir(directory)
    run = turn_accounting(*shlex.split(example)[1:])
    assert run.code == 0, run.err
    assert "FAIL" not in run.out
    assert "  ok    no capture gaps" in run.out
    assert "\nAdjustments of this period\n" in run.out
    assert len(run.err.splitlines()) == 5, run.err
    return run.out


@pytest.mark.parametrize("goes_on", [False, pytest.param(True, marks=pytest.mark.long)])
def test_the_demonstration_shows_right_books_that_the_readme_goes_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goes_on: bool
) -> None:
    run_demonstration(EXAMPLES["demo"][0], tmp_path, monkeypatch)
    if goes_on:
        follow_the_readme(tmp_path)


@pytest.mark.long
def test_a_demonstration_in_a_directory_prints_steps_that_go_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = run_demonstration(EXAMPLES["demo"][1], tmp_path, monkeypatch)
    follow_the_next_steps(shown, tmp_path)
    assert len(EXAMPLES["demo"]) == 2


def follow_the_readme(directory: Path) -> None:
    """README.md's list of commands as it stands, in a directory where `make demo` has run.

    Only the port is another one: 8400 may be taken here.
    """
    demo, *lines, up = command_blocks("README.md")["five minutes"].splitlines()
    assert demo.split("#")[0].strip() == "make demo"
    command, address = up.split("#")
    assert command.strip() == "turn-accounting up"
    assert address.endswith("http://127.0.0.1:8400/")
    listen = f"127.0.0.1:{free_port()}"
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with subprocess.Popen(
        ["bash", "-ec", "\n".join([*lines, f"exec {command}"])],
        cwd=directory,
        env={**environment({"log_level": "error", "web_listen": listen}), "PATH": programs},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            served = f"turn-accounting: the page is on http://{listen}/\n"
            assert any(line == served for line in process.stderr)
            wait_until(partial(accepts_connections, listen), message="no page")
            with urlopen(f"http://{listen}/realm?realm=example.org", timeout=30) as page:
                assert "Top users this month" in page.read().decode()
        finally:
            process.terminate()
            shown = process.stdout.read()
    assert process.returncode == 0
    assert "a preview: not closed, may change" in shown


def accepts_connections(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def follow_the_next_steps(shown: str, tmp_path: Path) -> None:
    """As they are printed, but from another directory; then the books are kept."""
    directory = tmp_path / "demo-books"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    *reading, up, doctor = shown.split("Next:\n")[1].splitlines()
    assert up.split("#")[0].split() == ["turn-accounting", "up"]

    def run(*lines: str) -> str:
        return subprocess.run(
            ["bash", "-ec", "\n".join(lines)],
            cwd=elsewhere,
            env=environment({"log_level": "error"}),
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,
            check=True,
        ).stdout

    assert "a preview: not closed, may change" in run(*reading)
    assert (directory / DEMO_MARKER).exists()
    with Service("up", directory) as service:
        service.wait_for_conf_line()
        run(reading[0], doctor)
        assert service.stop() == 0
    refused = turn_accounting("demo", "--directory", str(directory))
    assert refused.code == 2
    assert refused.error_line == (
        f"{directory} has more than a demonstration and is not replaced: name another with "
        "--directory, or delete it"
    )
    assert (directory / "postgres").exists()


def test_the_demonstration_replaces_no_books_that_are_in_use(tmp_path: Path) -> None:
    directory = tmp_path / "demo"
    directory.mkdir()
    (directory / DEMO_MARKER).touch()
    with run_postgres(directory):
        refused = turn_accounting("demo", "--directory", str(directory))
        assert (refused.code, refused.out) == (2, "")
        assert f"{directory} is in use" in refused.err
        assert (directory / "postgres").exists()
