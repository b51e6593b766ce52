"""The commands that bill: ``period list|close``, ``statement``, ``adjust``."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, date
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Final
from zoneinfo import ZoneInfo

import typer

from accounting.billing.adjust import adjust_by_hand
from accounting.billing.close_period import Closed, close_period
from accounting.cli.arguments import Json, RealmName, User, from_argument, period_day
from accounting.cli.terminal import warn, write, write_json, write_table
from accounting.cli.views import BYTES, in_zone, moved
from accounting.config import Settings
from accounting.db import migrations
from accounting.db.engine import lost_connections
from accounting.domain.statements import StatementCutoff
from accounting.errors import NotAllowed, NotYet, UsageError
from accounting.identities.realm_queries import find_realm
from accounting.ops import service
from accounting.reporting import view_queries

LARGEST: Final = 2**63 - 1
LARGEST_SECONDS: Final = 10**12
PeriodName = Annotated[str, typer.Argument(help="Its first day, YYYY-MM-DD.")]
_Signed = Annotated[int, typer.Option(min=-LARGEST, max=LARGEST, help="Signed.")]
_PERIODS: Final = {
    "realm": "realm",
    "period": "period",
    "starts_at": "starts",
    "ends_at": "ends",
    "state": "state",
    "closed_at": "closed",
    "waits_for": "waits for",
}
_LINES: Final = {
    "user_id": "user",
    "sessions_started": "sessions",
    "session_seconds": "seconds",
    **BYTES,
    "estimated_bytes": "estimated B",
}
_ADJUSTMENTS: Final = {
    "period": "corrects",
    "posted_in": "posted in",
    "user_id": "user",
    "session_seconds": "seconds",
    **BYTES,
    "reason": "reason",
    "author": "author",
}
_GAPS: Final = {
    "gap_id": "gap",
    "source": "source",
    "from_at": "from",
    "to_at": "to",
    "cause": "cause",
    "detail": "detail",
}


def mount(app: typer.Typer, settings: Callable[[], Settings]) -> None:
    """Add the commands, on settings that are read when they run."""
    period = typer.Typer(help="The billing periods of realms.", no_args_is_help=True)
    app.add_typer(period, name="period")

    @period.command("list")
    def period_list(
        realm: Annotated[
            str | None, typer.Argument(parser=from_argument, help="Only this realm.")
        ] = None,
        as_json: Json = False,
    ) -> None:
        """List the billing periods, their state, and what each waits for."""
        rows = _periods(settings(), realm)
        if as_json:
            write_json(rows)
        else:
            write_table("", [in_zone(row) for row in rows], _PERIODS, empty="No periods yet.")

    @period.command("close")
    def period_close(
        realm: RealmName,
        period: PeriodName,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Show what it would make; change nothing.")
        ] = False,
        without: Annotated[
            list[str] | None,
            typer.Option("--without", parser=from_argument, help="A source not to wait for."),
        ] = None,
    ) -> None:
        """Close a period now: its statement is final from then on."""
        day = period_day(period)
        with service.database(settings(), service.WRITER) as engine:
            migrations.require_head(engine)
            made = close_period(engine, realm, day, without=without or (), dry_run=dry_run)
        warn(_closed(made, dry_run=dry_run))

    @app.command()
    def statement(
        realm: RealmName,
        period: PeriodName,
        user: User = None,
        adjustments: Annotated[
            bool,
            typer.Option("--adjustments", help="With --json: what corrects it, not its lines."),
        ] = False,
        as_json: Json = False,
    ) -> None:
        """Show a closed period: its lines, what is uncertain in them, and its adjustments."""
        if adjustments and not as_json:
            raise UsageError("--adjustments goes with --json: else a statement shows them anyway")
        _statement(
            settings(), realm, period_day(period), user, adjustments=adjustments, as_json=as_json
        )

    app.command("adjust")(_adjust_command(settings))


def _adjust_command(settings: Callable[[], Settings]) -> Callable[..., None]:
    def adjust(
        realm: RealmName,
        period: PeriodName,
        user: Annotated[
            str, typer.Argument(parser=from_argument, help="The user_id to bill or credit.")
        ],
        reason: Annotated[str, typer.Option("--reason", help="Why; kept for ever.")],
        author: Annotated[str, typer.Option("--author", help="Who decided it; kept for ever.")],
        received_packets: _Signed = 0,
        received_bytes: _Signed = 0,
        sent_packets: _Signed = 0,
        sent_bytes: _Signed = 0,
        peer_received_packets: _Signed = 0,
        peer_received_bytes: _Signed = 0,
        peer_sent_packets: _Signed = 0,
        peer_sent_bytes: _Signed = 0,
        session_seconds: Annotated[
            str, typer.Option("--session-seconds", help="Signed, to the microsecond.")
        ] = "0",
    ) -> None:
        """Correct a closed period by hand: posted in the open one, apart from usage."""
        numbers = {
            "received_packets": received_packets,
            "received_bytes": received_bytes,
            "sent_packets": sent_packets,
            "sent_bytes": sent_bytes,
            "peer_received_packets": peer_received_packets,
            "peer_received_bytes": peer_received_bytes,
            "peer_sent_packets": peer_sent_packets,
            "peer_sent_bytes": peer_sent_bytes,
            "session_microseconds": _microseconds(session_seconds),
        }
        day = period_day(period)
        with service.database(settings(), service.WRITER) as engine:
            migrations.require_head(engine)
            made = adjust_by_hand(
                engine,
                realm,
                day,
                user,
                numbers,
                reason=from_argument(reason),
                author=from_argument(author),
            )
        if not made.is_new:
            warn("posted before, word for word: not posted again; another reason makes it another")
        write(f"{made.adjustment_id}\n")

    return adjust


def _periods(settings: Settings, realm: str | None) -> list[Mapping[str, Any]]:
    with (
        service.database(settings, service.READER) as engine,
        lost_connections(),
        engine.connect() as connection,
    ):
        rows = list(view_queries.rows(connection, view_queries.periods(realm)))
    if realm is not None and not rows:
        # Which realms are known is the writer's to see.
        with (
            suppress(NotAllowed),
            service.database(settings, service.WRITER) as engine,
            lost_connections(),
            engine.connect() as connection,
        ):
            find_realm(connection, realm)
    return rows


def _closed(made: Closed, *, dry_run: bool) -> str:
    without = ", ".join(f"'{name}'" for name in made.without)
    return (
        f"period {made.period} of realm '{made.realm}' {'would close' if dry_run else 'is closed'}"
        f"{f' without {without}' if without else ''}: {made.lines} lines, "
        f"{made.sums['received_bytes']} bytes received, {made.sums['sent_bytes']} sent"
    )


def _statement(
    settings: Settings,
    realm: str,
    day: date,
    user: str | None,
    *,
    adjustments: bool,
    as_json: bool,
) -> None:
    with (
        service.database(settings, service.READER) as engine,
        lost_connections(),
        engine.connect() as connection,
    ):
        known = list(view_queries.rows(connection, view_queries.periods(realm)))
        period = _find(known, realm, day)
        corrections = view_queries.adjustments(realm, day, user, by="period")
        lines = view_queries.statements(realm, day, user)
        if as_json:
            write_json(view_queries.rows(connection, corrections if adjustments else lines))
            return
        rows = list(view_queries.rows(connection, lines))
        corrected = list(view_queries.rows(connection, corrections))
        posted = list(
            view_queries.rows(
                connection, view_queries.adjustments(realm, day, user, by="posted_in")
            )
        )
        gaps = list(
            view_queries.rows(connection, view_queries.gaps(period["starts_at"], period["ends_at"]))
        )
    shown = in_zone(period)
    write(
        f"Realm '{realm}', period {day}: {shown['starts_at']:%Y-%m-%d %H:%M} to "
        f"{shown['ends_at']:%Y-%m-%d %H:%M} {period['time_zone']}, closed "
        f"{period['closed_at'].astimezone(UTC):%Y-%m-%d %H:%M:%SZ}\n\n"
    )
    write_table("", rows, _LINES, empty="No usage.")
    write(f"\n{_uncertain(rows)}\n")
    without = StatementCutoff.from_text(rows[0]["cutoff"]).excluded_sources if rows else ()
    if without:
        write(f"Closed without: {', '.join(without)}\n")
    zone = ZoneInfo(period["time_zone"])
    for title, found, columns, empty in (
        ("Gaps", [moved(row, zone) for row in gaps], _GAPS, "No gap lies in it."),
        ("Adjustments of this period", corrected, _ADJUSTMENTS, "Nothing corrects it."),
        ("Posted in this period, of earlier ones", posted, _ADJUSTMENTS, "Nothing of earlier."),
    ):
        write("\n")
        write_table(title if found else "", found, columns, empty=empty)


def _uncertain(lines: list[Mapping[str, Any]]) -> str:
    estimated = sum(row["estimated_bytes"] for row in lines)
    if not estimated:
        return "Nothing is estimated."
    users = sum(row["estimated_bytes"] > 0 for row in lines)
    every = sum(row["received_bytes"] + row["sent_bytes"] for row in lines)
    return (
        f"Estimated: {estimated:,} of {every:,} bytes, of {users} of {len(lines)} users: "
        "interims were lost, and totals made it good"
    )


def _find(known: list[Mapping[str, Any]], realm: str, day: date) -> Mapping[str, Any]:
    for row in known:
        if row["period"] != day:
            continue
        if row["state"] != "closed":
            raise NotYet(
                f"period {day} of realm '{realm}' is not closed yet: "
                f"it waits for {row['waits_for'] or 'its turn'}"
            )
        return row
    last = ", ".join(str(row["period"]) for row in known[-5:]) or "none yet"
    raise UsageError(f"realm '{realm}' has no period that begins on {day}: the last are {last}")


def _microseconds(value: str) -> int:
    try:
        exact = Decimal(value) * 1_000_000
        if exact == exact.to_integral_value() and abs(exact) <= LARGEST_SECONDS * 1_000_000:
            return int(exact)
    except (InvalidOperation, OverflowError):
        pass
    raise UsageError(f"--session-seconds {value!r}: expected seconds with at most six decimals")
