"""The installed wheel: each extra does its work, and without it one line says how to add it.

`make wheel-test` runs this, and says in DISTRIBUTIONS where the wheel is; its name keeps it out of
`make test`. Every Python is used that the machine has.
"""

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Final
from urllib.request import urlopen

import pytest

from tests.support.books import WRITER, Books
from tests.support.servers import ADDRESS, free_port, is_free, wait_until
from tests.support.stores import AzureServer, GoogleServer, S3Server, SftpServer, StoreServer
from tests.support.webhook_receiver import WebhookReceiver
from tests.wheel.installations import TOOLS, Installation, install
from tests.wheel.pythons import pythons

[WHEEL] = Path(os.environ["DISTRIBUTIONS"]).glob("*-py3-none-any.whl")
SESSIONS: Final = ("export", "sessions", "--output")
COMMANDS: Final[dict[str, tuple[str, ...]]] = {
    "az": (*SESSIONS, "az://exports/books"),
    "embedded": ("demo",),
    "gs": (*SESSIONS, "gs://exports/books"),
    "parquet": (*SESSIONS, "books", "--format", "parquet"),
    "s3": (*SESSIONS, "s3://exports/books"),
    "sftp": (*SESSIONS, "sftp://books/books"),
    "web": ("serve",),
    "webhooks": ("webhook", "add", "http://localhost:9/"),
}
"""A command that needs the extra."""
ADDED: Final = ("webhooks", "web")
"""The extras that are added as the errors say, one after the other."""
NEEDED: Final = re.compile(r"turn-accounting: [^\n]+ of the extra (\w+): ([^\n]+)\n")


def needed_extra(installed: Installation, books: Books, extra: str) -> str:
    """Run a command that needs an extra, which is not there; the command that its error names."""
    done = installed.run(*COMMANDS[extra], variables=database(books))
    assert (done.returncode, done.stdout) == (2, "")
    said = NEEDED.fullmatch(done.stderr)
    assert said, done.stderr
    assert said[1] == extra
    return said[2]


def database(books: Books) -> dict[str, str]:
    return {"ACCOUNTING_DATABASE_URL": books.url(WRITER)}


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("tool", "version"), list(zip(TOOLS, cycle(reversed(pythons())), strict=False))
)
def test_without_an_extra_an_error_names_it_and_how_to_add_it_here(
    books: Books, tmp_path: Path, tool: str, version: str
) -> None:
    installed = install(tool, pythons()[version], WHEEL, tmp_path)
    assert installed.run("--version").stdout.split()[1] == WHEEL.name.split("-")[1]
    assert installed.run("--help").returncode == 0
    for extra in COMMANDS:
        needed_extra(installed, books, extra)
    assert list(installed.directory.iterdir()) == []
    for extra in ADDED:
        installed.shell(needed_extra(installed, books, extra))
    for extra in ADDED:
        WORKS[extra](installed, books)


def serves_the_page(installed: Installation, books: Books) -> None:
    port = free_port()
    listen = f"{ADDRESS}:{port}"
    with running(installed, "serve", "--listen", listen, variables=database(books)):
        assert "<title>" in page(port, "/")


def delivers_a_webhook(installed: Installation, books: Books) -> None:
    with WebhookReceiver() as receiver:
        receiver.behave("/books", do="answer")
        url = receiver.url("/books")
        added = installed.run("webhook", "add", url, variables=database(books))
        assert added.returncode == 0, added.stderr
        tested = installed.run("webhook", "test", "1", variables=database(books))
        assert tested.returncode == 0, tested.stderr
        assert len(receiver.requests("/books")) == 1


def exports_to(kind: type[StoreServer], installed: Installation, books: Books) -> None:
    with kind() as store:
        variables = database(books) | store.variables
        done = installed.run(*SESSIONS, store.url, variables=variables)
        assert done.returncode == 0, done.stderr
        _, manifest = done.stdout.splitlines()
        checked = installed.run("export", "check", manifest, variables=variables)
        assert checked.returncode == 0, checked.stderr


def writes_parquet(installed: Installation, books: Books) -> None:
    done = installed.run(*COMMANDS["parquet"], variables=database(books))
    assert done.returncode == 0, done.stderr
    [path] = (installed.directory / "books").glob("*.parquet")
    assert path.read_bytes()[:4] == b"PAR1"


def demonstrates(installed: Installation, books: Books | None = None) -> None:
    """In an empty directory; then what it prints is run as it is printed."""
    del books  # it has its own
    shown = installed.shell("turn-accounting demo --seconds 2")
    assert "FAIL" not in shown
    *before, usage, sessions, statement, up, doctor = shown.split("Next:\n")[1].splitlines()
    assert all(
        line.startswith("  turn-accounting ") for line in (usage, sessions, statement, up, doctor)
    )
    assert "a preview: not closed" in installed.shell(*before, usage, sessions, statement)
    with running(installed, shell="\n".join([*before, f"exec {up}"])) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("redis-statsdb=")
        installed.shell(*before, doctor)


@contextmanager
def running(
    installed: Installation,
    *arguments: str,
    shell: str = "",
    variables: dict[str, str] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """Run a service, and check that SIGTERM ends it with code 0."""
    with subprocess.Popen(
        ["bash", "-c", shell] if shell else [installed.program, *arguments],
        cwd=installed.directory,
        env={**installed.environment, **(variables or {})},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0


def page(port: int, path: str) -> str:
    wait_until(lambda: not is_free(port), 30)
    with urlopen(f"http://{ADDRESS}:{port}{path}", timeout=30) as answer:
        text: str = answer.read().decode()
    return text


WORKS: Final[dict[str, Callable[[Installation, Books], None]]] = {
    "az": partial(exports_to, AzureServer),
    "embedded": demonstrates,
    "gs": partial(exports_to, GoogleServer),
    "parquet": writes_parquet,
    "s3": partial(exports_to, S3Server),
    "sftp": partial(exports_to, SftpServer),
    "web": serves_the_page,
    "webhooks": delivers_a_webhook,
}
PROGRAMS: Final = {"az": [pytest.mark.needs_azurite], "sftp": [pytest.mark.needs_sshd]}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("version", pythons())
@pytest.mark.parametrize(
    "extra", [pytest.param(name, marks=PROGRAMS.get(name, ())) for name in WORKS]
)
def test_each_extra_alone_brings_what_its_commands_need(
    books: Books, tmp_path: Path, extra: str, version: str
) -> None:
    installed = install("uv tool", pythons()[version], WHEEL, tmp_path, [extra])
    WORKS[extra](installed, books)
    other = "parquet" if extra != "parquet" else "web"
    assert f"[{extra},{other}]" in needed_extra(installed, books, other)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("tool", ["pip", "pipx"])
def test_all_extras_together_run_the_demonstration_with_the_page(tmp_path: Path, tool: str) -> None:
    python = [*pythons().values()][-1]
    installed = install(tool, python, WHEEL, tmp_path, sorted(WORKS))
    demonstrates(installed)
    port = free_port()
    listen = {"ACCOUNTING_DATA_DIR": ".demo", "ACCOUNTING_WEB_LISTEN": f"{ADDRESS}:{port}"}
    with running(installed, "up", variables=listen):
        assert "example.org" in page(port, "/realms")


def test_every_extra_has_a_command_here() -> None:
    assert WORKS.keys() == COMMANDS.keys()
