"""The tree that ``trace`` prints: what was billed, and below it sessions and reports."""

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from accounting.cli.output import flush_output, write
from accounting.cli.terminal_text import can_encode, text_width
from accounting.domain.calendar import from_micros
from accounting.domain.coturn_messages import ReportKind, Side
from accounting.domain.human_text import (
    exact_text,
    human_bytes,
    human_seconds,
    second,
    visible,
    visible_name,
)
from accounting.domain.session_ids import short_session_id
from accounting.plurals import counted

if TYPE_CHECKING:
    from accounting.audit.trace_results import (
        PeriodPart,
        SessionTrace,
        Trace,
        TracedReport,
        TracedSession,
    )
    from accounting.billing.statement_queries import BilledLine
    from accounting.domain.session_fold import Report
    from accounting.front.trace import FrontTrace

from accounting.cli.trace_records import numbers_by_name, published_counters

_MARKS: Final = (("\u251c\u2500 ", "\u2502  "), ("\u2514\u2500 ", "   "))
_ASCII_MARKS: Final = (("|- ", "|  "), ("`- ", "   "))
"""Before a branch and before what is below it: of any branch, and of the last one."""
_UNITS: Final = "times in UTC, positions as epoch/position"

Figures = Callable[[Sequence[int]], str]
"""Writes numbers as a text."""
Branch = tuple[str, Sequence[Any]]
"""A line of text, and the branches below it."""


def write_session_tree(result: "SessionTrace", session_id: UUID, figures: Figures) -> None:
    """One session: its parts in periods, and its reports."""
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


def write_tree(
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
    counters = published_counters(report)
    zeros = (0,) * len(counters)
    return (*zeros, *counters) if report.side == Side.PEER else (*counters, *zeros)


def figures_as(*, in_bytes: bool) -> Figures:
    """How numbers are written: in units on a terminal, with all digits elsewhere."""
    return partial(_figures, is_short=sys.stdout.isatty() and not in_bytes)


def _figures(numbers: Sequence[int], *, is_short: bool) -> str:
    """The numbers that are not zero: bytes, packets where there are no bytes, and the time."""
    named = numbers_by_name(numbers)
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
