"""The command ``trace``: a statement's line, an adjustment or a session, and its reports."""

from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from accounting.cli.arguments import JsonOption, name_argument
from accounting.cli.audit import dropped_notice
from accounting.cli.output import flush_output, write_json, write_message
from accounting.cli.progress import progress_line
from accounting.cli.resources import command_settings, writer_engine
from accounting.domain.session_ids import parse_session_id
from accounting.errors import UsageError
from accounting.plurals import counted
from accounting.reporting.filters import period_day

if TYPE_CHECKING:
    from accounting.audit.trace_results import (
        Trace,
    )
    from accounting.front.trace import FrontTrace

from accounting.cli.trace_records import (
    part_records,
    session_records,
    write_line_records,
    write_session_records,
)
from accounting.cli.trace_tree import figures_as, write_session_tree, write_tree


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
        write_line_records(result)
        for cell, part in parts:
            write_session_records(part, cell)
    else:
        write_tree(result, parts, user, figures_as(in_bytes=in_bytes))
    for _, part in parts:
        if part.partly_dropped is not None:
            write_message(dropped_notice(part.partly_dropped))
    if not result.adds_up:
        write_message("it does not add up: `turn-accounting verify` names what is wrong")
        raise typer.Exit(1)
    write_message(f"adds up: {counted(sum(len(part.sessions) for _, part in parts), 'session')}")


def _parts(result: "Trace | FrontTrace") -> "Sequence[tuple[str | None, Trace]]":
    """The traces of a front's cells by their names; of one database that one, without a name."""
    from accounting.audit.trace_results import Trace

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
        write_json(part_records(result))
        write_json(session_records(result.session))
        flush_output()
    else:
        write_session_tree(result, session_id, figures_as(in_bytes=in_bytes))
    if not result.adds_up:
        write_message("it does not add up: `turn-accounting verify` names what is wrong")
        raise typer.Exit(1)
    write_message(f"adds up: {len(result.session.reports):,} reports")


def _parse_uuid(option: str, value: str) -> UUID:
    try:
        return UUID(value)
    except ValueError:
        raise UsageError(f"{option} {value!r}: expected a UUID, as the views show it") from None
