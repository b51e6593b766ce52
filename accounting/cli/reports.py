"""The commands that list the books: ``sessions`` and ``usage``."""

from typing import Annotated

import typer

from accounting.cli.arguments import (
    MAX_INTEGER,
    By,
    JsonOption,
    Per,
    Realm,
    Since,
    Until,
    User,
    bucket_length,
    time_span,
    usage_subject,
)
from accounting.cli.resources import command_settings
from accounting.cli.rows import BYTE_COLUMNS, write_query
from accounting.errors import UsageError
from accounting.reporting import view_queries


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("sessions")(sessions)
    app.command("usage")(usage)


def sessions(
    realm: Realm = None,
    user: User = None,
    since: Since = None,
    until: Until = None,
    live: Annotated[bool, typer.Option("--live", help="Only open sessions.")] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=1,
            max=MAX_INTEGER,
            help="At most this many; 100 by default, all with --json.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the sessions that were open in a span of time, newest first; UTC by default."""
    begin, end = time_span(since, until)
    if limit is None and not as_json:
        limit = 100
    query = view_queries.sessions(
        realm=realm, user=user, since=begin, until=end, live=live, limit=limit
    )
    columns = {
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
    }
    write_query(
        command_settings(),
        query,
        columns,
        as_json=as_json,
        empty="No sessions.",
        realm=realm,
        user=user,
    )


def usage(
    realm: Realm = None,
    user: User = None,
    since: Since = None,
    until: Until = None,
    by: By = "user",
    per: Per = "month",
    as_json: JsonOption = False,
) -> None:
    """List usage per user or realm; times without an offset are in the realm's time zone."""
    begin, end = time_span(since, until)
    subject, length = usage_subject(by), bucket_length(per)
    if subject == "realm" and user is not None:
        raise UsageError("--user goes with --by user")
    query = view_queries.usage(
        by=subject, per=length, realm=realm, user=user, since=begin, until=end
    )
    columns = {
        "starts_at": length,
        "realm": "realm",
        "user_id": "user",
        "sessions_started": "sessions",
        "session_seconds": "seconds",
        **BYTE_COLUMNS,
        "estimated_bytes": "estimated B",
        "peak_sessions": "peak",
    }
    del columns["peak_sessions" if subject == "user" else "user_id"]
    write_query(
        command_settings(),
        query,
        columns,
        as_json=as_json,
        empty="No usage.",
        realm=realm,
        user=user,
    )
