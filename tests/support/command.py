"""Runs ``turn-accounting`` as its users do: a process, its output and its exit code.

The processes are forked from a server that has imported everything. A command then takes a tenth of
the time, and the contract tests run many.
"""

import fcntl
import json
import multiprocessing
import multiprocessing.context
import os
import pty
import struct
import sys
import tempfile
import termios
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from accounting.cli.main import main
from accounting.cli.resources import command_settings
from accounting.ops import service
from accounting.ops.stop_signals import stop_on_signals
from tests.support.fork_server import FORK_SERVER
from tests.support.short_waits import CAPTURE, SERVICE, shorten

TIMEOUT_SECONDS: Final = 60
PREFIX: Final = "ACCOUNTING_"


class CommandResult(NamedTuple):
    """The exit code of a run, its standard output and its standard error."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows that ``--json`` printed, one object per line."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error_line(self) -> str:
        """The message of a run that printed one line on standard error and nothing else."""
        assert self.out == "", self.out
        assert self.err.count("\n") == 1, self.err
        return self.err.removeprefix("turn-accounting: ").rstrip("\n")


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, with these settings (in lower case) as the only ones of ours."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if PREFIX not in name and name not in {"COLUMNS", "LINES"}
    }
    return inherited | {f"{PREFIX}{name.upper()}": value for name, value in settings.items()}


def start_turn_accounting(
    *arguments: str, out: Path, err: Path, settings: Mapping[str, str]
) -> multiprocessing.context.ForkServerProcess:
    """Start the command; ``out`` and ``err`` get its standard output and standard error."""
    process = FORK_SERVER.Process(
        target=run_here, args=(arguments, environment(settings), out, err)
    )
    process.start()
    return process


def turn_accounting(*arguments: str, output: str = "", **settings: str) -> CommandResult:
    """Run the command to its end. ``output``: a path that replaces standard output."""
    with tempfile.TemporaryDirectory(prefix="ta-test-") as directory:
        out, err = Path(output or Path(directory, "out")), Path(directory, "err")
        process = start_turn_accounting(*arguments, out=out, err=err, settings=settings)
        process.join(TIMEOUT_SECONDS)
        if process.exitcode is None:
            process.kill()
            raise AssertionError(f"{arguments} does not end: {err.read_text()}")
        code = process.exitcode
        process.close()
        # Read as bytes: text mode would translate line ends.
        result = CommandResult(
            code, "" if output else out.read_bytes().decode(), err.read_bytes().decode()
        )
    assert "Traceback" not in result.err, result.err
    return result


def turn_accounting_on_terminal(
    *arguments: str,
    columns: int = 80,
    variables: Mapping[str, str] | None = None,
    with_errors: bool = False,
    output: str = "",
    code: int = 0,
    **settings: str,
) -> str:
    """Run the command with a terminal as standard output; return what it shows.

    ``with_errors``: standard error is the same terminal, on which progress is shown. ``output``: a
    path that replaces standard output, so that the terminal is standard error alone. ``code``: the
    exit code.
    ``variables``: of the environment, beside the settings.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    shown = bytearray()
    reader = threading.Thread(target=_read_terminal, args=(master, shown))
    reader.start()
    with tempfile.TemporaryDirectory(prefix="ta-test-") as directory:
        err = Path(directory, "err")
        process = FORK_SERVER.Process(
            target=run_here,
            args=(
                arguments,
                {**environment(settings), "TERM": "xterm", "NO_COLOR": "1", **(variables or {})},
                Path(output or os.ttyname(slave)),
                Path(os.ttyname(slave)) if with_errors or output else err,
            ),
        )
        process.start()
        process.join(TIMEOUT_SECONDS)
        os.close(slave)
        reader.join()
        os.close(master)
        assert process.exitcode == code, bytes(shown) + (
            b"" if with_errors or output else err.read_bytes()
        )
        process.close()
    return shown.decode().replace("\r\n", "\n")


def _read_terminal(master: int, shown: bytearray) -> None:
    """Read until the last process has closed the terminal."""
    with suppress(OSError):  # EIO: it is closed
        while data := os.read(master, 65536):
            shown += data


def run_in_terminal(
    arguments: tuple[str, ...], environ: dict[str, str], terminal: Path, err: Path
) -> None:
    """Run the command as the leader of a session whose controlling terminal this is."""
    os.setsid()
    os.dup2(os.open(terminal, os.O_RDWR), 0)
    run_here(arguments, environ, terminal, err)


def run_service(arguments: tuple[str, ...], environ: dict[str, str], out: Path, err: Path) -> None:
    """Run a command of the service with short waits, in its data directory."""
    shorten({**CAPTURE, **SERVICE})
    os.chdir(environ[f"{PREFIX}DATA_DIR"])
    run_here(arguments, environ, out, err)


def run_here(arguments: tuple[str, ...], environ: dict[str, str], out: Path, err: Path) -> None:
    """Run the command in this process, which the fork server has started for it."""
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
    # The server's own object may hold another kind of file.
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environ)
    if arguments == ("load",):
        # A process of the service, which its fork server starts: it has no command.
        service.run_loader_process(command_settings(), stop_on_signals())
        return
    sys.argv = ["turn-accounting", *arguments]
    main()
