"""The commands ``verify``, ``rebuild``, ``reconcile``, ``trace`` and ``erase``."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final
from uuid import UUID

import typer

from accounting.audit.rebuild import rebuild
from accounting.audit.reconcile import Reconciled, reconcile
from accounting.audit.statement_check import Gone
from accounting.audit.trace import Trace, trace, trace_adjustment
from accounting.audit.verify import Verdict, verify
from accounting.cli.arguments import Json, Realm, from_argument, period_day
from accounting.cli.progress import progress_bar
from accounting.cli.terminal import flush_output, visible, warn, write, write_json
from accounting.config import Settings
from accounting.db import migrations
from accounting.domain.calendar import from_micros
from accounting.domain.coturn_messages import ReportKind, Side
from accounting.domain.counters import COUNTERS
from accounting.errors import UsageError
from accounting.identities.erase import erase
from accounting.ops import service

_NUMBERS: Final = (*COUNTERS, "session_seconds")


def mount(app: typer.Typer, settings: Callable[[], Settings]) -> None:
    """Add the commands, on settings that are read when they run."""
    for mount in (_mount_verify, _mount_rebuild, _mount_reconcile, _mount_trace, _mount_erase):
        mount(app, settings)


def _mount_verify(app: typer.Typer, settings: Callable[[], Settings]) -> None:
    @app.command("verify")
    def verify_books(
        realm: Realm = None,
        period: Annotated[
            str | None, typer.Option("--period", help="Only this period: its first day.")
        ] = None,
        as_json: Json = False,
    ) -> None:
        """Recompute everything from the reports and compare; exit 1 when anything differs."""
        verdict = Verdict()
        with _engine(settings()) as engine, progress_bar("verifying", "sessions") as step:
            found = verify(
                engine,
                realm,
                None if period is None else period_day(period),
                verdict=verdict,
                progress=step,
            )
            for one in found:
                _tell(asdict(one), as_json, f"{one.what} {one.kind}")
        for each in verdict.gone:
            warn(_of_gone(each))
        if verdict.differences:
            warn(f"{verdict.differences:,} differences in {verdict.sessions:,} sessions' books")
            raise typer.Exit(1)
        warn(f"proved: {verdict.sessions:,} sessions and all that follows from them")


def _mount_rebuild(app: typer.Typer, settings: Callable[[], Settings]) -> None:
    @app.command("rebuild")
    def rebuild_books(
        reason: Annotated[str, typer.Option("--reason", help="Why; it is kept for ever.")],
        realm: Realm = None,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Only show what would be replaced.")
        ] = False,
        as_json: Json = False,
    ) -> None:
        """Replace sessions and roll-ups by what the reports say; closed periods are adjusted."""
        verdict = Verdict()
        with _engine(settings()) as engine, progress_bar("rebuilding", "sessions") as step:
            found = rebuild(engine, reason, realm, dry_run=dry_run, verdict=verdict, progress=step)
            for one in found:
                _tell(asdict(one), as_json, f"{one.what} {one.kind}")
        done = "would be mended" if dry_run else "mended"
        warn(f"{verdict.differences:,} differences {done} in {verdict.sessions:,} sessions' books")


def _mount_reconcile(app: typer.Typer, settings: Callable[[], Settings]) -> None:
    @app.command("reconcile")
    def reconcile_logs(
        logs: Annotated[
            list[Path],
            typer.Argument(metavar="LOGFILE...", help="Logs of coturn; rotated ones oldest first."),
        ],
        as_json: Json = False,
    ) -> None:
        """Compare the books with coturn's own log; exit 1 when any session differs."""
        result = Reconciled()
        with _engine(settings()) as engine, progress_bar("reconciling", "sessions") as step:
            for one in reconcile(engine, logs, result=result, progress=step):
                _tell(asdict(one), as_json, f"session {one.kind}")
        if result.strangers:
            warn(f"{result.strangers:,} logged that never authenticated: nobody is billed for them")
        if result.unlogged:
            warn(f"{result.unlogged:,} booked sessions of the same names and ids are in no log")
        if result.differing:
            warn(f"{result.differing:,} of {result.sessions:,} logged sessions differ")
            raise typer.Exit(1)
        warn(f"reconciled: {result.sessions:,} logged sessions, each booked with its own figures")


def _mount_trace(app: typer.Typer, settings: Callable[[], Settings]) -> None:
    @app.command("trace")
    def trace_line(
        realm: Annotated[
            str | None, typer.Argument(parser=from_argument, help="The realm.")
        ] = None,
        period: Annotated[str | None, typer.Argument(help="Its first day, YYYY-MM-DD.")] = None,
        user: Annotated[
            str | None, typer.Option("--user", parser=from_argument, help="The user_id.")
        ] = None,
        user_key: Annotated[
            str | None, typer.Option("--user-key", help="The user_key, where no name is left.")
        ] = None,
        adjustment: Annotated[
            str | None, typer.Option("--adjustment", help="Instead: an adjustment_id.")
        ] = None,
        as_json: Json = False,
    ) -> None:
        """Trace a statement's line or an adjustment to its sessions and their reports."""
        by_line = realm is not None and period is not None and (user is None) != (user_key is None)
        by_adjustment = adjustment is not None and realm is period is user is user_key is None
        if not by_line and not by_adjustment:
            raise UsageError("expected REALM PERIOD and --user or --user-key, or --adjustment")
        with _engine(settings()) as engine:
            if adjustment is not None:
                found = trace_adjustment(engine, _uuid("--adjustment", adjustment))
            else:
                assert realm is not None
                assert period is not None
                key = None if user_key is None else _uuid("--user-key", user_key)
                found = trace(engine, realm, period_day(period), user=user, key=key)
        _write_trace(found, as_json=as_json)
        if found.gone is not None:
            warn(_of_gone(found.gone))
        if not found.adds_up:
            warn("it does not add up: `turn-accounting verify` names what is wrong")
            raise typer.Exit(1)
        warn(f"adds up: {len(found.sessions):,} sessions")


def _mount_erase(app: typer.Typer, settings: Callable[[], Settings]) -> None:
    @app.command("erase")
    def erase_name(
        realm: Annotated[str, typer.Argument(parser=from_argument, help="The realm.")],
        user: Annotated[str, typer.Argument(parser=from_argument, help="The user_id.")],
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Only say what would be erased.")
        ] = False,
    ) -> None:
        """Erase a person's name; all figures stay, under a key that tells nothing of it."""
        chosen = settings()
        with _engine(chosen) as engine:
            erased = erase(engine, realm, user, dry_run=dry_run)
        warn(
            f"{'would erase' if dry_run else 'erased'} {erased.user_ids:,} user_id, "
            f"{erased.usernames:,} usernames and {erased.rejected_messages:,} rejected messages; "
            f"user_key {erased.user_key}"
        )
        until = datetime.now(UTC) + timedelta(seconds=chosen.spool_retention_seconds)
        warn(
            "not reached: the spools of the collectors, which forget what was loaded by now at "
            f"about {until:%Y-%m-%d %H:%MZ} where they keep it as long as is set here; backups, "
            "exports, coturn's own logs and its keys in Redis"
        )


@contextmanager
def _engine(settings: Settings) -> Iterator[Any]:
    with service.database(settings, service.WRITER) as engine:
        migrations.require_head(engine)
        yield engine


def _tell(fields: Mapping[str, Any], as_json: bool, what: str) -> None:
    if as_json:
        write_json([fields])
    else:
        told = (
            f"{name}={visible(str(value))}"
            for name, value in fields.items()
            if value not in (None, "", False) and name not in {"kind", "what"}
        )
        write(f"{what}: {' '.join(told)}\n")
    flush_output()


def _of_gone(one: Gone) -> str:
    """What is left to say of a period whose reports were dropped."""
    name = f"period {one.period} of realm '{visible(one.realm)}'"
    dropped = f"{name}: reports before {one.kept_since} (UTC) were dropped"
    if one.proof is None:
        return f"{dropped}; nothing of it was billed, and it was never verified"
    return (
        f"{dropped}; last proved from all of them on {one.proof.verified_at:%Y-%m-%d}, "
        f"digest {one.proof.digest}"
    )


def _write_trace(found: Trace, *, as_json: bool) -> None:
    where = {"realm": found.realm, "period": found.period, "user_key": found.user_key}
    for line in found.lines:
        what = "statement" if line.adjustment_id is None else "adjustment"
        which = {"adjustment_id": line.adjustment_id, "reason": line.reason, "manual": line.manual}
        _tell({"line": what, **where, **which, **_named(line.numbers)}, as_json, what)
    for session in found.sessions:
        life = session.session
        row = {
            "line": "session",
            "session_id": UUID(bytes=life.session_id),
            "source": session.source,
            "allocation_id": f"{session.allocation_id:018d}",
            "started_at": from_micros(life.started_at),
            "ended_at": None if life.ended_at is None else from_micros(life.ended_at),
            "estimated": life.estimated,
            "disputed": life.disputed,
        }
        _tell({**row, **_named(session.numbers)}, as_json, "session")
        if session.dropped is not None:
            carried = {"line": "dropped", "session_id": row["session_id"]}
            _tell({**carried, **_named(session.dropped)}, as_json, "  dropped reports")
        for one in session.reports:
            report = one.report
            told = {
                "line": "report",
                "session_id": UUID(bytes=life.session_id),
                "source": one.source,
                "epoch": report.epoch,
                "position": report.position,
                "received_at": from_micros(report.received_at),
                "kind": ReportKind(report.kind).name.lower(),
                "side": None if report.side is None else Side(report.side).name.lower(),
                "late": one.late,
                **_named(one.counters),
            }
            name = f"  {told['kind']}"
            _tell(told, as_json, name)


def _named(numbers: Sequence[int]) -> dict[str, int | Decimal]:
    named: dict[str, int | Decimal] = dict(zip(_NUMBERS, numbers, strict=False))
    if len(numbers) == len(_NUMBERS):
        named["session_seconds"] = Decimal(numbers[-1]).scaleb(-6)
    return named


def _uuid(option: str, value: str) -> UUID:
    try:
        return UUID(value)
    except ValueError:
        raise UsageError(f"{option} {value!r}: expected a UUID, as the views show it") from None
