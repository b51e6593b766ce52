"""The command ``trace``: a statement's line, an adjustment or a session, and its reports."""

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from decimal import Decimal
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

import typer

from accounting.cli.arguments import JsonOption, name_argument
from accounting.cli.audit import dropped_notice
from accounting.cli.output import flush_output, write, write_json, write_message
from accounting.cli.progress import progress_line
from accounting.cli.resources import command_settings, writer_engine
from accounting.cli.terminal_text import can_encode, text_width
from accounting.domain.calendar import from_micros
from accounting.domain.coturn_messages import ReportKind, Side
from accounting.domain.counters import COUNTERS
from accounting.domain.human_text import (
    exact_text,
    human_bytes,
    human_seconds,
    second,
    visible,
    visible_name,
)
from accounting.domain.session_ids import parse_session_id, short_session_id
from accounting.errors import UsageError
from accounting.plurals import counted
from accounting.reporting.filters import period_day

if TYPE_CHECKING:
    from accounting.audit.trace import (
        PeriodPart,
        SessionTrace,
        Trace,
        TracedReport,
        TracedSession,
    )
    from accounting.billing.statement_queries import BilledLine
    from accounting.domain.session_fold import Report
    from accounting.front.trace import FrontTrace

_MARKS: Final = (("\u251c\u2500 ", "\u2502  "), ("\u2514\u2500 ", "   "))
_ASCII_MARKS: Final = (("|- ", "|  "), ("`- ", "   "))
"""Before a branch and before what is below it: of any branch, and of the last one."""
_UNITS: Final = "times in UTC, positions as epoch/position"
_PUBLISHED: Final = tuple(f"published_{name}" for name in COUNTERS[:4])
"""What coturn published, of the side of the report; the eight counters are what that added."""
_NUMBERS: Final = (*COUNTERS, "session_seconds")

Figures = Callable[[Sequence[int]], str]
"""Writes numbers as a text."""
Branch = tuple[str, Sequence[Any]]
"""A line of text, and the branches below it."""


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
    session: Annotated[
        str | None,
        typer.Option(
            "--session", metavar="ID", help="Instead: one session, by its id in `sessions`."
        ),
    ] = None,
    in_bytes: Annotated[
        bool, typer.Option("--bytes", help="Numbers with all digits, without units.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Trace a statement's line or a session to its reports.

    Shows the sessions that a line or an adjustment consists of, and each report of
    theirs. Of one session, the periods that it is billed in, and its reports.

    A report whose figures are not what it adds shows both: a total is published with
    what coturn counted in all, as in its log, and adds what the interims lacked.
    """
    from accounting.front.trace import trace_line as trace_billed
    from accounting.front.trace import trace_posted

    others = (realm, period, user, user_key, adjustment)
    if session is not None and all(value is None for value in others):
        _trace_one_session(session, in_bytes=in_bytes, as_json=as_json)
        return
    by_line = realm is not None and period is not None and (user is None) != (user_key is None)
    by_adjustment = adjustment is not None and all(
        value is None for value in (realm, period, user, user_key)
    )
    if (not by_line and not by_adjustment) or session is not None:
        raise UsageError(
            "expected REALM PERIOD and --user or --user-key, or --adjustment, or --session"
        )
    with writer_engine(command_settings()) as engine, progress_line("tracing") as progress:
        if adjustment is not None:
            result = trace_posted(
                engine, _parse_uuid("--adjustment", adjustment), progress=progress
            )
        else:
            assert realm is not None
            assert period is not None
            key = None if user_key is None else _parse_uuid("--user-key", user_key)
            result = trace_billed(engine, realm, period, user=user, key=key, progress=progress)
    parts = _parts(result)
    if as_json:
        _write_line_records(result)
        for cell, part in parts:
            _write_session_records(part, cell)
    else:
        _write_tree(result, parts, user, _figures_as(in_bytes=in_bytes))
    for _, part in parts:
        if part.partly_dropped is not None:
            write_message(dropped_notice(part.partly_dropped))
    if not result.adds_up:
        write_message("it does not add up: `turn-accounting verify` names what is wrong")
        raise typer.Exit(1)
    write_message(f"adds up: {counted(sum(len(part.sessions) for _, part in parts), 'session')}")


def _parts(result: "Trace | FrontTrace") -> "Sequence[tuple[str | None, Trace]]":
    """The traces of a front's cells by their names; of one database that one, without a name."""
    from accounting.audit.trace import Trace

    return [(None, result)] if isinstance(result, Trace) else result.cells


def _trace_one_session(text: str, *, in_bytes: bool, as_json: bool) -> None:
    from accounting.front.trace import trace_one_session

    session_id = parse_session_id(text)
    if session_id is None:
        raise UsageError(
            f"--session {text!r}: expected an id as `turn-accounting sessions` shows it"
        )
    with writer_engine(command_settings()) as engine, progress_line("tracing") as progress:
        result = trace_one_session(engine, session_id, progress=progress)
    if as_json:
        write_json(_part_records(result))
        write_json(_session_records(result.session))
        flush_output()
    else:
        _write_session_tree(result, session_id, _figures_as(in_bytes=in_bytes))
    if not result.adds_up:
        write_message("it does not add up: `turn-accounting verify` names what is wrong")
        raise typer.Exit(1)
    write_message(f"adds up: {len(result.session.reports):,} reports")


def _part_records(result: "SessionTrace") -> Iterator[dict[str, Any]]:
    """One JSON object for each period that has a part of the session."""
    for part in result.parts:
        yield {
            "line": "period",
            "realm": result.realm,
            "period": part.period,
            "closed": part.is_closed,
            "user_key": result.user_key,
            **_by_name(part.numbers),
        }


def _write_session_tree(result: "SessionTrace", session_id: UUID, figures: Figures) -> None:
    user = f"user {visible_name(result.user_id)}" if result.user_id else f"key {result.user_key}"
    write(
        f"realm {visible_name(result.realm)}, {user}, session {short_session_id(session_id)}\n"
        f"{_UNITS}\n"
    )
    parts = [(_part_text(part, figures), ()) for part in result.parts]
    _write_branches([*parts, _session_branch(result.session, figures)])
    flush_output()


def _part_text(part: "PeriodPart", figures: Figures) -> str:
    state = "closed" if part.is_closed else "not closed"
    return f"in period {part.period}, {state}  {figures(part.numbers)}"


def _write_line_records(result: "Trace | FrontTrace") -> None:
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
            **_by_name(line.numbers),
        }
        write_json([record])
    flush_output()


def _write_session_records(part: "Trace", cell: str | None) -> None:
    """One JSON object for each session and report, on a front with the name of the cell."""
    for session in part.sessions:
        records = _session_records(session)
        write_json(records if cell is None else ({**record, "cell": cell} for record in records))
    flush_output()


def _session_records(traced: "TracedSession") -> Iterator[dict[str, Any]]:
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
        **_by_name(traced.numbers),
    }
    if traced.dropped_counters is not None:
        yield {"line": "dropped", "session_id": session_id, **_by_name(traced.dropped_counters)}
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
        **_by_name(traced.counters),
        **dict(zip(_PUBLISHED, _published_counters(report), strict=True)),
    }


def _write_tree(
    result: "Trace | FrontTrace",
    parts: "Sequence[tuple[str | None, Trace]]",
    user: str | None,
    figures: Figures,
) -> None:
    """The billed lines, the sessions of each cell, and their reports with their positions."""
    shown_user = f"user {visible_name(user)}" if user is not None else f"user_key {result.user_key}"
    write(f"realm {visible_name(result.realm)}, period {result.period}, {shown_user}\n{_UNITS}\n")
    lines = [(_line_text(line, figures), ()) for line in result.lines]
    _write_branches([*lines, *(_part_branch(cell, part, figures) for cell, part in parts)])
    flush_output()


def _part_branch(cell: str | None, part: "Trace", figures: Figures) -> Branch:
    """The sessions of one database, below their sum; of a cell also what it billed."""
    summary = f"{counted(len(part.sessions), 'session')}  {figures(part.traced)}"
    sessions: list[Branch] = [_session_branch(traced, figures) for traced in part.sessions]
    if cell is None:
        return summary, sessions
    lines = [(_line_text(line, figures), ()) for line in part.lines]
    return f"cell {cell}  {summary}", [*lines, *sessions]


def _write_branches(branches: Sequence[Branch], indent: str = "") -> None:
    marks = _MARKS if can_encode("".join(chain(*_MARKS))) else _ASCII_MARKS
    for number, (text, below) in enumerate(branches):
        mark, below_mark = marks[number == len(branches) - 1]
        continued = indent + below_mark + (marks[0][1] if below else "   ")
        for line in _fitting_lines(text.split("  "), indent + mark, continued):
            write(f"{line}\n")
        _write_branches(below, indent + below_mark)


def _fitting_lines(parts: Sequence[str], indent: str, continued: str) -> Iterator[str]:
    """The parts on as many lines as the terminal needs; elsewhere on one."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    line = indent + parts[0]
    for part in parts[1:]:
        if text_width(f"{line}  {part}") > width:
            yield line
            line = continued + part
        else:
            line = f"{line}  {part}"
    yield line


def _line_text(line: "BilledLine", figures: Figures) -> str:
    if line.adjustment_id is None:
        return f"statement  {figures(line.numbers)}"
    kind = "adjustment by hand, not of sessions" if line.manual else "adjustment"
    return f"{kind} {line.adjustment_id}  {visible(line.reason or '')}  {figures(line.numbers)}"


def _session_branch(traced: "TracedSession", figures: Figures) -> Branch:
    return _session_text(traced, figures), _report_texts(traced, figures)


def _session_text(traced: "TracedSession", figures: Figures) -> str:
    session = traced.session
    started_at = from_micros(session.started_at)
    ended_at = None if session.ended_at is None else from_micros(session.ended_at)
    if ended_at is None:
        ended = "live"
    elif ended_at.date() == started_at.date():
        ended = f"{ended_at:%H:%M:%S}"
    else:
        ended = second(ended_at)
    flags = [name for name in ("estimated", "disputed") if getattr(session, name)]
    return "  ".join(
        [
            f"session {short_session_id(UUID(bytes=session.session_id))}",
            f"allocation {traced.allocation_id:018d}",
            f"source {visible(traced.source)}",
            f"{second(started_at)} - {ended}",
            *flags,
            figures(traced.numbers),
        ]
    )


def _report_texts(traced: "TracedSession", figures: Figures) -> list[Branch]:
    dropped = traced.dropped_counters
    texts = [] if dropped is None else [f"reports that were dropped  {figures(dropped)}"]
    for item in traced.reports:
        report = item.report
        side = "" if report.side is None else f" {Side(report.side).name.lower()}"
        texts.append(
            "  ".join(
                [
                    f"{ReportKind(report.kind).name.lower()}{side}",
                    second(from_micros(report.received_at)),
                    f"position {report.epoch}/{report.position}",
                    *(["late"] if item.late else []),
                    *_report_figures(item, figures),
                ]
            )
        )
    return [(text, ()) for text in texts]


def _report_figures(traced: "TracedReport", figures: Figures) -> Sequence[str]:
    """What coturn published, and what the report added where that is another figure."""
    published = _published(traced.report)
    if published == traced.counters:
        return [figures(published)] if any(published) else []
    return [f"published {figures(published)}", f"added {figures(traced.counters) or 'nothing'}"]


def _published(report: "Report") -> Sequence[int]:
    """The eight counters with those of the report at its side; zeros for a status."""
    counters = _published_counters(report)
    zeros = (0,) * len(counters)
    return (*zeros, *counters) if report.side == Side.PEER else (*counters, *zeros)


def _published_counters(report: "Report") -> Sequence[int]:
    return (
        report.received_packets,
        report.received_bytes,
        report.sent_packets,
        report.sent_bytes,
    )


def _figures_as(*, in_bytes: bool) -> Figures:
    """How numbers are written: in units on a terminal, with all digits elsewhere."""
    return partial(_figures, is_short=sys.stdout.isatty() and not in_bytes)


def _figures(numbers: Sequence[int], *, is_short: bool) -> str:
    """The numbers that are not zero: bytes, packets where there are no bytes, and the time."""
    named = _by_name(numbers)
    texts = []
    for name in ("received", "sent", "peer_received", "peer_sent"):
        size, packets = int(named[f"{name}_bytes"]), int(named[f"{name}_packets"])
        label = name.replace("_", " ")
        if size:
            texts.append(f"{label} {human_bytes(size) if is_short else f'{size:,} B'}")
        elif packets:
            texts.append(f"{label} {counted(packets, 'packet')}")
    seconds = named.get("session_seconds", 0)
    if seconds:
        texts.append(human_seconds(seconds) if is_short else f"{exact_text(seconds)} s")
    return ", ".join(texts)


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
