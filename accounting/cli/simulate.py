"""The command ``simulate``: publishes a simulated coturn fleet and prints the expected totals.

With ``--history`` it fills empty books with past months instead, and compares them.
"""

import json
import re
from collections import defaultdict
from dataclasses import replace
from datetime import date
from threading import Event
from typing import TYPE_CHECKING, Annotated, Final

import typer

from accounting.cli.output import write, write_message
from accounting.cli.progress import progress_line
from accounting.cli.resources import command_settings, open_reader, writer_engine
from accounting.cli.rows import BYTE_COLUMNS
from accounting.cli.table import write_table
from accounting.domain.counters import COUNTERS
from accounting.errors import ConfigurationError, UsageError
from accounting.plurals import counted
from accounting.progress import Progress
from accounting.simulator import VERSIONS, Expected, Scenario
from accounting.simulator.history import HistoryScenario, realm_names

if TYPE_CHECKING:
    from accounting.simulator.history_oracle import HistoryExpected
    from accounting.simulator.publisher import SimulationProgress

OF_A_HISTORY: Final = {"history", "users", "realm", "realms", "sessions", "seed", "as_json"}
"""The options that go with --history."""
DEFAULT_REALMS: Final = 2
DEFAULT_SESSIONS: Final = 200
MAX_SHOWN: Final = 20
"""Of the differences."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("simulate")(simulate)


def simulate(
    context: typer.Context,
    version: Annotated[str, typer.Option(metavar="|".join(VERSIONS), help="Of coturn.")] = "4.6",
    servers: Annotated[int, typer.Option(help="coturn servers.")] = 2,
    relay_threads: Annotated[int, typer.Option(help="Relay threads of each server.")] = 2,
    users: Annotated[int, typer.Option(help="Users in all realms.")] = 20,
    realm: Annotated[list[str] | None, typer.Option(help="A realm; repeat for several.")] = None,
    realms: Annotated[
        int | None, typer.Option(metavar="N", help="Instead of --realm: so many.")
    ] = None,
    sessions: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Allocations, up to 10 million. Default: 200; with --history users x days.",
        ),
    ] = None,
    history: Annotated[
        str | None,
        typer.Option(
            metavar="3months", help="Fill empty books with so many past months; without Redis."
        ),
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(metavar="N", help="Instead of --sessions: open at any time.")
    ] = None,
    duration: Annotated[float, typer.Option(help="Seconds that the fleet runs.")] = 25.0,
    session_seconds: Annotated[float, typer.Option(help="Mean duration of a session.")] = 8.0,
    lifetime: Annotated[int, typer.Option(help="Lifetime of an allocation, in seconds.")] = 600,
    packets_per_second: Annotated[float, typer.Option(help="Of each session.")] = 1000.0,
    rate: Annotated[
        float | None,
        typer.Option(
            metavar="N", help="Messages per second; 0: as fast as Redis can. Default: real time."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed publishes the same messages.")] = 1,
    tcp_share: Annotated[float, typer.Option(help="Share of TCP clients, 0 to 1.")] = 0.2,
    database: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="Redis database of a server; repeat for each."),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="A server is killed halfway; ids are reused.")
    ] = False,
    stolen: Annotated[
        bool, typer.Option("--stolen", help="Traffic under names that never authenticated.")
    ] = False,
    wrap: Annotated[bool, typer.Option("--wrap", help="Peer totals beyond 2^32 bytes.")] = False,
    lost_totals: Annotated[
        bool, typer.Option("--lost-totals", help="deleted events and totals that never arrive.")
    ] = False,
    lost_interims: Annotated[
        bool, typer.Option("--lost-interims", help="Interims that never arrive.")
    ] = False,
    same_key: Annotated[
        bool, typer.Option("--same-key", help="Two servers use the same key at the same time.")
    ] = False,
    rest_usernames: Annotated[
        bool, typer.Option("--rest-usernames", help="Usernames of TURN REST.")
    ] = False,
    rfc6062: Annotated[
        bool, typer.Option("--rfc6062", help="TCP allocations without interims.")
    ] = False,
    hostile_usernames: Annotated[
        bool, typer.Option("--hostile-usernames", help="Usernames made to break parsers.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="The expected totals as one JSON object.")
    ] = False,
) -> None:
    """Publish what a coturn fleet would, and print the exact totals.

    The books must show these totals in the end. With --history nothing is published:
    it fills an empty database with whole past months, closed and with adjustments, and
    the present one so far, and exits with 1 when the books differ from what they must show.
    """
    if realm and realms is not None:
        raise UsageError("--realms does not go with --realm")
    if realms is not None and realms < 1:
        raise UsageError(f"can't simulate: realms is {realms}, less than 1")
    names = tuple(realm) if realm else realm_names(DEFAULT_REALMS if realms is None else realms)
    if history is not None:
        _refuse_options_of_a_fleet(context)
        months = _months(history)
        _simulate_history(months, names, users, sessions, seed, as_json=as_json)
        return
    from accounting.ops.servers import running_redis_url
    from accounting.ops.stop_signals import stop_on_signals

    redis_url = running_redis_url(command_settings())
    if redis_url is None:
        raise ConfigurationError(
            "ACCOUNTING_REDIS_URL is not set and no `up` runs here: expected the Redis to "
            "publish to, as redis://host:6379/0"
        )
    scenario = Scenario(
        version=version,
        servers=servers,
        relay_threads=relay_threads,
        users=users,
        realms=names,
        sessions=DEFAULT_SESSIONS if sessions is None else sessions,
        concurrency=concurrency,
        duration_seconds=duration,
        session_seconds=session_seconds,
        lifetime_seconds=lifetime,
        packets_per_second=packets_per_second,
        tcp_share=tcp_share,
        rate=rate,
        seed=seed,
        databases=tuple(database or ()),
        restart=restart,
        stolen=stolen,
        wrap=wrap,
        lost_totals=lost_totals,
        lost_interims=lost_interims,
        same_key=same_key,
        rest_usernames=rest_usernames,
        rfc6062=rfc6062,
        hostile_usernames=hostile_usernames,
    )
    with progress_line("simulating") as progress:
        expected = publish(scenario, redis_url, stop_on_signals(), progress)
    if as_json:
        write(json.dumps(expected.as_dict()) + "\n")
    else:
        write_expected(expected)


def publish(scenario: Scenario, redis_url: str, stop: Event, progress: Progress) -> Expected:
    """Publish a scenario until ``stop`` is set. The units of ``progress`` are seconds."""
    from accounting.simulator.publisher import run

    def show(state: "SimulationProgress") -> None:
        progress(
            min(state.virtual_seconds, state.duration_seconds),
            round(state.duration_seconds),
            doing="simulating seconds",
            detail=f"{counted(state.published, 'message')}, {state.sessions_live:,} live",
        )

    return run(scenario, redis_url, on_progress=show, stop=stop)


def write_expected(expected: Expected) -> None:
    """Write the expected totals as a table."""
    rows = [user.as_dict() for user in expected.users]
    columns = {
        "realm": "realm",
        "user_id": "user",
        "sessions": "sessions",
        **BYTE_COLUMNS,
    }
    title = f"published {counted(expected.published, 'message')}"
    write_table(title, rows, columns, empty="Nothing.")
    write(f"{counted(expected.total.sessions, 'session')}\n")


def _refuse_options_of_a_fleet(context: typer.Context) -> None:
    """Raise UsageError for an option that was given and that a history does not have."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        is_given = source is not None and source.name == "COMMANDLINE"
        if is_given and parameter.name not in OF_A_HISTORY:
            raise UsageError(f"{parameter.opts[0]} does not go with --history")


def _months(history: str) -> int:
    match = re.fullmatch(r"(\d{1,3}) ?months?", history)
    if match is None:
        raise UsageError(
            f"--history {history!r} is no number of months: expected one such as 3months"
        )
    return int(match[1])


def _simulate_history(
    months: int,
    realms: tuple[str, ...],
    users: int,
    sessions: int | None,
    seed: int,
    *,
    as_json: bool,
) -> None:
    """Fill the books, compare them, and write what they show."""
    from accounting.ops.simulated_history import differences, now_of_empty_books, simulate_history

    scenario = HistoryScenario(
        until=0, months=months, realms=realms, users=users, sessions=sessions, seed=seed
    )
    settings = command_settings()
    with (
        writer_engine(settings, may_create=True) as engine,
        progress_line("simulating days") as progress,
    ):
        scenario = replace(scenario, until=now_of_empty_books(engine))
        expected = simulate_history(engine, scenario, progress)
        with open_reader(settings) as reader:
            found = list(differences(reader, expected))
    if as_json:
        write(json.dumps(expected.as_dict()) + "\n")
    else:
        write_history(expected)
    for line in found[:MAX_SHOWN]:
        write_message(line)
    if found:
        write_message(f"the books have {counted(len(found), 'difference')} from the simulation")
        raise typer.Exit(1)


def write_history(expected: "HistoryExpected") -> None:
    """Write the months of a history as a table, and what else is in the books."""
    names = ("users", "adjusted", "sessions_started", *COUNTERS)
    sums: defaultdict[tuple[str, date], dict[str, int]] = defaultdict(
        lambda: dict.fromkeys(names, 0)
    )
    for key, line in expected.months.items():
        row = sums[key.realm, key.period]
        row["users"] += 1
        row["adjusted"] += key in expected.adjustments
        for name in ("sessions_started", *COUNTERS):
            row[name] += line[name]
    rows = [
        {
            "realm": realm,
            "period": period.isoformat(),
            "state": "closed" if (realm, period) in expected.closed else "open",
            **row,
        }
        for (realm, period), row in sorted(sums.items())
    ]
    columns = {
        "realm": "realm",
        "period": "period",
        "state": "state",
        "users": "users",
        "adjusted": "adjusted",
        "sessions_started": "sessions",
        "received_bytes": "received B",
        "sent_bytes": "sent B",
    }
    write_table(
        f"captured {counted(expected.captured, 'message')}", rows, columns, empty="Nothing."
    )
    write(
        f"{counted(expected.sessions, 'session')}, {expected.sessions_estimated:,} estimated; "
        f"{counted(expected.gaps, 'capture gap')}; "
        f"{expected.published - expected.captured:,} messages lost in them\n"
    )
