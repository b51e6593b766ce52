"""The commands that check the books: ``verify``, ``rebuild``, ``reconcile``."""

from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from accounting.cli.arguments import JsonOption, PeriodOption, Realm
from accounting.cli.output import write_message, write_record
from accounting.cli.progress import progress_line
from accounting.cli.resources import cell_engine, command_settings, writer_engine
from accounting.domain.human_text import visible
from accounting.plurals import counted

if TYPE_CHECKING:
    from accounting.audit.statement_check import PartlyDroppedPeriod


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("verify")(verify_books)
    app.command("rebuild")(rebuild_books)
    app.command("reconcile")(reconcile_logs)


def verify_books(
    realm: Realm = None,
    period: PeriodOption = None,
    archive: Annotated[
        str | None,
        typer.Option(
            "--archive",
            metavar="PLACE",
            help="Recompute the statements of closed periods from this archive of reports.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute everything from the reports; exit 1 on a difference.

    Sessions, roll-ups and statements are compared. With --archive only statements, from archived
    reports, in scratch tables; exit 3 where some were dropped without an archive.
    """
    from accounting.audit.verify import VerifyResult
    from accounting.front.verify import verify_installation

    if archive is not None:
        _verify_archive(archive, realm, period, as_json=as_json)
        return
    result = VerifyResult()
    with (
        writer_engine(command_settings()) as engine,
        progress_line("verifying") as progress,
    ):
        for difference in verify_installation(
            engine, realm, period, result=result, progress=progress
        ):
            label = f"{difference.what} {difference.kind}"
            write_record(label, asdict(difference), as_json=as_json)
    for dropped in result.partly_dropped:
        write_message(dropped_notice(dropped))
    if result.differences:
        write_message(
            f"{counted(result.differences, 'difference')} in the books of "
            f"{counted(result.sessions, 'session')}"
        )
        raise typer.Exit(1)
    write_message(f"proved: {counted(result.sessions, 'session')} and all figures that follow")


def _verify_archive(archive: str, realm: str | None, period: date | None, *, as_json: bool) -> None:
    from accounting.audit.archived_statements import ArchiveResult, verify_archive

    result = ArchiveResult()
    with (
        cell_engine(command_settings()) as engine,
        progress_line("verifying") as progress,
    ):
        for difference in verify_archive(
            engine, archive, realm, period, result=result, progress=progress
        ):
            label = f"{difference.what} {difference.kind}"
            write_record(label, asdict(difference), as_json=as_json)
    for missing in result.incomplete:
        write_message(
            f"period {missing.period} of realm '{visible(missing.realm)}': not verified, since "
            f"reports of {missing.day} (UTC) were dropped without an archive"
        )
    read = (
        f"{counted(result.statements, 'statement')} with {counted(result.lines, 'line')}, from "
        f"{counted(result.archived_reports, 'report')} of {archive} and "
        f"{counted(result.kept_reports, 'report')} of the database"
    )
    if result.differences:
        write_message(f"{counted(result.differences, 'difference')} in {read}")
        raise typer.Exit(1)
    write_message(f"proved: {read}" if result.statements else f"nothing was proved: {read}")
    if result.incomplete and (period is not None or not result.statements):
        raise typer.Exit(3)


def rebuild_books(
    reason: Annotated[str, typer.Option("--reason", help="Why; kept for ever.")],
    realm: Realm = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be replaced; change nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Replace sessions and roll-ups by what the reports say.

    Closed periods get adjustments.
    """
    from accounting.audit.rebuild import rebuild
    from accounting.audit.verify import VerifyResult

    result = VerifyResult()
    with (
        cell_engine(command_settings()) as engine,
        progress_line("rebuilding") as progress,
    ):
        for difference in rebuild(
            engine, reason, realm, dry_run=dry_run, result=result, progress=progress
        ):
            label = f"{difference.what} {difference.kind}"
            write_record(label, asdict(difference), as_json=as_json)
    done = "would be replaced" if dry_run else "replaced"
    write_message(
        f"{counted(result.differences, 'difference')} {done} in the books of "
        f"{counted(result.sessions, 'session')}"
    )


def reconcile_logs(
    logs: Annotated[
        list[Path],
        typer.Argument(
            metavar="LOGFILE...",
            help="coturn's logs, also compressed or from journalctl or Docker, in any order.",
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Compare with coturn's own log; exit 1 when a session differs."""
    from accounting.audit.reconcile import ReconcileResult, reconcile

    result = ReconcileResult()
    with (
        cell_engine(command_settings()) as engine,
        progress_line("reading logs") as progress,
    ):
        for difference in reconcile(engine, logs, result=result, progress=progress):
            label = f"session {difference.kind}"
            write_record(label, asdict(difference), as_json=as_json)
    if result.unauthenticated:
        count = result.unauthenticated
        write_message(f"{counted(count, 'logged session')} never authenticated: billed to nobody")
    if result.partial:
        write_message(
            f"{counted(result.partial, 'session')} incomplete in the logs: checked as lower bounds"
        )
    if result.repeated_lines:
        write_message(f"{counted(result.repeated_lines, 'line')} in several logs: counted once")
    if result.unlogged:
        write_message(
            f"{counted(result.unlogged, 'booked session')} with the same names and ids, in no log"
        )
    if result.differing:
        write_message(f"{result.differing:,} of {result.sessions:,} logged sessions differ")
        raise typer.Exit(1)
    write_message(
        f"reconciled: {result.sessions:,} logged sessions, each booked with its own figures"
    )


def dropped_notice(period: "PartlyDroppedPeriod") -> str:
    """Say since when a period's reports are kept, and when it was last proved from all of them.

    And where those that were dropped are archived.
    """
    where = "" if period.cell is None else f" in cell '{period.cell}'"
    dropped = (
        f"period {period.period} of realm '{visible(period.realm)}'{where}: "
        f"reports before {period.kept_since} (UTC) were dropped"
    )
    if period.archives:
        dropped += f"; archived in {', '.join(map(visible, period.archives))}"
        if period.unarchived_days:
            dropped += f", but for {counted(period.unarchived_days, 'day')}"
    if period.proof is None:
        return f"{dropped}; nothing of it was billed, and it was never verified"
    return (
        f"{dropped}; last proved from all of them on {period.proof.verified_at:%Y-%m-%d}, "
        f"digest {period.proof.digest}"
    )
