"""The command ``trace``: a statement's line or an adjustment, its sessions and their reports."""

from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from typing import Annotated, Any, Final
from uuid import UUID

import typer

from accounting.audit.trace import Trace, TracedReport, TracedSession, trace, trace_adjustment
from accounting.cli.arguments import JsonOption, name_argument, period_day
from accounting.cli.audit import dropped_notice
from accounting.cli.output import write_message, write_record
from accounting.cli.resources import command_settings, writer_engine
from accounting.domain.calendar import from_micros
from accounting.domain.coturn_messages import ReportKind, Side
from accounting.domain.counters import COUNTERS
from accounting.errors import UsageError

_NUMBERS: Final = (*COUNTERS, "session_seconds")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("trace")(trace_line)


def trace_line(
    realm: Annotated[str | None, typer.Argument(parser=name_argument, help="The realm.")] = None,
    period: Annotated[
        date | None, typer.Argument(parser=period_day, help="Its first day, YYYY-MM-DD.")
    ] = None,
    user: Annotated[
        str | None, typer.Option("--user", parser=name_argument, help="The user_id.")
    ] = None,
    user_key: Annotated[
        str | None, typer.Option("--user-key", help="The user_key of a user without a name.")
    ] = None,
    adjustment: Annotated[
        str | None, typer.Option("--adjustment", help="Instead: an adjustment_id.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Trace a statement's line or an adjustment to its sessions and their reports."""
    by_line = realm is not None and period is not None and (user is None) != (user_key is None)
    by_adjustment = adjustment is not None and all(
        value is None for value in (realm, period, user, user_key)
    )
    if not by_line and not by_adjustment:
        raise UsageError("expected REALM PERIOD and --user or --user-key, or --adjustment")
    with writer_engine(command_settings()) as engine:
        if adjustment is not None:
            result = trace_adjustment(engine, _parse_uuid("--adjustment", adjustment))
        else:
            assert realm is not None
            assert period is not None
            key = None if user_key is None else _parse_uuid("--user-key", user_key)
            result = trace(engine, realm, period, user=user, key=key)
    _write_trace(result, as_json=as_json)
    if result.partly_dropped is not None:
        write_message(dropped_notice(result.partly_dropped))
    if not result.adds_up:
        write_message("it does not add up: `turn-accounting verify` names what is wrong")
        raise typer.Exit(1)
    write_message(f"adds up: {len(result.sessions):,} sessions")


def _write_trace(result: Trace, *, as_json: bool) -> None:
    for line in result.lines:
        label = "statement" if line.adjustment_id is None else "adjustment"
        record = {
            "line": label,
            "realm": result.realm,
            "period": result.period,
            "user_key": result.user_key,
            "adjustment_id": line.adjustment_id,
            "reason": line.reason,
            "manual": line.manual,
            **_by_name(line.numbers),
        }
        write_record(label, record, as_json=as_json)
    for session in result.sessions:
        _write_session(session, as_json=as_json)


def _write_session(traced: TracedSession, *, as_json: bool) -> None:
    session = traced.session
    session_id = UUID(bytes=session.session_id)
    record = {
        "line": "session",
        "session_id": session_id,
        "source": traced.source,
        "allocation_id": f"{traced.allocation_id:018d}",
        "started_at": from_micros(session.started_at),
        "ended_at": None if session.ended_at is None else from_micros(session.ended_at),
        "estimated": session.estimated,
        "disputed": session.disputed,
        **_by_name(traced.numbers),
    }
    write_record("session", record, as_json=as_json)
    if traced.dropped_counters is not None:
        dropped = {"line": "dropped", "session_id": session_id, **_by_name(traced.dropped_counters)}
        write_record("  dropped reports", dropped, as_json=as_json)
    for report in traced.reports:
        record = _report_record(session_id, report)
        write_record(f"  {record['kind']}", record, as_json=as_json)


def _report_record(session_id: UUID, traced: TracedReport) -> dict[str, Any]:
    report = traced.report
    return {
        "line": "report",
        "session_id": session_id,
        "source": traced.source,
        "epoch": report.epoch,
        "position": report.position,
        "received_at": from_micros(report.received_at),
        "kind": ReportKind(report.kind).name.lower(),
        "side": None if report.side is None else Side(report.side).name.lower(),
        "late": traced.late,
        **_by_name(traced.counters),
    }


def _by_name(numbers: Sequence[int]) -> dict[str, int | Decimal]:
    """The eight counters, or those and the session time, by name."""
    named: dict[str, int | Decimal] = dict(zip(_NUMBERS, numbers, strict=False))
    if len(numbers) == len(_NUMBERS):
        named["session_seconds"] = Decimal(numbers[-1]).scaleb(-6)
    return named


def _parse_uuid(option: str, value: str) -> UUID:
    try:
        return UUID(value)
    except ValueError:
        raise UsageError(f"{option} {value!r}: expected a UUID, as the views show it") from None
