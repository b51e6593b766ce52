"""The command ``feed``: the events for a billing worker."""

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from accounting.cli.arguments import JsonOption, name_argument
from accounting.cli.output import flush_output, write, write_json
from accounting.cli.resources import command_settings
from accounting.cli.terminal_text import visible
from accounting.errors import UsageError
from accounting.feed.client import Feed
from accounting.ops import servers


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("feed")(print_feed)


def print_feed(
    consumer: Annotated[
        str | None,
        typer.Option(
            "--consumer",
            parser=name_argument,
            help="Only events that this consumer has not handled yet; moves its cursor.",
        ),
    ] = None,
    after: Annotated[
        int,
        typer.Option("--after", min=0, help="Start after this event number; not with --consumer."),
    ] = 0,
    follow: Annotated[
        bool, typer.Option("--follow", help="Keep running, and print new events as they come.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the billing worker's events.

    Sessions that ended, periods that closed, and adjustments, each once and in order.
    """
    if consumer is not None and after:
        raise UsageError("--after goes without --consumer, which has a cursor of its own")
    if consumer is not None and not consumer:
        raise UsageError("--consumer: expected a name, such as invoicer")
    settings = command_settings()
    with (
        servers.database_url(settings, servers.READER_ROLE) as url,
        Feed(
            url,
            reconnect=follow,
            reload_url=lambda: servers.configured_database_url(settings) or url,
        ) as feed,
        _stop_on_signals(feed, follow=follow),
    ):
        events = (
            feed.read(after, follow=follow)
            if consumer is None
            else feed.consume(consumer, follow=follow)
        )
        for event in events:
            _write_event(event._asdict(), as_json=as_json)
            flush_output()  # an event counts as handled when the next one is requested


def _write_event(event: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        write_json([event])
        return
    payload = "  ".join(
        f"{name}={visible(str(value))}"
        for name, value in event["payload"].items()
        if value is not None
    )
    write(f"{event['seq']:>8}  {event['type']:<17}  {visible(event['realm'])}  {payload}\n")


@contextmanager
def _stop_on_signals(feed: Feed, *, follow: bool) -> Iterator[None]:
    """While following, SIGTERM and SIGINT end the loop after the current event."""
    if not follow:
        yield
        return
    previous = {
        number: signal.signal(number, lambda *_: feed.stop())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, action in previous.items():
            signal.signal(number, action)
