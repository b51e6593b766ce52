"""The command ``gaps``: when messages may have been lost before they reached the books."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Final

import typer

from accounting.cli.arguments import Since, Until, list_options, name_argument
from accounting.cli.output import flush_output, write_message
from accounting.cli.resources import command_settings, open_reader
from accounting.cli.rows import NOW, ListForm, Listing, write_query
from accounting.cli.table import Column, Kind
from accounting.cli.terminal_text import RED
from accounting.domain.gap_causes import cause_in_words
from accounting.domain.human_text import minute
from accounting.reporting import view_queries
from accounting.reporting.completeness import NotCaptured, not_captured_in
from accounting.reporting.filters import time_span
from accounting.reporting.view_query import LENGTH

STILL_OPEN: Final = "still open"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("gaps")(gaps)


@list_options(lambda: gap_listing(""))
def gaps(
    source: Annotated[
        str | None, typer.Option("--source", parser=name_argument, help="Only this source.")
    ] = None,
    since: Since = None,
    until: Until = None,
    *,
    form: ListForm,
) -> None:
    """List when messages may have been lost, and why.

    Open gaps first, then the newest: those that overlap a span of time. Times
    without an offset are UTC. A gap begins at the last time until which all is
    proved to be stored, so it need not have lost anything; and a session's
    total often restores what it lost. --top N and --sort time: the longest.
    People get 100 gaps, or --limit, and a line on standard error for a source that
    nobody captures now: its gap is recorded when a collector starts. Programs
    get all, and find captured_until in `source list`.

    "Gaps" in docs/operations.md of the project says what to do about each cause.
    """
    begin, end = time_span(since, until)
    settings = command_settings()
    lapses: Collection[NotCaptured] = []
    if not form.for_programs:
        with open_reader(settings) as reader:
            lapses = not_captured_in(reader, end, source)
    listing = gap_listing(" (UTC)")
    write_query(
        settings,
        lambda arrangement: view_queries.gaps(
            source=source, since=begin, until=end, arrangement=arrangement
        ),
        replace(listing, empty="No gap is recorded yet.") if lapses else listing,
        form,
        source=source,
        since=begin,
        until=end,
    )
    flush_output()
    for lapse in lapses:
        write_message(f"source {lapse.source!r}: {lapse}")


def gap_listing(zone: str = "") -> Listing:
    """The list of gaps, with times in a zone that the headings name."""
    return Listing(
        plain={
            "gap_id": "gap",
            "source": "source",
            "from_at": "from",
            "to_at": "to",
            "cause": "cause",
            "detail": "detail",
        },
        columns=(
            Column(field="source", heading="source", kind=Kind.NAME),
            Column(field="from_at", heading=f"from{zone}", text=minute),
            Column(field="until", heading="until", style=_until_style),
            Column(field="open_seconds", heading="time", kind=Kind.SECONDS, rank=1),
            Column(field="what", heading="cause", kind=Kind.WORDS),
            Column(field="detail", heading="detail", kind=Kind.WORDS, rank=2, optional=True),
        ),
        rank=LENGTH,
        empty="No gaps.",
        fields={
            "until": lambda gap: STILL_OPEN if gap["to_at"] is None else minute(gap["to_at"]),
            "open_seconds": _open_seconds,
            "what": lambda gap: cause_in_words(gap["cause"]),
        },
        noun="gap",
        default_limit=100,
    )


def _open_seconds(gap: Mapping[str, Any]) -> int | None:
    """How long a gap was open; an open one until now."""
    from_at: datetime = gap["from_at"]
    until: datetime | None = gap["to_at"] or gap[NOW]
    return None if until is None else max(0, round((until - from_at).total_seconds()))


def _until_style(gap: Mapping[str, Any]) -> str:
    return RED if gap["to_at"] is None else ""
