"""The commands that list the books: ``sessions`` and ``usage``."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Final

import typer

from accounting.cli.arguments import (
    Per,
    Realm,
    Since,
    Until,
    UsageBy,
    User,
    list_options,
)
from accounting.cli.resources import command_settings
from accounting.cli.rows import BYTE_COLUMNS, NOW, ListForm, Listing, write_query
from accounting.cli.table import Column, Kind
from accounting.cli.terminal_text import GREEN, YELLOW
from accounting.domain.calendar import Bucket, BucketLength, is_cut_bucket, to_micros
from accounting.domain.human_text import bucket_start, minute, short_time
from accounting.domain.session_ids import short_session_id
from accounting.errors import UsageError
from accounting.reporting import session_queries, usage_queries
from accounting.reporting.completeness import Counted
from accounting.reporting.filters import bucket_length, time_span, usage_subject
from accounting.reporting.view_query import TRAFFIC

ESTIMATED_MARK: Final = "~"
DISPUTED_MARK: Final = "!"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("sessions")(sessions)
    app.command("usage")(usage)


@list_options(lambda: _SESSIONS)
def sessions(
    realm: Realm = None,
    user: User = None,
    since: Since = None,
    until: Until = None,
    live: Annotated[bool, typer.Option("--live", help="Only open sessions.")] = False,
    *,
    form: ListForm,
) -> None:
    """List sessions, newest first.

    Those that were open in a span of time; times without an offset are UTC. People get
    100 of them, or --limit; programs get all. `trace --session ID` shows the reports
    that one consists of.

    How a session ended: deleted, by coturn; expired, without a report for longer
    than its lifetime; superseded, by a new one under its id. Marks: ~ estimated, reports
    were lost, and the total restored their bytes; ! disputed, reports contradict each
    other.
    """
    begin, end = time_span(since, until)
    write_query(
        command_settings(),
        lambda arrangement: session_queries.sessions(
            realm=realm, user=user, since=begin, until=end, live=live, arrangement=arrangement
        ),
        replace(_SESSIONS, empty="No live sessions.") if live else _SESSIONS,
        form,
        realm=realm,
        user=user,
        since=begin,
        until=end,
    )


@list_options(lambda: usage_listing("user", "month"))
def usage(
    realm: Realm = None,
    user: User = None,
    since: Since = None,
    until: Until = None,
    by: UsageBy = "user",
    per: Per = "month",
    *,
    form: ListForm,
) -> None:
    """List usage per user, realm, server or transport.

    By hour, day or month: all usage there is, or that of a span of time. Times without
    an offset are in the realm's time zone. A month or day that --since or --until cuts
    counts from there on, or up to there. A time with an offset cuts none: buckets are
    listed whole that begin in the span. A month or day in which the realm's time zone
    changed has a row for each part, from and to. "peak" is the most sessions that were
    open at once, in the realm, at the server or over the transport; of a day or month,
    in an hour.
    "est." is how much of the traffic is of estimated sessions: reports were lost,
    and their bytes are known from totals only.
    """
    begin, end = time_span(since, until)
    subject, length = usage_subject(by), bucket_length(per)
    if subject != "user" and user is not None:
        raise UsageError("--user goes with --by user")
    write_query(
        command_settings(),
        lambda arrangement: usage_queries.usage(
            by=subject,
            per=length,
            realm=realm,
            user=user,
            since=begin,
            until=end,
            arrangement=arrangement,
        ),
        usage_listing(
            subject,
            length,
            is_cut=usage_queries.cuts_buckets(length, begin, end),
            is_ended=end is not None,
        ),
        form,
        realm=realm,
        user=user,
        since=begin,
        until=end,
    )


def usage_listing(
    subject: str, length: str, *, is_cut: bool = False, is_ended: bool = True
) -> Listing:
    """The list of usage per user, realm, server or transport, in buckets of that length.

    ``is_cut``: some may be parts of buckets, so that each row says what it spans. ``is_ended``: a
    terminal also shows their ends; without an end of the span the last is in the future.
    """
    names = _NAME_COLUMNS.get(subject, {})
    span = {"starts_at": "from", "ends_at": "to"} if is_cut else {"starts_at": length}

    def of_rows(listing: Listing, rows: Sequence[Mapping[str, Any]]) -> Listing:
        if is_cut or not any(_is_cut(row, length) for row in rows):
            return listing
        return usage_listing(subject, length, is_cut=True)

    plain = {
        **span,
        "realm": "realm",
        **names,
        "sessions_started": "sessions",
        "session_seconds": "seconds",
        **BYTE_COLUMNS,
        "estimated_bytes": "estimated B",
    }
    if subject != "user":
        plain["peak_sessions"] = "peak"
    columns = (
        *(
            Column(
                field=field,
                heading=heading,
                rank=4 if field == "ends_at" else 0,
                text=short_time if is_cut else bucket_start(length),
            )
            for field, heading in span.items()
        ),
        Column(field="realm", heading="realm", kind=Kind.NAME),
        *(Column(field=field, heading=name, kind=Kind.NAME) for field, name in names.items()),
        Column(field="sessions_started", heading="sessions", kind=Kind.COUNT, rank=1),
        Column(field="peak_sessions", heading="peak", kind=Kind.COUNT, rank=2),
        Column(field="session_seconds", heading="time", kind=Kind.SECONDS, rank=3),
        *TRAFFIC_COLUMNS,
    )
    return Listing(
        plain=plain,
        columns=[
            column
            for column in columns
            if (column.field != "peak_sessions" or subject != "user")
            and (is_ended or column.field != "ends_at")
        ],
        rank=TRAFFIC,
        empty="No usage.",
        counted=Counted.USAGE,
        per=BucketLength(length),
        aliases={length: "starts_at"},
        summed=USAGE_SUMS,
        sum_fields=USAGE_FIELDS,
        of_rows=of_rows,
    )


def _is_cut(row: Mapping[str, Any], length: str) -> bool:
    """Whether a change of the realm's time zone cuts this bucket."""
    bucket = Bucket(
        starts_at=to_micros(row["starts_at"]),
        ends_at=to_micros(row["ends_at"]),
        time_zone=row["time_zone"],
    )
    return is_cut_bucket(BucketLength(length), bucket)


def _estimated_share(row: Mapping[str, Any]) -> str:
    """How much of the traffic is estimated, in percent: never 0 or 100 unless exactly so."""
    traffic, estimated = row["received_bytes"] + row["sent_bytes"], row["estimated_bytes"]
    if not estimated:
        return ""
    percent = 100 * estimated / traffic if traffic else 100
    if percent < 1:
        return "<1%"
    return ">99%" if 99 < percent < 100 else f"{percent:.0f}%"


def _end(session: Mapping[str, Any]) -> str:
    """How a session ended, and what is uncertain about it."""
    marks = ESTIMATED_MARK * session["estimated"] + DISPUTED_MARK * session["disputed"]
    return f"{session['end_cause'] or 'live'} {marks}".rstrip()


def _open_seconds(session: Mapping[str, Any]) -> int:
    """How long a session was open; a live one until now."""
    started_at: datetime = session["started_at"]
    until: datetime = session["ended_at"] or session[NOW] or session["last_seen_at"]
    return max(0, round((until - started_at).total_seconds()))


def _end_style(session: Mapping[str, Any]) -> str:
    if session["estimated"] or session["disputed"]:
        return YELLOW
    return GREEN if session["end_cause"] is None else ""


def _legend(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the marks mean that are in these rows."""
    meanings = (
        (ESTIMATED_MARK, "estimated", "reports were lost, restored from the total"),
        (DISPUTED_MARK, "disputed", "reports contradict each other"),
    )
    return "\n".join(
        f"{mark} {flag}: {meaning}"
        for mark, flag, meaning in meanings
        if any(row[flag] for row in rows)
    )


_NAME_COLUMNS: Final[Mapping[str, Mapping[str, str]]] = {
    "user": {"user_id": "user"},
    "server": {"server_address": "server"},
    "transport": {"transport": "transport"},
}
"""What a row of usage is of besides the realm, by subject."""
USAGE_SUMS: Final = (
    "sessions_started",
    "session_seconds",
    "received_bytes",
    "sent_bytes",
    "estimated_bytes",
)
USAGE_FIELDS: Final = {
    TRAFFIC: lambda row: row["received_bytes"] + row["sent_bytes"],
    "estimated_share": _estimated_share,
}
TRAFFIC_COLUMNS: Final = (
    Column(field="received_bytes", heading="received", kind=Kind.BYTES),
    Column(field="sent_bytes", heading="sent", kind=Kind.BYTES),
    Column(field=TRAFFIC, heading="total", kind=Kind.BYTES),
    Column(
        field="estimated_share",
        heading="est.",
        kind=Kind.COUNT,
        optional=True,
        style=lambda _row: YELLOW,
    ),
)
_SESSIONS: Final[Listing] = Listing(
    plain={
        "session_id": "session",
        "realm": "realm",
        "user_id": "user",
        "allocation_id": "allocation",
        "started_at": "started",
        "ended_at": "ended",
        "end_cause": "cause",
        "transport": "transport",
        **BYTE_COLUMNS,
        "estimated": "estimated",
        "disputed": "disputed",
    },
    columns=(
        Column(field="started_at", heading="started (UTC)", text=minute),
        Column(field="session_id", heading="session", text=short_session_id),
        Column(field="realm", heading="realm", kind=Kind.NAME),
        Column(field="user_id", heading="user", kind=Kind.NAME),
        Column(field="source", heading="source", kind=Kind.TEXT, rank=3),
        Column(field="transport", heading="transport", rank=2),
        Column(field="open_seconds", heading="time", kind=Kind.SECONDS, rank=1),
        Column(field="received_bytes", heading="received", kind=Kind.BYTES),
        Column(field="sent_bytes", heading="sent", kind=Kind.BYTES),
        Column(field="end", heading="end", style=_end_style),
    ),
    rank=TRAFFIC,
    empty="No sessions.",
    counted=Counted.SESSIONS,
    fields={"end": _end, "open_seconds": _open_seconds},
    summed=("received_bytes", "sent_bytes"),
    noun="session",
    default_limit=100,
    legend=_legend,
)
