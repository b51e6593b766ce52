"""The records of ``trace --json``: lines, sessions and reports."""

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from accounting.cli.output import flush_output, write_json
from accounting.domain.calendar import from_micros
from accounting.domain.coturn_messages import ReportKind, Side
from accounting.domain.counters import COUNTERS

if TYPE_CHECKING:
    from accounting.audit.trace_results import (
        SessionTrace,
        Trace,
        TracedReport,
        TracedSession,
    )
    from accounting.domain.session_fold import Report
    from accounting.front.trace import FrontTrace

_PUBLISHED: Final = tuple(f"published_{name}" for name in COUNTERS[:4])
"""What coturn published, of the side of the report; the eight counters are what that added."""
_NUMBERS: Final = (*COUNTERS, "session_seconds")


def part_records(result: "SessionTrace") -> Iterator[dict[str, Any]]:
    """One JSON object for each period that has a part of the session."""
    for part in result.parts:
        yield {
            "line": "period",
            "realm": result.realm,
            "period": part.period,
            "closed": part.is_closed,
            "user_key": result.user_key,
            **numbers_by_name(part.numbers),
        }


def write_line_records(result: "Trace | FrontTrace") -> None:
    """One JSON object for each line that was billed."""
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
            **numbers_by_name(line.numbers),
        }
        write_json([record])
    flush_output()


def write_session_records(part: "Trace", cell: str | None) -> None:
    """One JSON object for each session and report, on a front with the name of the cell."""
    for session in part.sessions:
        records = session_records(session)
        write_json(records if cell is None else ({**record, "cell": cell} for record in records))
    flush_output()


def session_records(traced: "TracedSession") -> Iterator[dict[str, Any]]:
    """A JSON object for a session, and one for each of its reports."""
    session = traced.session
    session_id = UUID(bytes=session.session_id)
    yield {
        "line": "session",
        "session_id": session_id,
        "source": traced.source,
        "allocation_id": f"{traced.allocation_id:018d}",
        "started_at": from_micros(session.started_at),
        "ended_at": None if session.ended_at is None else from_micros(session.ended_at),
        "estimated": session.estimated,
        "disputed": session.disputed,
        **numbers_by_name(traced.numbers),
    }
    if traced.dropped_counters is not None:
        yield {
            "line": "dropped",
            "session_id": session_id,
            **numbers_by_name(traced.dropped_counters),
        }
    for report in traced.reports:
        yield _report_record(session_id, report)


def _report_record(session_id: UUID, traced: "TracedReport") -> dict[str, Any]:
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
        **numbers_by_name(traced.counters),
        **dict(zip(_PUBLISHED, published_counters(report), strict=True)),
    }


def published_counters(report: "Report") -> Sequence[int]:
    """The four counters that coturn published."""
    return (
        report.received_packets,
        report.received_bytes,
        report.sent_packets,
        report.sent_bytes,
    )


def numbers_by_name(numbers: Sequence[int]) -> dict[str, int | Decimal]:
    """The eight counters, or those and the session time, by name."""
    named: dict[str, int | Decimal] = dict(zip(_NUMBERS, numbers, strict=False))
    if len(numbers) == len(_NUMBERS):
        named["session_seconds"] = Decimal(numbers[-1]).scaleb(-6)
    return named
