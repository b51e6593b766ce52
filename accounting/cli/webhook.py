"""The commands for webhooks: ``webhook add|list|remove|test|deliveries|replay|rotate|enable``.

And ``webhook customers``, for the engines of usage.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TextIO, TypeVar

import typer

from accounting.cli.arguments import MAX_INTEGER, JsonOption, list_options, name_argument
from accounting.cli.output import flush_output, write, write_csv, write_json, write_message
from accounting.cli.resources import command_settings, writer_engine
from accounting.cli.rows import ListForm, Listing, arranged, write_list
from accounting.cli.table import Column, Kind
from accounting.domain.human_text import minute, second, visible
from accounting.errors import UsageError
from accounting.plurals import counted, listed
from accounting.reporting.filters import time_span
from accounting.reporting.view_query import instant

if TYPE_CHECKING:
    from accounting.db.engine import Engine

MAX_SPAN_DAYS: Final = 365
MAX_KEY_LENGTH: Final = 500
DEFAULT_LIMIT: Final = 20
_SPAN: Final = re.compile(r"([0-9]{1,6})([smhd])")
_UNIT_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

Number = Annotated[
    int, typer.Argument(min=1, max=MAX_INTEGER, help="Its number in `webhook list`.")
]
_WEBHOOKS: Final = Listing(
    plain={
        "number": "number",
        "state": "state",
        "url": "url",
        "format": "format",
        "types": "types",
        "realm": "realm",
        "seq": "delivered up to",
        "seqs_behind": "events behind",
        "last_failure": "last failure",
        "disabled_reason": "disabled because",
    },
    columns=(
        Column(field="number", heading="number", kind=Kind.COUNT),
        Column(field="state", heading="state"),
        Column(field="url", heading="url", kind=Kind.NAME),
        Column(field="format", heading="format", rank=2),
        Column(field="types", heading="types", kind=Kind.NAME, optional=True, rank=1),
        Column(field="realm", heading="realm", kind=Kind.NAME, optional=True),
        Column(field="seqs_behind", heading="events behind", kind=Kind.COUNT),
        Column(field="delivered_at", heading="delivered", text=minute, rank=1),
        Column(field="next_attempt_at", heading="next attempt", text=minute, optional=True),
        Column(field="why", heading="why", kind=Kind.WORDS, optional=True),
    ),
    rank="number",
    empty="There are no webhooks yet.",
    fields={
        "why": lambda webhook: (
            webhook["disabled_reason"]
            or (webhook["last_failure"] if webhook["state"] == "failing" else None)
        )
    },
)
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
        "reason": "reason",
    },
    columns=(
        Column(field="number", heading="webhook", kind=Kind.COUNT),
        Column(field="refused_at", heading="at (UTC)", text=second),
        Column(field="seq", heading="event", kind=Kind.COUNT),
        Column(field="type", heading="type"),
        Column(field="reason", heading="reason", kind=Kind.WORDS),
    ),
    rank="refused_at",
    empty="No event was refused.",
    default_limit=DEFAULT_LIMIT,
)


def register(app: typer.Typer) -> None:
    """Add the group ``webhook``."""
    group = typer.Typer(
        help="Deliver the feed to other servers, signed and in order.",
        no_args_is_help=True,
    )
    group.command("add")(add)
    group.command("list")(list_all)
    group.command("remove")(remove)
    group.command("test")(test)
    group.command("deliveries")(deliveries)
    group.command("replay")(replay)
    group.command("customers")(customers)
    group.command("rotate")(rotate)
    group.command("enable")(enable)
    app.add_typer(group, name="webhook")


def add(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where to: https://host/path.")],
    types: Annotated[
        str | None,
        typer.Option(
            "--types", metavar="TYPE,TYPE", help="Only events of these types; all by default."
        ),
    ] = None,
    realm: Annotated[
        str | None,
        typer.Option("--realm", parser=name_argument, help="Only events of this realm."),
    ] = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="standard|cloudevents|openmeter|lago|stripe",
            help="What the requests look like; the last three bill usage.",
        ),
    ] = "standard",
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="Also the events since then; as elsewhere."),
    ] = None,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Also all events that the feed has.")
    ] = False,
    batch: Annotated[
        int | None,
        typer.Option("--batch", metavar="N", min=1, max=100, help="At most N events a request."),
    ] = None,
    parallel: Annotated[
        int,
        typer.Option(
            "--parallel",
            metavar="N",
            min=1,
            max=32,
            help="Up to N requests at a time, which is faster, and out of order.",
        ),
    ] = 1,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="It may be at a private address, or local.")
    ] = False,
    mode: Annotated[
        str, typer.Option("--mode", metavar="structured|binary", help="Of cloudevents.")
    ] = "structured",
    key_file: Annotated[
        str | None,
        typer.Option("--key-file", metavar="FILE", help="File with the engine's API key; - stdin."),
    ] = None,
    meter: Annotated[
        str | None,
        typer.Option("--meter", metavar="NAME", help="The engine's name of what is counted."),
    ] = None,
    value: Annotated[
        str,
        typer.Option(
            "--value",
            metavar="bytes|received_bytes|sent_bytes|session_seconds|sessions",
            help="What is counted.",
        ),
    ] = "bytes",
    unit: Annotated[
        str, typer.Option("--unit", metavar="bytes|MB|GB", help="Of bytes; not for stripe.")
    ] = "bytes",
    customer: Annotated[
        str | None,
        typer.Option(
            "--customer",
            metavar="TEXT",
            help="Whom the engine bills, with {realm}, {user} or {user_key} in it.",
        ),
    ] = None,
    invoice_grace: Annotated[
        str,
        typer.Option(
            "--invoice-grace", metavar="TIME", help="How long Stripe leaves an invoice open: 72h."
        ),
    ] = "1h",
) -> None:
    """Add an endpoint: its number and secret are printed, the secret only once.

    It gets the events that are recorded from now on, and earlier ones with
    --since or --from-start.
    """
    from accounting.webhooks import endpoints
    from accounting.webhooks.formats import endpoint_url
    from accounting.webhooks.formats.options import (
        METERING_TYPES,
        CloudEventsMode,
        FormatName,
        FormatOptions,
        Measure,
        Unit,
    )
    from accounting.webhooks.signing import require_libraries

    if since is not None and from_start:
        raise UsageError("--since goes without --from-start")
    name = _choice("--format", format_, FormatName)
    options = FormatOptions(
        mode=_choice("--mode", mode, CloudEventsMode),
        meter=FormatOptions().meter if meter is None else meter,
        value=_choice("--value", value, Measure),
        unit=_choice("--unit", unit, Unit),
        customer=customer,
        invoice_grace_seconds=int(_parse_span("--invoice-grace", invoice_grace)),
    )
    batch_size = name.default_batch if batch is None else batch
    options.check(name, batch_size)
    chosen_types = _parse_types(types)
    if name.is_metering:
        chosen_types = METERING_TYPES if chosen_types is None else chosen_types
        if not set(chosen_types) <= set(METERING_TYPES):
            raise UsageError(f"--types: {name} gets {' and '.join(METERING_TYPES)} only")
    if name.is_metering != (key_file is not None):
        raise UsageError(
            f"--key-file: {name} has no API key"
            if key_file is not None
            else f"--key-file: expected a file with the API key of {name}"
        )
    require_libraries()
    from accounting.webhooks.outbound import OutboundPolicy

    settings = command_settings()
    private = allow_private or settings.webhook_private_addresses
    url = endpoint_url(name, url)
    OutboundPolicy(private_addresses=private).check_url(url)
    with writer_engine(settings) as engine:
        number, secret = endpoints.add_endpoint(
            engine,
            url=url,
            format=name,
            types=chosen_types,
            realm=realm,
            options=options.to_json(),
            api_key=None if key_file is None else _read_key(key_file),
            allows_private=allow_private,
            batch_size=batch_size,
            parallel=parallel,
            since=_parse_since(engine, since),
            from_start=from_start,
        )
    if name.is_metering:
        write(f"{number}\n")
        flush_output()
        write_message(f"webhook {number} is added; it bills {_billed(number, customer)}")
        return
    write(f"{number} {secret}\n")
    flush_output()
    write_message(
        f"webhook {number} is added; its secret, {secret[:6]}..., verifies signatures: keep it, it "
        f"is not shown again. See the answer to an event: `turn-accounting webhook test {number}`"
    )


def _billed(number: int, template: str | None) -> str:
    table = f"`turn-accounting webhook customers {number} FILE.csv`"
    if template is None:
        return f"nobody before you run {table}"
    return f"customer {visible(template)!r}, or who is named by {table}"


@list_options(lambda: _WEBHOOKS)
def list_all(*, form: ListForm) -> None:
    """List the endpoints: their state, and how far they are behind."""
    from accounting.webhooks import endpoints

    arrangement = _WEBHOOKS.arrangement(form)
    with writer_engine(command_settings()) as engine:
        rows = endpoints.list_endpoints(engine)
    has_rows = write_list(arranged(rows, arrangement), _WEBHOOKS, form, arrangement)
    if not has_rows and not form.for_programs:
        write(f"{_WEBHOOKS.empty}\n")


def remove(number: Number) -> None:
    """Remove an endpoint, with the records of its deliveries."""
    from accounting.webhooks import endpoints

    with writer_engine(command_settings()) as engine:
        endpoints.remove_endpoint(engine, number)
    write_message(f"webhook {number} is removed")


def test(number: Number) -> None:
    """Send an event of type webhook.test now; exit 1 when it is not taken."""
    from accounting.webhooks.signing import require_libraries

    require_libraries()
    from accounting.webhooks.trial import send_test_event

    settings = command_settings()
    with writer_engine(settings) as engine:
        result = send_test_event(
            engine, number, private_addresses=settings.webhook_private_addresses
        )
    if result.failure is None:
        write_message(f"webhook {number} took the event: it answered {result.status}")
        return
    write_message(f"webhook {number} did not take the event: {result.failure}")
    raise typer.Exit(1)


@list_options(lambda: _ATTEMPTS)
def deliveries(
    number: Annotated[
        int | None, typer.Argument(min=1, max=MAX_INTEGER, help="Only of this endpoint.")
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only requests that failed.")] = False,
    refused: Annotated[
        bool, typer.Option("--refused", help="Events that the receiver will never take.")
    ] = False,
    *,
    form: ListForm,
) -> None:
    """List the requests of the last 7 days, newest first."""
    from accounting.webhooks import endpoints

    if failed and refused:
        raise UsageError("--failed goes without --refused")
    listing = _REFUSALS if refused else _ATTEMPTS
    arrangement = listing.arrangement(form)
    limit = arrangement.limit if arrangement.by is None else None
    with writer_engine(command_settings()) as engine:
        if refused:
            rows = endpoints.list_refusals(engine, number, limit)
        else:
            rows = endpoints.list_attempts(engine, number, failed=failed, limit=limit)
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
) -> None:
    """Deliver events again from a position, or skip some; also enables the endpoint."""
    from accounting.webhooks import endpoints

    if (after is None) == (since is None):
        raise UsageError("expected --after SEQ or --since TIME, one of them")
    with writer_engine(command_settings()) as engine:
        seq, last_seq = endpoints.replay_events(
            engine, number, after=after, since=_parse_since(engine, since)
        )
    write_message(
        f"webhook {number} goes on after event {seq}: the feed has "
        f"{counted(last_seq - seq, 'event')} after it"
    )


def customers(
    number: Number,
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE", help="CSV with realm,user,customer or user_key,customer; - for stdin."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Set whom an engine bills for its users; without FILE print that, as CSV.

    A row with an empty customer removes the user's.
    """
    from accounting.webhooks.customers import list_customers, set_customers

    if file is None:
        with writer_engine(command_settings()) as engine:
            rows = list_customers(engine, number)
        if as_json:
            write_json(rows)
        else:
            write_csv(rows, ("realm", "user", "user_key", "customer"))
        return
    if as_json:
        raise UsageError("--json goes without FILE")
    with _opened(file, "FILE") as lines, writer_engine(command_settings()) as engine:
        changes = set_customers(engine, number, lines)
    message = f"{counted(changes.set, 'customer')} set, {changes.removed} removed"
    if changes.unknown:
        message += f"; {counted(changes.unknown, 'user')} of these have no usage so far"
    write_message(message)


def rotate(
    number: Number,
    overlap: Annotated[
        str,
        typer.Option(
            "--overlap", metavar="TIME", help="So long the old secret signs too: 90m, 7d."
        ),
    ] = "24h",
) -> None:
    """Give an endpoint another secret, which is printed once."""
    from accounting.webhooks import endpoints

    seconds = _parse_span("--overlap", overlap)
    with writer_engine(command_settings()) as engine:
        secret, until = endpoints.rotate_secret(engine, number, seconds)
    write(f"{secret}\n")
    flush_output()
    old = "the old one is not used any more"
    if until is not None:
        old = f"the old one signs as well until {minute(until)} UTC"
    write_message(f"webhook {number} has another secret, which is not shown again; {old}")


def enable(number: Number) -> None:
    """Enable an endpoint again, where it stopped, and try it at once."""
    from accounting.webhooks import endpoints

    with writer_engine(command_settings()) as engine:
        was_disabled = endpoints.enable_endpoint(engine, number)
    write_message(f"webhook {number} {'is enabled' if was_disabled else 'was enabled already'}")


def _parse_types(text: str | None) -> Sequence[str] | None:
    if text is None:
        return None
    from accounting.feed.outbox import EVENT_TYPES

    types = [word.strip() for word in text.split(",") if word.strip()]
    unknown = [word for word in types if word not in EVENT_TYPES]
    if unknown or not types:
        named = visible(unknown[0]) if unknown else ""
        raise UsageError(f"--types {named!r}: expected some of {', '.join(EVENT_TYPES)}")
    return list(dict.fromkeys(types))


def _parse_since(engine: "Engine", text: str | None) -> datetime | None:
    from accounting.db.clock import database_now
    from accounting.db.engine import lost_connections

    bound, _ = time_span(text, None)
    if bound is None:
        return None
    with lost_connections(), engine.connect() as connection:
        return instant(bound, database_now(connection))


def _parse_span(option: str, text: str) -> float:
    match = _SPAN.fullmatch(text)
    seconds = int(match[1]) * _UNIT_SECONDS[match[2]] if match else 0 if text == "0" else -1
    if not 0 <= seconds <= MAX_SPAN_DAYS * 86_400:
        raise UsageError(f"{option} {text!r}: expected a time such as 90m, 24h or 7d, or 0")
    return float(seconds)


_Choice = TypeVar("_Choice", bound=StrEnum)


def _choice(option: str, text: str, choices: type[_Choice]) -> _Choice:
    try:
        return choices(text)
    except ValueError:
        raise UsageError(
            f"{option} {visible(text)!r}: expected {listed([choice.value for choice in choices])}"
        ) from None


def _read_key(path: str) -> str:
    """The API key in a file. It has no spaces: it goes into a header."""
    with _opened(path, "--key-file") as file:
        key = file.read(MAX_KEY_LENGTH + 2).strip()
    if not 1 <= len(key) <= MAX_KEY_LENGTH or not re.fullmatch(r"[!-~]+", key):
        raise UsageError(
            f"--key-file {visible(path)}: expected an API key and nothing else: at most "
            f"{MAX_KEY_LENGTH} printable characters without spaces"
        )
    return key


@contextmanager
def _opened(path: str, option: str) -> Iterator[TextIO]:
    """A text file, or stdin."""
    try:
        with ExitStack() as stack:
            yield (
                sys.stdin
                if path == "-"
                else stack.enter_context(Path(path).open(encoding="utf-8-sig", newline=""))
            )
    except OSError as error:
        raise UsageError(f"{option} {visible(path)}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{option} {visible(path)}: expected text in UTF-8") from None
