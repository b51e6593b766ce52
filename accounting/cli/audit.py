"""The commands that check the books: ``verify``, ``rebuild``, ``reconcile``."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from accounting.audit.rebuild import rebuild
from accounting.audit.reconcile import Reconciled, reconcile
from accounting.audit.statement_check import Gone
from accounting.audit.verify import Verdict, verify
from accounting.cli.arguments import Json, PeriodOption, Realm
from accounting.cli.output import visible, warn, write_record
from accounting.cli.progress import progress_bar
from accounting.cli.resources import command_settings, writer_engine


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("verify")(verify_books)
    app.command("rebuild")(rebuild_books)
    app.command("reconcile")(reconcile_logs)


def verify_books(realm: Realm = None, period: PeriodOption = None, as_json: Json = False) -> None:
    """Recompute everything from the reports and compare; exit 1 on any difference."""
    verdict = Verdict()
    with (
        writer_engine(command_settings()) as engine,
        progress_bar("verifying", "sessions") as progress,
    ):
        for difference in verify(engine, realm, period, verdict=verdict, progress=progress):
            label = f"{difference.what} {difference.kind}"
            write_record(label, asdict(difference), as_json=as_json)
    for gone in verdict.gone:
        warn(dropped_notice(gone))
    if verdict.differences:
        warn(f"{verdict.differences:,} differences in the books of {verdict.sessions:,} sessions")
        raise typer.Exit(1)
    warn(f"proved: {verdict.sessions:,} sessions and all figures that follow from them")


def rebuild_books(
    reason: Annotated[str, typer.Option("--reason", help="Why; kept for ever.")],
    realm: Realm = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be replaced; change nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Replace sessions and roll-ups by what the reports say; adjusts closed periods."""
    verdict = Verdict()
    with (
        writer_engine(command_settings()) as engine,
        progress_bar("rebuilding", "sessions") as progress,
    ):
        for difference in rebuild(
            engine, reason, realm, dry_run=dry_run, verdict=verdict, progress=progress
        ):
            label = f"{difference.what} {difference.kind}"
            write_record(label, asdict(difference), as_json=as_json)
    done = "would be replaced" if dry_run else "replaced"
    warn(
        f"{verdict.differences:,} differences {done} in the books of {verdict.sessions:,} sessions"
    )


def reconcile_logs(
    logs: Annotated[
        list[Path],
        typer.Argument(metavar="LOGFILE...", help="coturn's logs; rotated ones oldest first."),
    ],
    as_json: Json = False,
) -> None:
    """Compare the books with coturn's own log; exit 1 when any session differs."""
    result = Reconciled()
    with (
        writer_engine(command_settings()) as engine,
        progress_bar("reconciling", "sessions") as progress,
    ):
        for difference in reconcile(engine, logs, result=result, progress=progress):
            label = f"session {difference.kind}"
            write_record(label, asdict(difference), as_json=as_json)
    if result.strangers:
        warn(f"{result.strangers:,} logged sessions never authenticated: nobody is billed for them")
    if result.unlogged:
        warn(f"{result.unlogged:,} booked sessions with the same names and ids are in no log")
    if result.differing:
        warn(f"{result.differing:,} of {result.sessions:,} logged sessions differ")
        raise typer.Exit(1)
    warn(f"reconciled: {result.sessions:,} logged sessions, each booked with its own figures")


def dropped_notice(gone: Gone) -> str:
    """Say since when a period's reports are kept, and when it was last proved from all of them."""
    dropped = (
        f"period {gone.period} of realm '{visible(gone.realm)}': "
        f"reports before {gone.kept_since} (UTC) were dropped"
    )
    if gone.proof is None:
        return f"{dropped}; nothing of it was billed, and it was never verified"
    return (
        f"{dropped}; last proved from all of them on {gone.proof.verified_at:%Y-%m-%d}, "
        f"digest {gone.proof.digest}"
    )
