"""The command ``simulate``: publishes a simulated coturn fleet and prints the expected totals."""

import json
from threading import Event
from typing import TYPE_CHECKING, Annotated

import typer

from accounting.cli.output import write
from accounting.cli.progress import progress_line
from accounting.cli.resources import command_settings
from accounting.cli.rows import BYTE_COLUMNS
from accounting.cli.table import write_table
from accounting.errors import ConfigurationError
from accounting.plurals import counted
from accounting.progress import Progress
from accounting.simulator import VERSIONS, Expected, Scenario

if TYPE_CHECKING:
    from accounting.simulator.publisher import SimulationProgress


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("simulate")(simulate)


def simulate(
    version: Annotated[str, typer.Option(metavar="|".join(VERSIONS), help="Of coturn.")] = "4.6",
    servers: Annotated[int, typer.Option(help="coturn servers.")] = 2,
    relay_threads: Annotated[int, typer.Option(help="Relay threads of each server.")] = 2,
    users: Annotated[int, typer.Option(help="Users in all realms.")] = 20,
    realm: Annotated[list[str] | None, typer.Option(help="A realm; repeat for several.")] = None,
    sessions: Annotated[int, typer.Option(help="Allocations in total, up to 10 million.")] = 200,
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

    The books must show these totals in the end.
    """
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
        realms=tuple(realm) if realm else ("example.org", "example.net"),
        sessions=sessions,
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
