"""The command ``statement``: a closed period as its bill."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date
from typing import Annotated, Any, Final

import typer

from accounting.cli.arguments import JsonOption, PeriodDay, RealmName, User
from accounting.cli.output import write, write_json
from accounting.cli.resources import command_settings, reader_engine
from accounting.cli.rows import BYTE_COLUMNS, in_own_zone, in_zone
from accounting.cli.table import write_table
from accounting.domain.statements import StatementCutoff
from accounting.domain.time_zones import time_zone
from accounting.errors import UsageError
from accounting.reporting import view_queries
from accounting.reporting.reader import open_rows
from accounting.reporting.statement import Statement, closed_period, read_statement

_LINE_COLUMNS: Final = {
    "user_id": "user",
    "sessions_started": "sessions",
    "session_seconds": "seconds",
    **BYTE_COLUMNS,
    "estimated_bytes": "estimated B",
}
_ADJUSTMENT_COLUMNS: Final = {
    "period": "corrects",
    "posted_in": "posted in",
    "user_id": "user",
    "session_seconds": "seconds",
    **BYTE_COLUMNS,
    "reason": "reason",
    "author": "author",
}
_GAP_COLUMNS: Final = {
    "gap_id": "gap",
    "source": "source",
    "from_at": "from",
    "to_at": "to",
    "cause": "cause",
    "detail": "detail",
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("statement")(show_statement)


def show_statement(
    realm: RealmName,
    period: PeriodDay,
    user: User = None,
    adjustments: Annotated[
        bool,
        typer.Option("--adjustments", help="With --json: its adjustments instead of its lines."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a closed period: its lines, how much is estimated, its gaps and adjustments."""
    if adjustments and not as_json:
        raise UsageError("--adjustments goes with --json: else a statement shows them anyway")
    with reader_engine(command_settings()) as engine:
        if as_json:
            closed_period(engine, realm, period, user)
            query = (
                view_queries.adjustments(realm, period, user, by="period")
                if adjustments
                else view_queries.statements(realm, period, user)
            )
            with open_rows(engine, query) as rows:
                write_json(rows)
            return
        statement = read_statement(engine, realm, period, user)
    _write_statement(realm, period, statement)


def _write_statement(realm: str, day: date, statement: Statement) -> None:
    period, lines = in_own_zone(statement.period), statement.lines
    write(
        f"Realm '{realm}', period {day}: {period['starts_at']:%Y-%m-%d %H:%M} to "
        f"{period['ends_at']:%Y-%m-%d %H:%M} {period['time_zone']}, closed "
        f"{period['closed_at'].astimezone(UTC):%Y-%m-%d %H:%M:%SZ}\n\n"
    )
    write_table("", lines, _LINE_COLUMNS, empty="No usage.")
    write(f"\n{_estimated(lines)}\n")
    excluded = StatementCutoff.from_text(lines[0]["cutoff"]).excluded_sources if lines else ()
    if excluded:
        write(f"Closed without: {', '.join(excluded)}\n")
    zone = time_zone(period["time_zone"])
    _write_section(
        "Gaps", [in_zone(row, zone) for row in statement.gaps], _GAP_COLUMNS, "No gap lies in it."
    )
    _write_section(
        "Adjustments of this period",
        statement.adjustments,
        _ADJUSTMENT_COLUMNS,
        "Nothing corrects it.",
    )
    _write_section(
        "Adjustments of earlier periods, billed with this one",
        statement.posted,
        _ADJUSTMENT_COLUMNS,
        "Nothing of earlier.",
    )


def _write_section(
    title: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], empty: str
) -> None:
    write("\n")
    write_table(title, rows, columns, empty=empty)


def _estimated(lines: Sequence[Mapping[str, Any]]) -> str:
    estimated = sum(row["estimated_bytes"] for row in lines)
    if not estimated:
        return "Nothing is estimated."
    users = sum(row["estimated_bytes"] > 0 for row in lines)
    total = sum(row["received_bytes"] + row["sent_bytes"] for row in lines)
    return (
        f"Estimated: {estimated:,} of {total:,} bytes, of {users} of {len(lines)} users: "
        "interims were lost, and these bytes are known from totals only"
    )
