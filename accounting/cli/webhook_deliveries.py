"""The commands ``webhook deliveries`` and ``webhook replay``: what was sent, and again."""

from typing import Annotated, Final

import typer

from accounting.cli.arguments import MAX_INTEGER, list_options
from accounting.cli.output import write, write_message
from accounting.cli.resources import command_settings, writer_engine
from accounting.cli.rows import ListForm, Listing, arranged, write_list
from accounting.cli.table import Column, Kind
from accounting.cli.webhook_arguments import Number, parse_since
from accounting.domain.human_text import second
from accounting.errors import UsageError
from accounting.plurals import counted

DEFAULT_LIMIT: Final = 20
_ATTEMPTS: Final = Listing(
    plain={
        "number": "webhook",
        "attempted_at": "at",
        "first_seq": "from event",
        "last_seq": "to event",
        "events": "events",
        "taken": "taken",
        "status": "status",
        "failure": "failure",
        "seconds": "seconds",
    },
    columns=(
        Column(field="number", heading="webhook", kind=Kind.COUNT),
        Column(field="attempted_at", heading="at (UTC)", text=second),
        Column(field="first_seq", heading="from event", kind=Kind.COUNT),
        Column(field="last_seq", heading="to event", kind=Kind.COUNT, rank=1),
        Column(field="events", heading="events", kind=Kind.COUNT),
        Column(field="status", heading="status", kind=Kind.COUNT, optional=True),
        Column(field="milliseconds", heading="ms", kind=Kind.COUNT),
        Column(field="failure", heading="failure", kind=Kind.WORDS, optional=True),
    ),
    rank="attempted_at",
    empty="Nothing was sent in the last 7 days.",
    fields={"milliseconds": lambda attempt: round(attempt["seconds"] * 1000)},
    default_limit=DEFAULT_LIMIT,
)
_REFUSALS: Final = Listing(
    plain={
        "number": "webhook",
        "refused_at": "at",
        "seq": "event",
        "event_id": "event id",
        "type": "type",
        "realm": "realm",
        "user": "user",
        "reason": "reason",
    },
    columns=(
        Column(field="number", heading="webhook", kind=Kind.COUNT),
        Column(field="refused_at", heading="at (UTC)", text=second),
        Column(field="seq", heading="event", kind=Kind.COUNT),
        Column(field="type", heading="type", rank=1),
        Column(field="realm", heading="realm", kind=Kind.NAME, optional=True, rank=2),
        Column(field="user", heading="user", kind=Kind.NAME, optional=True),
        Column(field="reason", heading="reason", kind=Kind.WORDS),
    ),
    rank="refused_at",
    empty="No event was refused.",
    default_limit=DEFAULT_LIMIT,
)


@list_options(lambda: _ATTEMPTS)
def deliveries(
    number: Annotated[
        int | None, typer.Argument(min=1, max=MAX_INTEGER, help="Only of this endpoint.")
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only requests that failed.")] = False,
    refused: Annotated[
        bool, typer.Option("--refused", help="Events that were not taken, and why.")
    ] = False,
    *,
    form: ListForm,
) -> None:
    """List the requests of the last 7 days, newest first."""
    from accounting.webhooks.attempts import list_attempts
    from accounting.webhooks.refusals import list_refusals

    if failed and refused:
        raise UsageError("--failed goes without --refused")
    listing = _REFUSALS if refused else _ATTEMPTS
    arrangement = listing.arrangement(form)
    limit = arrangement.limit if arrangement.by is None else None
    with writer_engine(command_settings()) as engine:
        if refused:
            rows = list_refusals(engine, number, limit)
        else:
            rows = list_attempts(engine, number, failed=failed, limit=limit)
    has_rows = write_list(arranged(rows, arrangement), listing, form, arrangement)
    if not has_rows and not form.for_programs:
        write("Nothing failed in the last 7 days.\n" if failed else f"{listing.empty}\n")


def replay(
    number: Number,
    after: Annotated[
        int | None, typer.Option("--after", metavar="SEQ", min=0, help="After this event number.")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Since then; as elsewhere.")
    ] = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="Also what an engine counts twice, unless it has none of it."),
    ] = False,
) -> None:
    """Deliver events again from a position, or skip some; also enables the endpoint."""
    from accounting.webhooks import endpoints

    if (after is None) == (since is None):
        raise UsageError("expected --after SEQ or --since TIME, one of them")
    with writer_engine(command_settings()) as engine:
        endpoint, _ = endpoints.find_endpoint(engine, number)
        seq, last_seq = endpoints.replay_events(
            engine,
            number,
            after=after,
            since=parse_since(engine, since, endpoint.realm),
            again=again,
        )
    write_message(
        f"webhook {number} goes on after event {seq}: the feed has "
        f"{counted(last_seq - seq, 'event')} after it"
    )
