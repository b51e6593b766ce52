"""The commands for webhooks: ``webhook add|list|remove|test|rotate|enable`` are here.

``webhook_deliveries`` has ``deliveries`` and ``replay``, ``webhook_customers`` the table of an
engine's customers.
"""

from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Annotated, Final

import typer

from accounting.cli.arguments import JsonOption, list_options, name_argument
from accounting.cli.output import flush_output, write, write_json, write_message
from accounting.cli.resources import command_settings, writer_engine
from accounting.cli.rows import ListForm, Listing, arranged, write_list
from accounting.cli.table import Column, Kind
from accounting.cli.webhook_arguments import (
    Number,
    opened,
    parse_choice,
    parse_since,
    parse_span,
    parse_types,
    read_key,
)
from accounting.cli.webhook_customers import customers
from accounting.cli.webhook_deliveries import deliveries, replay
from accounting.domain.human_text import minute, visible
from accounting.errors import UsageError
from accounting.plurals import counted

if TYPE_CHECKING:
    from accounting.webhooks.endpoints import CountedSpan

_WEBHOOKS: Final = Listing(
    plain={
        "number": "number",
        "state": "state",
        "url": "url",
        "format": "format",
        "types": "types",
        "realm": "realm",
        "counted_from": "counted from",
        "delivered_events": "events delivered",
        "events_behind": "events behind",
        "seq": "goes on after event",
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
        Column(field="events_behind", heading="events behind", kind=Kind.COUNT),
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
        ),
    },
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
    customers: Annotated[
        str | None,
        typer.Option(
            "--customers",
            metavar="FILE",
            help="CSV of whom the engine bills, as for `webhook customers`; - for stdin.",
        ),
    ] = None,
    invoice_grace: Annotated[
        str,
        typer.Option(
            "--invoice-grace", metavar="TIME", help="How long Stripe leaves an invoice open: 72h."
        ),
    ] = "1h",
    as_json: JsonOption = False,
) -> None:
    """Add an endpoint; prints the secret that verifies its signatures, only once.

    It gets the events that are recorded from now on, and earlier ones with
    --since or --from-start. An engine has no secret; it counts the hours that
    begin from then on.
    """
    from accounting.webhooks import endpoints
    from accounting.webhooks.formats import endpoint_url, repeat_seconds
    from accounting.webhooks.formats.options import (
        CloudEventsMode,
        FormatName,
        FormatOptions,
        MeterValue,
        Unit,
    )
    from accounting.webhooks.signing import require_libraries

    if since is not None and from_start:
        raise UsageError("--since goes without --from-start")
    name = parse_choice("--format", format_, FormatName)
    options = FormatOptions(
        mode=parse_choice("--mode", mode, CloudEventsMode),
        meter=FormatOptions().meter if meter is None else meter,
        value=parse_choice("--value", value, MeterValue),
        unit=parse_choice("--unit", unit, Unit),
        customer=customer,
        invoice_grace_seconds=int(parse_span("--invoice-grace", invoice_grace)),
    )
    batch_size = name.default_batch if batch is None else batch
    options.check(name, batch_size)
    if name.is_metering != (key_file is not None):
        raise UsageError(
            f"--key-file: {name} has no API key"
            if key_file is not None
            else f"--key-file: expected a file with the API key of {name}"
        )
    require_libraries()
    from accounting.webhooks.outbound_policy import OutboundPolicy
    from accounting.webhooks.target_url import names_this_machine

    settings = command_settings()
    url = endpoint_url(name, url)
    may_be_private = allow_private or settings.webhook_private_addresses
    with suppress(ValueError):  # check_url says what is wrong with it
        allow_private |= names_this_machine(url)
    OutboundPolicy(private_addresses=may_be_private or allow_private).check_url(url)
    if "-" == key_file == customers:
        raise UsageError("--key-file and --customers: only one of them can be standard input")
    key = None if key_file is None else read_key(key_file)
    with ExitStack() as stack:
        lines = None if customers is None else stack.enter_context(opened(customers, "--customers"))
        engine = stack.enter_context(writer_engine(settings))
        number, secret = endpoints.add_endpoint(
            engine,
            url=url,
            format=name,
            types=parse_types(types),
            realm=realm,
            options=options.to_json(),
            customers=lines,
            api_key=key,
            allows_private=allow_private,
            batch_size=batch_size,
            parallel=parallel,
            since=parse_since(engine, since, realm),
            from_start=from_start,
        )
        span = endpoints.read_counted_span(engine, number) if name.is_metering else None
    if as_json:
        write_json([{"number": number, "secret": None if name.is_metering else secret}])
    elif not name.is_metering:
        write(f"{secret}\n")
    flush_output()
    if span is not None:
        text = f"webhook {number} is added; {_span_in_words(span)}"
        if (since is not None or from_start) and (seconds := repeat_seconds(name)) is not None:
            text += (
                f". What another endpoint sent to {name} it counts again, if that was more than "
                f"{seconds / 3600:.0f} hours ago: --meter then needs another name"
            )
        write_message(text)
        return
    write_message(
        f"webhook {number} is added; its secret, {secret[:6]}..., verifies signatures: keep it, it "
        f"is not shown again. See the answer to an event: `turn-accounting webhook test {number}`"
    )


def _span_in_words(span: "CountedSpan") -> str:
    if span.since is None:
        return "it bills all usage that the feed has"
    text = f"it bills the hours that begin from {minute(span.since)} UTC on"
    if span.cut_periods:
        (realm, period), *others = span.cut_periods
        of = f"{period} of realm {visible(realm)!r}"
        more = f" and of {counted(len(others), 'other period')}" if others else ""
        text += f", so only a part of {of}{more}: `--since` the beginning of a period bills all"
    return text


@list_options(lambda: _WEBHOOKS)
def list_all(*, form: ListForm) -> None:
    """List the endpoints: their state, and how far they are behind."""
    from accounting.webhooks import endpoints

    arrangement = _WEBHOOKS.arrangement(form)
    with writer_engine(command_settings()) as engine:
        rows = endpoints.list_endpoints(engine)
    if not form.as_json:
        rows = [{**row, "types": ",".join(row["types"] or ()) or None} for row in rows]
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
    from accounting.webhooks.send_test_event import send_test_event

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


def rotate(
    number: Number,
    overlap: Annotated[
        str,
        typer.Option(
            "--overlap", metavar="TIME", help="So long the old secret signs too: 90m, 7d."
        ),
    ] = "24h",
    key_file: Annotated[
        str | None,
        typer.Option("--key-file", metavar="FILE", help="File with an engine's key; - stdin."),
    ] = None,
) -> None:
    """Give an endpoint another secret, which is printed once; or an API key."""
    from accounting.webhooks import endpoints

    if key_file is not None:
        key = read_key(key_file)
        with writer_engine(command_settings()) as engine:
            endpoints.set_api_key(engine, number, key)
        write_message(f"webhook {number} has another API key")
        return
    seconds = parse_span("--overlap", overlap)
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
        state = endpoints.enable_endpoint(engine, number)
    words = {
        "disabled": "is enabled",
        "failing": "is tried again at once",
        "enabled": "was enabled already",
    }
    write_message(f"webhook {number} {words[state]}")
