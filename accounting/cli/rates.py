"""The command ``rates``: what each server does now, as a load balancer would read it."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import typer

from accounting.cli.arguments import Realm, list_options
from accounting.cli.output import flush_output, write_message
from accounting.cli.resources import command_settings, open_reader
from accounting.cli.rows import ListForm, Listing, write_query
from accounting.cli.table import Column, Kind
from accounting.domain.human_text import second
from accounting.reporting import view_queries
from accounting.reporting.completeness import read_progress
from accounting.reporting.view_queries import RATE_SUMS
from accounting.reporting.view_query import RATE

_LONG_RATE: Final = "long_rate"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("rates")(rates)


@list_options(lambda: _RATES)
def rates(realm: Realm = None, *, form: ListForm) -> None:
    """List what each server does now, by realm.

    Open sessions, sessions that started in the last minute, and bytes per second of
    the last minute and of the last five, up to the last whole ten seconds. A server
    without a session and without traffic has no row. coturn reports a session's
    traffic every few thousand packets: a single minute says little of few sessions.
    What is not settled yet is in no rate: a line on standard error says so where more
    than a minute is missing; programs compare `settled_until` in `source list`.

    Over all realms, and for a load balancer: "Where to send the next session" in
    docs/sql.md of the project.
    """
    settings = command_settings()
    write_query(
        settings,
        lambda arrangement: view_queries.rates(realm, arrangement),
        _RATES,
        form,
        realm=realm,
    )
    if form.for_programs:
        return
    flush_output()
    with open_reader(settings) as reader:
        progress = read_progress(reader)
    if progress.is_late and progress.until is not None:
        write_message(
            f"counted until {second(progress.until)} UTC: what was reported since then is in no "
            "rate yet"
        )


def _legend(rows: Sequence[Mapping[str, Any]]) -> str:
    return f"over 1 and 5 minutes until {second(rows[0]['until_at'])} UTC"


def _rate(minutes: int) -> Any:
    names = [f"{side}_bytes_per_second_{minutes}m" for side in ("received", "sent")]
    return lambda row: sum(row[name] for name in names)


_RATES: Final[Listing] = Listing(
    plain={
        "realm": "realm",
        "server_address": "server",
        "until_at": "until",
        "live_sessions": "live",
        "sessions_started_1m": "started 1m",
        "sessions_started_5m": "started 5m",
        "received_bytes_per_second_1m": "received B/s 1m",
        "sent_bytes_per_second_1m": "sent B/s 1m",
        "received_bytes_per_second_5m": "received B/s 5m",
        "sent_bytes_per_second_5m": "sent B/s 5m",
    },
    columns=(
        Column(field="realm", heading="realm", kind=Kind.NAME),
        Column(field="server_address", heading="server", kind=Kind.NAME),
        Column(field="live_sessions", heading="live", kind=Kind.COUNT),
        Column(field="sessions_started_1m", heading="started", kind=Kind.COUNT, rank=1),
        Column(field="received_bytes_per_second_1m", heading="received/s", kind=Kind.BYTES, rank=2),
        Column(field="sent_bytes_per_second_1m", heading="sent/s", kind=Kind.BYTES, rank=2),
        Column(field=RATE, heading="total/s", kind=Kind.BYTES),
        Column(field=_LONG_RATE, heading="5 min", kind=Kind.BYTES, rank=1),
    ),
    rank=RATE,
    empty="No server has an open session or traffic of the last five minutes.",
    summed=RATE_SUMS,
    sum_fields={RATE: _rate(1), _LONG_RATE: _rate(5)},
    legend=_legend,
)
