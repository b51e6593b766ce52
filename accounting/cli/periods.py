"""The commands for billing periods: ``period list|close``, and ``adjust``."""

from decimal import Decimal, InvalidOperation
from typing import Annotated, Final

import typer

from accounting.cli.arguments import PeriodDay, RealmName, list_options, name_argument
from accounting.cli.output import write, write_message
from accounting.cli.resources import command_settings, writer_engine
from accounting.cli.rows import ListForm, Listing, write_query
from accounting.cli.table import Column, Kind
from accounting.cli.terminal_text import GREEN, YELLOW
from accounting.domain.human_text import minute
from accounting.domain.periods import NOTHING
from accounting.errors import UsageError
from accounting.reporting import billing_queries

MAX_COUNT: Final = 2**63 - 1
MAX_SECONDS: Final = 10**12
_STATE_STYLES: Final = {"open": GREEN, "closing": YELLOW, "closed": ""}
_PERIODS: Final = Listing(
    plain={
        "realm": "realm",
        "period": "period",
        "starts_at": "starts",
        "ends_at": "ends",
        "state": "state",
        "closed_at": "closed",
        "waits_for": "waits for",
    },
    columns=(
        Column(field="realm", heading="realm", kind=Kind.NAME),
        Column(field="period", heading="period"),
        Column(field="ends_at", heading="ends", kind=Kind.TIME),
        Column(field="time_zone", heading="time zone", rank=2),
        Column(field="state", heading="state", style=lambda period: _STATE_STYLES[period["state"]]),
        Column(field="closed_at", heading="closed", text=minute, rank=1, optional=True),
        Column(field="waits", heading="waits for", kind=Kind.WORDS, optional=True),
    ),
    rank="starts_at",
    empty="No periods yet.",
    fields={"waits": lambda period: "" if period["closed_at"] else period["waits_for"] or NOTHING},
)
_Signed = Annotated[int, typer.Option(min=-MAX_COUNT, max=MAX_COUNT, help="Signed.")]


def register(app: typer.Typer) -> None:
    """Add the group ``period`` and the command ``adjust``."""
    group = typer.Typer(help="List and close billing periods.", no_args_is_help=True)
    group.command("list")(list_periods)
    group.command("close")(close)
    app.add_typer(group, name="period")
    app.command("adjust")(adjust)


@list_options(lambda: _PERIODS)
def list_periods(
    realm: Annotated[
        str | None, typer.Argument(parser=name_argument, help="Only this realm.")
    ] = None,
    *,
    form: ListForm,
) -> None:
    """List the billing periods, their state, and what each waits for."""
    write_query(
        command_settings(),
        lambda arrangement: billing_queries.periods(realm, arrangement),
        _PERIODS,
        form,
        realm=realm,
    )


def close(
    realm: RealmName,
    period: PeriodDay,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the result; change nothing.")
    ] = False,
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--without", parser=name_argument, help="Do not wait for this source, or cell."
        ),
    ] = None,
) -> None:
    """Close a period now: its statement is final from then on."""
    from accounting.front.billing.close_over_cells import close_installation_period

    with writer_engine(command_settings()) as engine:
        closed = close_installation_period(
            engine, realm, period, excluded=without or (), dry_run=dry_run
        )
    excluded = ", ".join(f"'{name}'" for name in closed.excluded_sources)
    write_message(
        f"period {closed.period} of realm '{closed.realm}' "
        f"{'would close' if dry_run else 'is closed'}"
        f"{f' without {excluded}' if excluded else ''}: {closed.summary()}"
    )


def adjust(
    realm: RealmName,
    period: PeriodDay,
    user: Annotated[
        str, typer.Argument(parser=name_argument, help="The user_id to bill or credit.")
    ],
    reason: Annotated[
        str, typer.Option("--reason", parser=name_argument, help="Why; kept for ever.")
    ],
    author: Annotated[
        str, typer.Option("--author", parser=name_argument, help="Who decided it; kept for ever.")
    ],
    received_packets: _Signed = 0,
    received_bytes: _Signed = 0,
    sent_packets: _Signed = 0,
    sent_bytes: _Signed = 0,
    peer_received_packets: _Signed = 0,
    peer_received_bytes: _Signed = 0,
    peer_sent_packets: _Signed = 0,
    peer_sent_bytes: _Signed = 0,
    session_seconds: Annotated[
        str, typer.Option("--session-seconds", metavar="N", help="Signed, to the microsecond.")
    ] = "0",
) -> None:
    """Correct a closed period by hand.

    The correction is posted in the open period, apart from usage.
    """
    from accounting.billing.adjust import post_manual_adjustment

    numbers = {
        "received_packets": received_packets,
        "received_bytes": received_bytes,
        "sent_packets": sent_packets,
        "sent_bytes": sent_bytes,
        "peer_received_packets": peer_received_packets,
        "peer_received_bytes": peer_received_bytes,
        "peer_sent_packets": peer_sent_packets,
        "peer_sent_bytes": peer_sent_bytes,
        "session_microseconds": _parse_microseconds(session_seconds),
    }
    with writer_engine(command_settings()) as engine:
        corrected = post_manual_adjustment(
            engine, realm, period, user, numbers, reason=reason, author=author
        )
    if not corrected.is_new:
        write_message(
            "the same adjustment exists: not posted again; use another reason to post another"
        )
    write(f"{corrected.adjustment_id}\n")


def _parse_microseconds(seconds: str) -> int:
    try:
        exact = Decimal(seconds) * 1_000_000
        if exact == exact.to_integral_value() and abs(exact) <= MAX_SECONDS * 1_000_000:
            return int(exact)
    except (InvalidOperation, OverflowError):
        pass
    raise UsageError(f"--session-seconds {seconds!r}: expected seconds with at most six decimals")
