"""The command ``feed``: the events for a billing worker."""

import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final, assert_never

import typer

from accounting.cli.arguments import MAX_INTEGER, JsonOption, name_argument
from accounting.cli.output import flush_output, write, write_json
from accounting.cli.resources import command_settings
from accounting.cli.table import UNLIMITED
from accounting.cli.terminal_text import encodable, split_text, text_width
from accounting.domain.human_text import human_bytes, human_seconds, minute, visible, visible_name
from accounting.errors import UsageError
from accounting.plurals import counted

if TYPE_CHECKING:
    from accounting.feed.client import Feed, FeedEvent

_CUT: Final = "..."
"""Ends what is too long for its line, such as a reason."""


class FeedFormat(StrEnum):
    """The forms in which an event is printed."""

    TEXT = "text"
    JSON = "json"
    CLOUDEVENTS = "cloudevents"


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
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=1, max=MAX_INTEGER, help="At most N events."),
    ] = None,
    format_: Annotated[
        FeedFormat,
        typer.Option(
            "--format",
            metavar="text|json|cloudevents",
            help="Lines for people, or one JSON object per line: of our own, or a CloudEvent.",
        ),
    ] = FeedFormat.TEXT,
    as_json: JsonOption = False,
) -> None:
    """Print the billing worker's events.

    Sessions that ended, users' usage by hour, closed periods, adjustments, limits that
    were reached, and faults of sources and webhooks: each once, numbered, in order.
    """
    from accounting.feed.client import Feed, NumberBeyondEnd
    from accounting.ops import servers

    if as_json and format_ is FeedFormat.CLOUDEVENTS:
        raise UsageError("--json is another form than --format cloudevents, which is JSON as well")
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
        try:
            write_event = _writer(feed, FeedFormat.JSON if as_json else format_)
            for number, event in enumerate(events, start=1):
                write_event(event)
                flush_output()  # an event counts as handled when the next one is requested
                if number == limit:
                    feed.stop()  # the next request counts the event as handled, and gets no other
        except NumberBeyondEnd as beyond:
            if consumer is not None:
                raise
            raise UsageError(
                f"--after {after}: the feed ends at {beyond.last_seq}. If you have read up to "
                f"{after}, the database was restored from a backup since: read again from a number "
                "that the backup has, or from 0, and skip the event ids that were handled"
            ) from None


def _writer(feed: "Feed", format_: FeedFormat) -> Callable[["FeedEvent"], None]:
    match format_:
        case FeedFormat.TEXT:
            return _write_line
        case FeedFormat.JSON:
            return lambda event: write_json([event._asdict()])
        case FeedFormat.CLOUDEVENTS:
            from accounting.webhooks.formats.cloudevents import cloud_event

            source = feed.source()
            return lambda event: write_json([cloud_event(event, source)])
        case _:
            assert_never(format_)


def _write_line(event: "FeedEvent") -> None:
    is_short = sys.stdout.isatty()
    columns = shutil.get_terminal_size().columns if is_short else UNLIMITED
    write(f"{_line(event._asdict(), columns, is_short=is_short)}\n")


def _line(event: Mapping[str, Any], columns: int, *, is_short: bool) -> str:
    """One line for people: when, what, and the figures; ``--json`` has the rest.

    ``is_short``: with units, else with all digits.
    """
    payload = event["payload"]
    time = minute(_time(event))
    kind = event["type"].split(".")[0]
    head = f"{event['seq']:>4}  {time}  {kind:<10}  {visible_name(event['realm'])}  "
    room = columns - text_width(head)
    match event["type"]:
        case "session.ended":
            began, ended = map(datetime.fromisoformat, (payload["started_at"], payload["ended_at"]))
            seconds = (ended - began).total_seconds()
            open_for = human_seconds(round(seconds)) if is_short else f"{round(seconds):,} s"
            cause = payload["end_cause"]
            marks = [cause if cause != "deleted" else ""]
            marks += [mark if payload[mark] else "" for mark in ("estimated", "disputed")]
            rest = ", ".join([open_for, _traffic(payload, is_short), *filter(None, marks)])
            if text_width(rest) > room:
                rest = ", ".join([open_for, _total(payload, is_short), *filter(None, marks)])
        case "period.closed" if "statements" in payload:
            rest = f"closed {payload['period']}, {counted(payload['statements'], 'line')}"
            if payload["without"]:
                rest += f", without {', '.join(map(visible, payload['without']))}"
        case "adjustment.posted":
            reason = visible(f"{payload['author']}: {payload['reason']}")
            rest = f"{payload['period']}, {_total(payload, is_short)}, {reason}"
        case type_:
            rest = _rest(type_, payload, is_short)
    if text_width(rest) > room > len(_CUT):
        rest = split_text(rest, room - len(_CUT))[0] + _CUT
    return encodable(head + rest, sys.stdout.encoding)


def _rest(type_: str, payload: Mapping[str, Any], is_short: bool) -> str:
    """The facts of the rarer events; of one of a later version its payload."""
    match type_:
        case "usage.counted" if "correction" in payload:
            mark = ", correction" if payload["correction"] else ""
            return f"{payload['starts_at'][:16]}, {_traffic(payload, is_short)}{mark}"
        case "limit.reached" | "limit.cleared" if "threshold" in payload:
            return f"{type_.removeprefix('limit.')} {_limit(payload, is_short)}"
        case "source.trouble" if "trouble" in payload:
            facts = filter(None, (payload["trouble"], payload["detail"]))
            return visible(f"{payload['source']}: {', '.join(facts)}")
    return visible(json.dumps(payload))


def _time(event: Mapping[str, Any]) -> datetime:
    """When it happened, in UTC: a session's end, else when the event was recorded."""
    ended_at = event["payload"].get("ended_at")
    created_at: datetime = event["created_at"]
    time = datetime.fromisoformat(ended_at) if ended_at else created_at
    return time.astimezone(UTC)


def _traffic(payload: Mapping[str, Any], is_short: bool) -> str:
    received, sent = (_size(payload[f"{name}_bytes"], is_short) for name in ("received", "sent"))
    return f"{received} in, {sent} out"


def _limit(payload: Mapping[str, Any], is_short: bool) -> str:
    """The threshold that was reached, of what, and of whose usage."""
    amount, usage = payload["amount"], payload["usage"]
    match payload["measure"]:
        case "bytes":
            what, used = _size(amount, is_short), _size(usage, is_short)
        case measure:
            what, used = f"{amount:,} {measure.replace('_', ' ')}", f"{usage:,}"
    whose = "the realm" if payload["user_key"] is None else "a user"
    return f"{payload['threshold']}% of {what} a {payload['per']}, {whose}: {used}"


def _total(payload: Mapping[str, Any], is_short: bool) -> str:
    return _size(payload["received_bytes"] + payload["sent_bytes"], is_short)


def _size(count: int, is_short: bool) -> str:
    return human_bytes(count) if is_short else f"{count:,} B"


@contextmanager
def _stop_on_signals(feed: "Feed", *, follow: bool) -> Iterator[None]:
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
