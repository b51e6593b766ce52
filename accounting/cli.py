"""The command ``turn-accounting``: the one place where settings, servers and jobs come together.

Data goes to standard output, everything else to standard error. Exit: 0 done, 1 a check failed or
a difference was found, 2 wrong use or configuration, 3 not yet.
"""

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import typer

from accounting import demo as demonstration
from accounting import service
from accounting.config import Settings, load_settings, variable
from accounting.errors import AccountingError, ConfigurationError, NotYet, UsageError
from accounting.jobs.realms import list_rules, set_rule
from accounting.jobs.registry import JOBS
from accounting.jobs.sources import retire_source
from accounting.logs import configure_logging
from accounting.model.identity import UsernameRule
from accounting.processes import stop_on_signals
from accounting.simulation import simulate_command
from accounting.store import migrations, reporting
from accounting.store.database import lost_connections
from accounting.terminal import warn, write_json, write_table

app = typer.Typer(
    name="turn-accounting",
    help="Usage accounting for coturn: every byte that coturn reports, counted once, in SQL.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
db = typer.Typer(help="The database's schema.", no_args_is_help=True)
job = typer.Typer(help="The scheduled jobs, run by hand.", no_args_is_help=True)
realm = typer.Typer(help="The rules of realms.", no_args_is_help=True)
source = typer.Typer(help="The sources: one Redis and its collector each.", no_args_is_help=True)
for name, group in (("db", db), ("job", job), ("realm", realm), ("source", source)):
    app.add_typer(group, name=name)

Json = Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")]
Realm = Annotated[str | None, typer.Option("--realm", help="Only this realm.")]
User = Annotated[str | None, typer.Option("--user", help="Only this user_id.")]
Since = Annotated[
    str | None, typer.Option("--since", "--from", help="From this time on, ISO 8601.")
]
Until = Annotated[str | None, typer.Option("--until", "--to", help="Before this time, ISO 8601.")]


def main() -> None:
    """Run the command line; errors of ours end in one line and their exit code."""
    try:
        app()
    except (ConfigurationError, UsageError) as error:
        warn(str(error))
        sys.exit(2)
    except NotYet as error:
        warn(str(error))
        sys.exit(3)
    except AccountingError as error:
        warn(str(error))
        sys.exit(1)


def _settings(**arguments: object) -> Settings:
    settings = load_settings(**arguments)
    configure_logging(settings.log_level, settings.log_format)
    return settings


@app.command()
def up() -> None:
    """Run the whole service: embedded servers where no URLs are set, capture, load, all jobs."""
    service.up(_settings(), stop_on_signals(), _announce)


def _announce(line: str) -> None:
    warn("running; put this line into turnserver.conf and restart coturn:")
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


@app.command()
def collect() -> None:
    """Capture from Redis into the spool, and load the spool into Postgres."""
    settings = _settings()
    if settings.redis_url is None:
        found = service.redis_url(settings)
        if found is None:
            raise ConfigurationError(
                f"{variable('redis_url')} is not set and no `up` runs here: expected the Redis "
                "that coturn publishes to, as redis://host:6379/0"
            )
        settings = _settings(redis_url=found)
    service.collect(settings, stop_on_signals())


@app.command(hidden=True)
def load() -> None:
    """Load the spool into Postgres: a part of `collect`."""
    service.load(_settings(), stop_on_signals())


@app.command()
def schedule() -> None:
    """Run the jobs: settle, roll up, make partitions."""
    service.schedule(_settings(), stop_on_signals())


app.command(name="simulate")(simulate_command(_settings))


@app.command(hidden=True)
def demo(
    directory: Annotated[Path, typer.Option(help="Where the demonstration keeps its data.")] = Path(
        ".demo"
    ),
) -> None:
    """See it work: servers, a simulated fleet, the books."""
    sys.exit(demonstration.run(directory))


@app.command(hidden=True)
def health() -> None:
    """Say what is wrong, in words; exit 1 when anything is."""
    troubles = service.health(_settings())
    for trouble in troubles:
        warn(trouble)
    sys.exit(1 if troubles else 0)


@app.command()
def config(as_json: Json = False) -> None:
    """Print the settings in force and where each came from; secrets masked."""
    settings = _settings()
    origins = settings.origins()
    rows = [
        {"variable": variable(name), "value": value, "origin": origins[name]}
        for name, value in settings.masked().items()
    ]
    _write(rows, {"variable": "variable", "value": "value", "origin": "from"}, as_json=as_json)


@db.command()
def upgrade() -> None:
    """Bring the database to this version's schema."""
    with service.database(_settings()) as engine:
        sys.stdout.write(f"{migrations.upgrade(engine)}\n")


@db.command()
def current() -> None:
    """Print the database's revision; exit 1 when it is not this version's."""
    settings = _settings()
    with service.database(settings) as engine:
        found = migrations.current(engine)
    sys.stdout.write(f"{found or 'none'}\n")
    if found != migrations.head():
        warn(f"this version needs {migrations.head()}: run `turn-accounting db upgrade`")
        sys.exit(1)


@job.command("run")
def run_job(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(JOBS)}.")],
) -> None:
    """Run one job now, to its end."""
    chosen = JOBS.get(name)
    if chosen is None:
        raise UsageError(f"no job {name!r}: expected one of {', '.join(JOBS)}")
    with service.database(_settings(), service.WRITER) as engine:
        migrations.require_head(engine)
        done = chosen.run(engine)
    warn(f"{name}: {done} {chosen.unit}")


@realm.command("list")
def realm_list(
    name: Annotated[str | None, typer.Argument(help="Only this realm.")] = None,
    as_json: Json = False,
) -> None:
    """List the rules of realms, each with the day from which it holds."""
    with service.database(_settings(), service.WRITER) as engine:
        rows = list(list_rules(engine, name))
    columns = {
        "realm": "realm",
        "holds_from": "from",
        "time_zone": "time zone",
        "anchor_day": "anchor day",
        "grace_seconds": "grace s",
        "username_rule": "usernames",
        "separator": "separator",
    }
    _write(rows, columns, as_json=as_json, empty="No realm is known yet.")


@realm.command("set")
def realm_set(
    name: Annotated[str, typer.Argument(help="The realm; '' for the one without a name.")],
    time_zone: Annotated[
        str | None, typer.Option("--time-zone", "--timezone", help="Such as Europe/Berlin.")
    ] = None,
    anchor_day: Annotated[
        int | None,
        typer.Option("--anchor-day", min=1, max=28, help="Day on which billing periods begin."),
    ] = None,
    grace: Annotated[
        int | None,
        typer.Option(
            "--grace-seconds", "--grace", min=0, help="Seconds past its lifetime until expiry."
        ),
    ] = None,
    username_rule: Annotated[
        UsernameRule | None,
        typer.Option("--username-rule", help="How usernames name users; rest: TURN REST."),
    ] = None,
    separator: Annotated[
        str | None, typer.Option("--separator", help="Between time and user; ':' in coturn.")
    ] = None,
    holds_from: Annotated[
        str | None,
        typer.Option("--from", help="Day from which it holds, YYYY-MM-DD, midnight in its zone."),
    ] = None,
) -> None:
    """Set rules of a realm. What is not named stays."""
    settings = _settings()
    if time_zone is not None:
        _check_zone(time_zone)
    if separator == "":
        raise UsageError("--separator is empty: expected at least one character")
    changes = {
        field: value
        for field, value in {
            "time_zone": time_zone,
            "anchor_day": anchor_day,
            "grace_seconds": grace,
            "username_rule": username_rule,
            "separator": separator,
        }.items()
        if value is not None
    }
    if not changes:
        raise UsageError("nothing to set: name at least one rule, such as --time-zone")
    with service.database(settings, service.WRITER) as engine:
        migrations.require_head(engine)
        set_rule(
            engine,
            name,
            changes,
            default=service.default_rule(settings),
            holds_from=None if holds_from is None else _day(holds_from),
            now=datetime.now(UTC),
        )
        rows = list(list_rules(engine, name))
    for row in rows:
        since = row["holds_from"]
        warn(f"realm {name!r}: {row['time_zone']} from {since or 'the beginning'}")


@source.command("list")
def source_list(as_json: Json = False) -> None:
    """List the sources and how far each is captured, loaded and settled."""
    columns = {
        "source": "source",
        "mode": "mode",
        "epoch": "epoch",
        "position": "position",
        "captured_until": "captured until",
        "loaded_until": "loaded until",
        "settled_until": "settled until",
        "retired_at": "retired",
    }
    _query(reporting.sources(), columns, as_json=as_json, empty="No source is known yet.")


@source.command("retire")
def source_retire(name: Annotated[str, typer.Argument(help="The source.")]) -> None:
    """Declare a source gone for good: no period waits for it any more."""
    with service.database(_settings(), service.WRITER) as engine:
        retire_source(engine, name)
    warn(f"source {name!r} is retired")


@app.command()
def sessions(
    realm: Realm = None,
    user: User = None,
    since: Since = None,
    until: Until = None,
    live: Annotated[bool, typer.Option("--live", help="Only those that live.")] = False,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="So many at most.")] = None,
    as_json: Json = False,
) -> None:
    """List sessions, newest first. Times without a zone are UTC."""
    if limit is None and not as_json:
        limit = 100
    query = reporting.sessions(
        realm=realm, user=user, since=_time(since), until=_time(until), live=live, limit=limit
    )
    columns = {
        "realm": "realm",
        "user_id": "user",
        "allocation_id": "allocation",
        "started_at": "started",
        "ended_at": "ended",
        "end_cause": "cause",
        "transport": "transport",
        "received_bytes": "received B",
        "sent_bytes": "sent B",
        "peer_received_bytes": "peer received B",
        "peer_sent_bytes": "peer sent B",
        "estimated": "estimated",
        "disputed": "disputed",
    }
    _query(query, columns, as_json=as_json, empty="No sessions.")


@app.command()
def usage(
    realm: Realm = None,
    user: User = None,
    since: Since = None,
    until: Until = None,
    by: Annotated[str, typer.Option("--by", help="user or realm.")] = "user",
    per: Annotated[str, typer.Option("--per", help="hour, day or month.")] = "month",
    as_json: Json = False,
) -> None:
    """List usage per user or realm. Times without a zone are in the realm's."""
    if by not in {"user", "realm"}:
        raise UsageError(f"--by {by!r}: expected user or realm")
    if per not in {"hour", "day", "month"}:
        raise UsageError(f"--per {per!r}: expected hour, day or month")
    if by == "realm" and user is not None:
        raise UsageError("--user goes with --by user")
    query = reporting.usage(
        of="user" if by == "user" else "realm",
        length="hour" if per == "hour" else "day" if per == "day" else "month",
        realm=realm,
        user=user,
        since=_time(since),
        until=_time(until),
    )
    columns = {
        "starts_at": per,
        "realm": "realm",
        "user_id": "user",
        "sessions_started": "sessions",
        "session_seconds": "seconds",
        "received_bytes": "received B",
        "sent_bytes": "sent B",
        "peer_received_bytes": "peer received B",
        "peer_sent_bytes": "peer sent B",
        "estimated_bytes": "estimated B",
        "peak_sessions": "peak",
    }
    del columns["peak_sessions" if by == "user" else "user_id"]
    _query(query, columns, as_json=as_json, empty="No usage.")


def _query(query: Any, columns: Mapping[str, str], *, as_json: bool, empty: str) -> None:
    with (
        service.database(_settings(), service.READER) as engine,
        lost_connections(),
        engine.connect() as connection,
    ):
        rows = reporting.rows(connection, query)
        if as_json:
            write_json(rows)
        else:
            _write([_in_zone(row) for row in rows], columns, as_json=False, empty=empty)


def _in_zone(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """For people, a bucket's times in its own zone."""
    if "time_zone" not in row:
        return row
    zone = ZoneInfo(row["time_zone"])
    return {
        name: value.astimezone(zone) if isinstance(value, datetime) else value
        for name, value in row.items()
    }


def _write(
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str],
    *,
    as_json: bool,
    empty: str = "Nothing.",
) -> None:
    if as_json:
        write_json(rows)
    else:
        write_table("", rows, columns, empty=empty)


def _time(value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        raise UsageError(f"{value!r} is no time: expected ISO 8601, such as 2026-11-22") from None


def _day(value: str) -> date:
    try:
        return date.fromisoformat(value)
    except ValueError:
        raise UsageError(f"{value!r} is no day: expected YYYY-MM-DD") from None


def _check_zone(name: str) -> None:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise UsageError(
            f"--time-zone {name!r} is not known: expected a name such as Europe/Berlin"
        ) from None
