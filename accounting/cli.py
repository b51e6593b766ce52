"""The command ``turn-accounting``: the one place where settings, servers and jobs come together.

Data goes to standard output, everything else to standard error. Exit: 0 done, 1 a check failed or
a difference was found, 2 wrong use or configuration, 3 not yet.
"""

import difflib
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime
from itertools import chain
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo, available_timezones

import typer

from accounting import delivery_commands, service
from accounting import demo as demonstration
from accounting import doctor as examination
from accounting.billing_commands import mount_billing
from accounting.config import Settings, load_settings, variable
from accounting.errors import (
    AccountingError,
    ConfigurationError,
    NotAllowed,
    NotYet,
    UsageError,
)
from accounting.jobs.realms import list_rules, realm_names, set_rule
from accounting.jobs.registry import JOBS
from accounting.jobs.sources import retire_source
from accounting.logs import configure_logging
from accounting.model.identity import UsernameRule
from accounting.processes import stop_on_signals
from accounting.proof_commands import mount_proof
from accounting.simulation import simulate_command
from accounting.store import migrations, reporting
from accounting.store.database import lost_connections
from accounting.terminal import (
    flush_output,
    from_argument,
    prepare_output,
    warn,
    write,
    write_finding,
    write_json,
    write_table,
)

WrongUse: type[BaseException] | None = typer.BadParameter.__base__
"""What the command-line library raises for wrong use; it exports this class under no name."""
LARGEST_INTEGER = 2**31 - 1

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
Realm = Annotated[
    str | None, typer.Option("--realm", parser=from_argument, help="Only this realm.")
]
User = Annotated[
    str | None, typer.Option("--user", parser=from_argument, help="Only this user_id.")
]
Since = Annotated[
    str | None, typer.Option("--since", "--from", help="From this time on, ISO 8601.")
]
Until = Annotated[str | None, typer.Option("--until", "--to", help="Before this time, ISO 8601.")]


def main() -> None:
    """Run the command line; errors of ours end in one line and their exit code."""
    assert WrongUse is not None
    prepare_output()
    try:
        code = app(prog_name="turn-accounting", standalone_mode=False)
        flush_output()
    except WrongUse as error:
        warn(_in_one_line(error))
        sys.exit(2)
    except (ConfigurationError, UsageError) as error:
        warn(str(error))
        sys.exit(2)
    except NotYet as error:
        warn(str(error))
        sys.exit(3)
    except AccountingError as error:
        warn(str(error))
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _in_one_line(error: Any) -> str:
    command = "turn-accounting" if error.ctx is None else error.ctx.command_path
    if type(error).__name__ == "NoArgsIsHelpError":
        return f"no command is given: see `{command} --help`"
    message = " ".join(error.format_message().split()).rstrip(".")
    return f"{message}: see `{command} --help`"


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
    write(f"{line}\n")
    flush_output()


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
delivery_commands.mount(app, _settings)
mount_billing(app, _settings)
mount_proof(app, _settings)


@app.command(hidden=True)
def demo(
    directory: Annotated[Path, typer.Option(help="Where the demonstration keeps its data.")] = Path(
        ".demo"
    ),
) -> None:
    """See it work: servers, a simulated fleet, the books."""
    raise typer.Exit(demonstration.run(directory))


@app.command(hidden=True)
def health() -> None:
    """Say what is wrong, in words; exit 1 when anything is."""
    found = service.health(_settings())
    for sentence in (*found.troubles, *found.suspicions):
        warn(sentence)
    raise typer.Exit(1 if found.troubles else 0)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Examine Redis, Postgres, spool, clocks and events; exit 1 when something must be mended."""
    settings = _settings()
    found = examination.examine(
        settings,
        redis_url=service.redis_url(settings),
        database_url=service.find_database(settings),
    )
    is_bad = False
    for finding in found:
        is_bad |= finding.level is examination.Level.ERROR
        if as_json:
            write_json([asdict(finding)])
        else:
            write_finding(
                finding.level, f"{finding.subject}: {finding.check}", finding.seen, finding.advice
            )
        flush_output()
    raise typer.Exit(1 if is_bad else 0)


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
        write(f"{migrations.upgrade(engine)}\n")


@db.command()
def current() -> None:
    """Print the database's revision; exit 1 when it is not this version's."""
    settings = _settings()
    with service.database(settings) as engine:
        found = migrations.current(engine)
    write(f"{found or 'none'}\n")
    if found != migrations.head():
        warn(f"this version needs {migrations.head()}: run `turn-accounting db upgrade`")
        raise typer.Exit(1)


@job.command("run")
def run_job(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(JOBS)}.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would do; retain knows this.")
    ] = False,
) -> None:
    """Run one job now, to its end."""
    if name not in JOBS:
        raise UsageError(f"no job {name!r}: expected one of {', '.join(JOBS)}")
    settings = _settings()
    chosen = service.jobs(settings)[name]
    if dry_run and chosen.preview is None:
        raise UsageError(f"job {name!r} has no --dry-run: it only adds what is missing")
    with service.database(settings, service.WRITER) as engine:
        migrations.require_head(engine)
        if dry_run and chosen.preview is not None:
            for line in chosen.preview(engine):
                write(f"{line}\n")
            return
        done = chosen.run(engine)
    warn(f"{name}: {done} {chosen.unit}")


@realm.command("list")
def realm_list(
    name: Annotated[
        str | None, typer.Argument(parser=from_argument, help="Only this realm.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the rules of realms, each with the time from which it holds."""
    with service.database(_settings(), service.WRITER) as engine:
        migrations.require_head(engine)
        rows = list(list_rules(engine, name))
        if name is not None and not rows:
            raise _unknown("realm", name, realm_names(engine))
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
    name: Annotated[
        str, typer.Argument(parser=from_argument, help="The realm; '' for the one without a name.")
    ],
    time_zone: Annotated[
        str | None, typer.Option("--time-zone", "--timezone", help="Such as Europe/Berlin.")
    ] = None,
    anchor_day: Annotated[
        int | None,
        typer.Option("--anchor-day", min=1, max=31, help="Day on which billing periods begin."),
    ] = None,
    grace: Annotated[
        int | None,
        typer.Option(
            "--grace-seconds",
            "--grace",
            min=0,
            max=LARGEST_INTEGER,
            help="Seconds past its lifetime until expiry.",
        ),
    ] = None,
    username_rule: Annotated[
        UsernameRule | None,
        typer.Option("--username-rule", help="How usernames name users; rest: TURN REST."),
    ] = None,
    separator: Annotated[
        str | None,
        typer.Option("--separator", help="Between time and user; ':' in coturn."),
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
    if separator is not None and not (separator and separator.isprintable()):
        raise UsageError(f"--separator {separator!r}: expected printable characters, such as ':'")
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
        rows = [_in_zone(row) for row in list_rules(engine, name)]
    for row in rows:
        since = row["holds_from"]
        warn(f"realm '{name}': {row['time_zone']} from {since or 'the beginning'}")


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
def source_retire(
    name: Annotated[str, typer.Argument(parser=from_argument, help="The source.")],
) -> None:
    """Declare a source gone for good: no period waits for it any more."""
    with service.database(_settings(), service.WRITER) as engine:
        migrations.require_head(engine)
        retire_source(engine, name)
    warn(f"source {name!r} is retired")


@app.command()
def sessions(
    realm: Realm = None,
    user: User = None,
    since: Since = None,
    until: Until = None,
    live: Annotated[bool, typer.Option("--live", help="Only those that live.")] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=1,
            max=LARGEST_INTEGER,
            help="So many at most; without --json 100 unless told.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the sessions that lived in a span of time, newest first; times are UTC unless told."""
    begin, end = _span(since, until)
    if limit is None and not as_json:
        limit = 100
    query = reporting.sessions(
        realm=realm, user=user, since=begin, until=end, live=live, limit=limit
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
    _query(query, columns, as_json=as_json, empty="No sessions.", realm=realm)


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
    """List usage per user or realm; times without a zone are in the realm's."""
    begin, end = _span(since, until)
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
        since=begin,
        until=end,
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
    _query(query, columns, as_json=as_json, empty="No usage.", realm=realm)


def _query(
    query: Any,
    columns: Mapping[str, str],
    *,
    as_json: bool,
    empty: str,
    realm: str | None = None,
) -> None:
    """Write the rows of a query; with ``realm``, none at all may mean that it is a slip."""
    settings = _settings()
    with (
        service.database(settings, service.READER) as engine,
        lost_connections(),
        engine.connect() as connection,
    ):
        rows = reporting.rows(connection, query)
        first = next(rows, None)
        if first is not None:
            every = chain([first], rows)
            if as_json:
                write_json(every)
            else:
                _write([_in_zone(row) for row in every], columns, as_json=False)
            return
    if realm is not None:
        _check_realm(settings, realm)
    _write([], columns, as_json=as_json, empty=empty)


def _check_realm(settings: Settings, name: str) -> None:
    """Refuse a realm that nobody knows, as far as this user may see which are known."""
    try:
        with service.database(settings, service.WRITER) as engine:
            known = realm_names(engine)
    except NotAllowed:
        return
    if name not in known:
        raise _unknown("realm", name, known)


def _unknown(what: str, name: str, known: Collection[str]) -> UsageError:
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return UsageError(f"no {what} '{name}' is known: did you mean '{near[0]}'?")
    some = sorted(known)[:5]
    more = f" and {len(known) - len(some)} more" if len(known) > len(some) else ""
    listed = ", ".join(f"'{one}'" for one in some) + more if some else "none yet"
    return UsageError(f"no {what} '{name}' is known: known are {listed}")


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


def _span(since: str | None, until: str | None) -> tuple[datetime | None, datetime | None]:
    begin, end = _time(since), _time(until)
    if begin and end and (begin.tzinfo is None) == (end.tzinfo is None) and begin >= end:
        raise UsageError(f"--since {since} is not before --until {until}")
    return begin, end


def _time(value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        raise UsageError(f"{value!r} is no time: expected ISO 8601, such as 2026-11-22") from None


def _day(value: str) -> date:
    try:
        day = date.fromisoformat(value)
    except ValueError:
        raise UsageError(f"{value!r} is no day: expected YYYY-MM-DD") from None
    if not 1970 <= day.year < 9999:
        raise UsageError(f"{value!r} is no day of an account: expected one since 1970")
    return day


def _check_zone(name: str) -> None:
    if name not in available_timezones():
        near = difflib.get_close_matches(name, available_timezones(), n=1)
        raise UsageError(
            f"--time-zone {name!r} is not known: "
            f"expected a name such as {near[0] if near else 'Europe/Berlin'}"
        )
