"""The command ``demo``: the whole path on a simulated fleet, and whether the books are right.

Publishes to an embedded Valkey, captures, loads, settles and rolls up with the service's own
processes, and compares what the books say with what the fleet knows it did.
"""

import os
import shlex
import shutil
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from accounting.cli.simulation import publish
from accounting.cli.terminal import write_table
from accounting.cli.views import BYTES
from accounting.config import Settings
from accounting.db.engine import lost_connections
from accounting.domain.counters import COUNTERS
from accounting.embedded import running_valkey
from accounting.errors import AccountingError, UsageError
from accounting.logs import configure_logging
from accounting.ops import service
from accounting.ops.processes import stop_on_signals, wait_until
from accounting.reporting import view_queries
from accounting.simulator import Expected, Scenario

MARK: Final = "turn-accounting-demo"
INTERRUPTED: Final = 130
"""The exit code of a command that Ctrl-C ended."""
SCENARIO: Final = Scenario(
    version="4.6",
    servers=3,
    users=9,
    realms=("example.org", "example.net"),
    sessions=240,
    duration_seconds=18.0,
    session_seconds=5.0,
    packets_per_second=2500.0,
    lifetime_seconds=600,
    restart=True,
    stolen=True,
    wrap=True,
    rest_usernames=True,
    same_key=True,
)


def mount(app: typer.Typer) -> None:
    """Add the command. Its settings are its own, whatever the environment says."""

    @app.command(hidden=True)
    def demo(
        directory: Annotated[
            Path, typer.Option(help="Where the demonstration keeps its data.")
        ] = Path(".demo"),
    ) -> None:
        """See it work: servers, a simulated fleet, the books."""
        raise typer.Exit(_run(directory))


def _run(directory: Path) -> int:
    """Run the demonstration in ``directory``; returns the exit code: 0 when the books are right."""
    directory = directory.absolute()
    if directory.exists():
        if not (directory / MARK).exists():
            raise UsageError(f"{directory} is there and no earlier demonstration: name another")
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    (directory / MARK).touch()
    # The parts take their settings from the environment; whatever the shell had set is not theirs.
    for name in [name for name in os.environ if name.startswith("ACCOUNTING_")]:
        del os.environ[name]
    os.environ |= {
        "ACCOUNTING_DATA_DIR": str(directory),
        "ACCOUNTING_SOURCE": "demo",
        "ACCOUNTING_LOG_LEVEL": "error",
    }
    configure_logging("error")
    settings = Settings(data_dir=directory, source="demo")
    say = Console(stderr=True, highlight=False).print
    say("1/4  starting Postgres, Valkey, the collector and the scheduler")
    interrupted = stop_on_signals()
    expected = _play(settings, say, interrupted)
    if interrupted.is_set():
        say("interrupted: the service is stopped, and nothing is left behind")
        return INTERRUPTED
    say("4/4  reading the books")
    with (
        service.database(settings, service.READER) as engine,
        lost_connections(),
        engine.connect() as connection,
    ):

        def read(query: Any) -> list[Mapping[str, Any]]:
            return list(view_queries.rows(connection, query))

        usage = read(view_queries.usage(of="user", length="month"))
        sums = {
            "sessions": read(view_queries.sessions()),
            "unattributed": read(view_queries.view("unattributed_usage")),
            "hours": read(view_queries.usage(of="user", length="hour")),
            "days": read(view_queries.usage(of="user", length="day")),
            "months": usage,
            "realm months": read(view_queries.usage(of="realm", length="month")),
        }
        gaps = read(view_queries.view("capture_gaps"))
    _show(usage)
    code = _conclude(expected, {name: _sum(rows) for name, rows in sums.items()}, len(gaps))
    _say_what_next(directory)
    return code


def _play(settings: Settings, say: Any, interrupted: threading.Event) -> Expected:
    """Run the service, publish the fleet, and drain; returns what the fleet did."""
    stop, announced = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            service.up(settings, stop, lambda _line: announced.set())
        except BaseException as error:  # noqa: BLE001  # raised again below, in the main thread
            failures.append(error)

    serving = threading.Thread(target=serve, name="service")
    serving.start()
    try:
        wait_until(
            lambda: bool(failures) or (announced.is_set() and service.is_capturing(settings)), 60
        )
        valkey = running_valkey(settings.data_dir)
        if failures or valkey is None:
            raise failures[0] if failures else AccountingError("the service does not start")
        seconds = SCENARIO.duration_seconds
        say(f"2/4  a fleet of {SCENARIO.servers} simulated coturn servers, {seconds:.0f} seconds")
        expected = publish(SCENARIO, valkey.url, interrupted)
        say("3/4  draining: what is captured is loaded, settled and rolled up")
    finally:
        stop.set()
        serving.join()
    if failures:
        raise failures[0]
    return expected


def _show(usage: list[Mapping[str, Any]]) -> None:
    columns = {
        "realm": "realm",
        "user_id": "user",
        "sessions_started": "sessions",
        "session_seconds": "seconds",
        **BYTES,
    }
    write_table("\nUsage this month", usage, columns, empty="No usage.")


def _sum(rows: Iterable[Mapping[str, Any]]) -> tuple[int, ...]:
    sums = [0] * len(COUNTERS)
    for row in rows:
        for at, name in enumerate(COUNTERS):
            sums[at] += int(row[name])
    return tuple(sums)


def _conclude(expected: Expected, sums: Mapping[str, tuple[int, ...]], gaps: int) -> int:
    total = expected.total
    published = tuple(a + b for a, b in zip(total.usage, total.unattributed, strict=True))
    booked = tuple(a + b for a, b in zip(sums["sessions"], sums["unattributed"], strict=True))
    checks = [
        ("published = sessions + unattributed", published == booked, sum(published[1::2])),
        ("sessions = hours", sums["sessions"] == sums["hours"], sum(sums["hours"][1::2])),
        ("hours = days", sums["hours"] == sums["days"], sum(sums["days"][1::2])),
        ("days = months", sums["days"] == sums["months"], sum(sums["months"][1::2])),
        (
            "users = realms",
            sums["months"] == sums["realm months"],
            sum(sums["realm months"][1::2]),
        ),
        ("no capture gaps", gaps == 0, None),
    ]
    out = sys.stdout.write
    out(f"\n{expected.published:,} messages published. Conservation, to the byte:\n")
    for name, holds, count in checks:
        out(f"  {'ok  ' if holds else 'FAIL'}  {name:<38}")
        out(f"{count:>22,} B\n" if count is not None else "\n")
    return 0 if all(holds for _, holds, _ in checks) else 1


def _say_what_next(directory: Path) -> None:
    here = Path.cwd()
    shown = directory.relative_to(here) if directory.is_relative_to(here) else directory
    sys.stdout.write(
        f"\nThe demonstration's books stay in {shown}. Next:\n"
        f"  export ACCOUNTING_DATA_DIR={shlex.quote(str(shown))} PATH=$PWD/.venv/bin:$PATH\n"
        "  turn-accounting usage --by realm --per hour\n"
        "  turn-accounting sessions --limit 10\n"
        "  turn-accounting up            # the service; prints the line for turnserver.conf\n"
    )
