"""The command ``statement``: a closed period as its bill, or what the bill would be now."""

import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Annotated, Any, Final

import typer

from accounting.cli.arguments import PeriodDay, RealmName, User, list_options
from accounting.cli.gaps import gap_listing
from accounting.cli.output import write
from accounting.cli.reports import TRAFFIC_COLUMNS, USAGE_FIELDS, USAGE_SUMS
from accounting.cli.resources import command_settings, open_reader
from accounting.cli.rows import (
    BYTE_COLUMNS,
    ListForm,
    Listing,
    arranged,
    in_own_zone,
    in_zone,
    sum_rows,
    write_list,
)
from accounting.cli.table import UNLIMITED, Column, Kind, split_words
from accounting.domain.human_text import visible_name
from accounting.domain.periods import describe_wait
from accounting.domain.statements import StatementCutoff
from accounting.domain.time_zones import time_zone
from accounting.errors import UsageError
from accounting.plurals import counted
from accounting.reporting import billing_queries
from accounting.reporting.completeness import (
    Counted,
    NotCaptured,
    not_captured_in,
    span_waits_for,
)
from accounting.reporting.statement import Statement, find_period, lines_query, read_statement
from accounting.reporting.view_query import AS_IT_IS, TRAFFIC, Arrangement

_LINES: Final = Listing(
    plain={
        "user_id": "user",
        "sessions_started": "sessions",
        "session_seconds": "seconds",
        **BYTE_COLUMNS,
        "estimated_bytes": "estimated B",
    },
    columns=(
        Column(field="user_id", heading="user", kind=Kind.NAME),
        Column(field="sessions_started", heading="sessions", kind=Kind.COUNT),
        Column(field="session_seconds", heading="time", kind=Kind.SECONDS),
        *TRAFFIC_COLUMNS,
    ),
    rank=TRAFFIC,
    empty="No usage.",
    summed=USAGE_SUMS,
    sum_fields=USAGE_FIELDS,
)
_ADJUSTMENTS: Final = Listing(
    plain={
        "period": "corrects",
        "posted_in": "posted in",
        "user_id": "user",
        "session_seconds": "seconds",
        **BYTE_COLUMNS,
        "reason": "reason",
        "author": "author",
    },
    columns=(
        Column(field="period", heading="corrects"),
        Column(field="posted_in", heading="posted in", rank=2),
        Column(field="user_id", heading="user", kind=Kind.NAME),
        Column(field="session_seconds", heading="time", kind=Kind.SECONDS, rank=1),
        Column(field="received_bytes", heading="received", kind=Kind.BYTES),
        Column(field="sent_bytes", heading="sent", kind=Kind.BYTES),
        Column(field="author", heading="author", kind=Kind.NAME, rank=3),
        Column(field="reason", heading="reason", kind=Kind.WORDS),
    ),
    rank=TRAFFIC,
    empty="",
    summed=("session_seconds", "received_bytes", "sent_bytes"),
)
_GAPS: Final = gap_listing()


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("statement")(show_statement)


@list_options(lambda: _LINES)
def show_statement(
    realm: RealmName,
    period: PeriodDay,
    user: User = None,
    adjustments: Annotated[
        bool,
        typer.Option(
            "--adjustments", help="With --json or --csv: its adjustments instead of its lines."
        ),
    ] = False,
    preview: Annotated[
        bool,
        typer.Option(
            "--preview", help="Also a period that is not closed, as it would be now: it may change."
        ),
    ] = False,
    *,
    form: ListForm,
) -> None:
    """Show a closed period: lines, total, gaps and adjustments.

    Also says how much of it is estimated. With --preview also what the invoice of an
    open period would be now; in JSON its lines have no closed_at and no digest.
    """
    if adjustments and not form.for_programs:
        raise UsageError("--adjustments goes with --json: else a statement shows them anyway")
    listing = _ADJUSTMENTS if adjustments else _LINES
    arrangement = listing.arrangement(form)
    with open_reader(command_settings(), leaves_out_cells=False) as reader:
        if form.for_programs:
            row = find_period(reader, realm, period, user, preview=preview)
            query = (
                billing_queries.adjustments(
                    realm, period, user, by="period", arrangement=arrangement
                )
                if adjustments
                else lines_query(row, user, arrangement)
            )
            with reader.open_rows(query) as rows:
                write_list(rows, listing, form, arrangement)
            return
        statement = read_statement(reader, realm, period, user, preview=preview)
        is_closed = statement.period["closed_at"] is not None
        not_counted = None if is_closed else span_waits_for(reader, realm, Counted.USAGE)
        lapses = [] if is_closed else not_captured_in(reader, statement.period["ends_at"])
    write_statement(realm, period, statement, form, arrangement, lapses)
    if not_counted is not None:
        write(f"\nNot all is counted yet: {not_counted}.\n")


def write_statement(
    realm: str,
    day: date,
    statement: Statement,
    form: ListForm,
    arrangement: Arrangement,
    lapses: Collection[NotCaptured] = (),
) -> None:
    """Write a statement for people."""
    period, lines = in_own_zone(statement.period), statement.lines
    if period["closed_at"] is None:
        closed_at = "a preview: not closed, may change"
    else:
        closed_at = f"closed {period['closed_at'].astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"
    span = (
        f"{period['starts_at']:%Y-%m-%d %H:%M} to {period['ends_at']:%Y-%m-%d %H:%M} "
        f"{period['time_zone']}"
    )
    if sys.stdout.isatty():
        title = f"Realm {visible_name(realm)}, period {day}, {closed_at}"
        head = [*split_words(title, shutil.get_terminal_size().columns), span]
        write("".join(f"{line}\n" for line in head) + "\n")
    else:
        write(f"Realm '{realm}', period {day}: {span}, {closed_at}\n\n")
    all_sums = sum_rows(lines, _LINES.summed) if form.top is not None else None
    if not write_list(arranged(lines, arrangement), _LINES, form, arrangement, all_sums=all_sums):
        write(f"{_LINES.empty}\n")
    write(f"\n{_estimated(lines)}\n")
    if period["closed_at"] is None:
        waits = describe_wait(period["waits_for"], period["ends_at"], period["time_zone"])
        write(f"Waits for: {waits}\n")
    cutoff = lines[0]["cutoff"] if lines else None
    excluded = StatementCutoff.from_text(cutoff).excluded_sources if cutoff else ()
    if excluded:
        write(f"Closed without: {', '.join(excluded)}\n")
    zone = time_zone(period["time_zone"])
    whole = replace(form, top=None, sort=None, limit=None)
    gaps = [in_zone(row, zone) for row in statement.gaps]
    no_gap = "No gap of it is recorded yet." if lapses else "No gap lies in it."
    _write_section("Gaps", gaps, _GAPS, whole, no_gap, statement.now)
    for lapse in lapses:
        text = f"Source {visible_name(lapse.source)}: {lapse}."
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else UNLIMITED
        write("\n".join(split_words(text, width)) + "\n")
    _write_section(
        "Adjustments of this period",
        statement.adjustments,
        _ADJUSTMENTS,
        whole,
        "No adjustments correct this period.",
    )
    _write_section(
        "Adjustments of earlier periods, billed with this one",
        statement.posted,
        _ADJUSTMENTS,
        whole,
        "No adjustments of earlier periods are billed with it.",
    )


def _write_section(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    listing: Listing,
    form: ListForm,
    empty: str,
    now: datetime | None = None,
) -> None:
    write(f"\n{title}\n" if rows else f"\n{empty}\n")
    write_list(rows, listing, form, AS_IT_IS, now=now)


def _estimated(lines: Sequence[Mapping[str, Any]]) -> str:
    estimated = sum(row["estimated_bytes"] for row in lines)
    if not estimated:
        return "Nothing is estimated."
    users = sum(row["estimated_bytes"] > 0 for row in lines)
    total = sum(row["received_bytes"] + row["sent_bytes"] for row in lines)
    return (
        f"Estimated: {estimated:,} of {total:,} bytes, of {users:,} of "
        f"{counted(len(lines), 'user')}:\n"
        "interims were lost, and these bytes are known from totals only"
    )
