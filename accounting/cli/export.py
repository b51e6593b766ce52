"""The commands that hand the books on: ``feed`` and ``export``. Mounted by ``cli``.

Owns how they read their arguments; what a selection means is the business of
``export.export_queries``.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

import typer

from accounting.cli.arguments import Json, Realm, from_argument, period_day
from accounting.cli.progress import progress_bar
from accounting.cli.terminal import flush_output, visible, warn, write, write_json
from accounting.config import Settings
from accounting.errors import AccountingError, UsageError
from accounting.export import export as exporting
from accounting.export.export import Format
from accounting.export.export_queries import Kind, Selection
from accounting.feed.client import Feed
from accounting.ops import service

Period = Annotated[
    str | None, typer.Option("--period", help="A closed period: its first day, YYYY-MM-DD.")
]
Since = Annotated[
    str | None,
    typer.Option("--since", "--from", help="From this time on, ISO 8601; UTC unless told."),
]
Until = Annotated[
    str | None, typer.Option("--until", "--to", help="Before this time, ISO 8601; UTC unless told.")
]
Form = Annotated[Format, typer.Option("--format", help="csv, jsonl or parquet.")]
Output = Annotated[
    str,
    typer.Option("--output", "-o", help="A directory for file and manifest; - for stdout."),
]

_ABOUT: Final = {
    Kind.SESSIONS: "Export sessions: those that ended in the period or span, so each is in one"
    " export.",
    Kind.STATEMENTS: "Export statements: of the period, or of those that begin in the span.",
    Kind.ADJUSTMENTS: "Export adjustments: those posted in the period, to be billed with it, or in"
    " the span.",
}


def mount(app: typer.Typer, settings: Callable[[], Settings]) -> None:
    """Add the commands to the command line. ``settings``: reads them when a command runs."""
    app.command(name="feed")(_feed_command(settings))
    group = typer.Typer(
        help="Usage, sessions, statements or adjustments as a file. Exit 3: not all there yet.",
        no_args_is_help=True,
    )
    group.command(name=Kind.USAGE)(_usage_command(settings))
    for kind, about in _ABOUT.items():
        group.command(name=kind, help=about)(_plain_command(settings, kind))
    group.command(name="check")(check)
    app.add_typer(group, name="export")


def _feed_command(settings: Callable[[], Settings]) -> Callable[..., None]:
    def feed(
        consumer: Annotated[
            str | None,
            typer.Option(
                "--consumer",
                parser=from_argument,
                help="Only what this consumer has not had, and move it on.",
            ),
        ] = None,
        after: Annotated[
            int, typer.Option("--after", min=0, help="Without a consumer: after this number.")
        ] = 0,
        follow: Annotated[bool, typer.Option("--follow", help="Wait for more.")] = False,
        as_json: Json = False,
    ) -> None:
        """Print the feed for the billing worker: what ended, closed, and was adjusted."""
        if consumer is not None and after:
            raise UsageError("--after goes without --consumer, which has a cursor of its own")
        if consumer is not None and not consumer:
            raise UsageError("--consumer: expected a name, such as invoicer")
        with (
            service.database_url(settings(), service.READER) as url,
            Feed(url, patient=follow) as reading,
            _ended_by_signals(reading, follow=follow),
        ):
            events = (
                reading.read(after, follow=follow)
                if consumer is None
                else reading.consume(consumer, follow=follow)
            )
            for event in events:
                _write_event(event._asdict(), as_json=as_json)
                # Handled is what was handed over, not what waits in our buffer.
                flush_output()

    return feed


def _write_event(event: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        write_json([event])
        return
    about = "  ".join(
        f"{name}={visible(str(value))}"
        for name, value in event["payload"].items()
        if value is not None
    )
    write(f"{event['seq']:>8}  {event['type']:<17}  {visible(event['realm'])}  {about}\n")


@contextmanager
def _ended_by_signals(feed: Feed, *, follow: bool) -> Iterator[None]:
    """While following, let SIGTERM and SIGINT end the loop in order."""
    if not follow:
        yield
        return
    before = {
        number: signal.signal(number, lambda *_: feed.stop())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def _usage_command(settings: Callable[[], Settings]) -> Callable[..., None]:
    def usage(
        realm: Realm = None,
        period: Period = None,
        since: Since = None,
        until: Until = None,
        by: Annotated[str, typer.Option("--by", help="user or realm.")] = "user",
        per: Annotated[str, typer.Option("--per", help="hour, day or month.")] = "day",
        format_: Form = Format.CSV,
        output: Output = "-",
    ) -> None:
        """Export usage: the buckets that start in the period or span."""
        if by not in {"user", "realm"}:
            raise UsageError(f"--by {by!r}: expected user or realm")
        if per not in {"hour", "day", "month"}:
            raise UsageError(f"--per {per!r}: expected hour, day or month")
        if per == "month" and period is not None:
            raise UsageError("--per month: a period need not be a month: see `export statements`")
        selection = _selection(Kind.USAGE, realm, period, since, until, of=by, per=per)
        _export(settings(), selection, format_, output)

    return usage


def _plain_command(settings: Callable[[], Settings], kind: Kind) -> Callable[..., None]:
    """The export of a kind that has no options of its own."""

    def export(
        realm: Realm = None,
        period: Period = None,
        since: Since = None,
        until: Until = None,
        format_: Form = Format.CSV,
        output: Output = "-",
    ) -> None:
        _export(settings(), _selection(kind, realm, period, since, until), format_, output)

    return export


def check(
    manifests: Annotated[list[Path], typer.Argument(help="Manifests beside exported files.")],
) -> None:
    """Check exported files against their manifests; exit 1 when one differs."""
    troubles = [trouble for one in manifests if (trouble := exporting.check_export(one))]
    for trouble in troubles:
        warn(trouble)
    raise typer.Exit(1 if troubles else 0)


def _selection(
    kind: Kind,
    realm: str | None,
    period: str | None,
    since: str | None,
    until: str | None,
    **others: str,
) -> Selection:
    if period is not None and (since is not None or until is not None):
        raise UsageError("--period goes without --since and --until")
    begin, end = _time(since), _time(until)
    if begin is not None and end is not None and begin >= end:
        raise UsageError(f"--since {since} is not before --until {until}")
    day = None if period is None else period_day(period)
    return Selection(kind=kind, realm=realm, period=day, since=begin, until=end, **others)


def _time(value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        found = datetime.fromisoformat(value)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageError(f"{value!r} is no time: expected ISO 8601, such as 2026-11-22") from None


def _export(settings: Settings, selection: Selection, format_: Format, output: str) -> None:
    with (
        service.database(settings, service.READER) as engine,
        progress_bar("exporting", "rows") as progress,
    ):
        if output == "-":
            if format_ is Format.PARQUET and sys.stdout.isatty():
                raise UsageError("Parquet is no text: name a directory with --output, or a pipe")
            exporting.export_to_stream(engine, selection, format_, _Output(), progress)
            return
        exported = exporting.export_to_directory(engine, selection, format_, Path(output), progress)
    if sys.stderr.isatty():
        warn(f"{exported.rows:,} rows in {exported.path}")


class _Output:
    """Standard output as bytes. A reader that wants no more of it ends the process quietly."""

    def __init__(self) -> None:
        self._stream: BinaryIO = sys.stdout.buffer

    def write(self, data: bytes) -> int:
        try:
            self._stream.write(data)
            self._stream.flush()
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            sys.exit(0)
        except OSError as error:
            raise AccountingError(f"can't write to standard output: {error.strerror}") from None
        return len(data)

    def flush(self) -> None:
        """Nothing waits here."""
