"""The commands that show the books: ``sessions`` and ``usage``."""

from collections.abc import Callable
from typing import Annotated

import typer

from accounting.cli.arguments import LARGEST_INTEGER, Json, Realm, Since, Until, User, span
from accounting.cli.views import BYTES, write_query
from accounting.config import Settings
from accounting.errors import UsageError
from accounting.reporting import view_queries


def mount(app: typer.Typer, settings: Callable[[], Settings]) -> None:
    """Add the commands, on settings that are read when they run."""
    _mount_sessions(app, settings)
    _mount_usage(app, settings)


def _mount_sessions(app: typer.Typer, settings: Callable[[], Settings]) -> None:
    @app.command()
    def sessions(
        realm: Realm = None,
        user: User = None,
        since: Since = None,
        until: Until = None,
        live: Annotated[bool, typer.Option("--live", help="Only those that live.")] = False,
        limit: Annotated[
            int | None,
            typer.Option(
                "--limit",
                min=1,
                max=LARGEST_INTEGER,
                help="So many at most; without --json 100 unless told.",
            ),
        ] = None,
        as_json: Json = False,
    ) -> None:
        """List the sessions that lived in a span of time, newest first; times are UTC unless
        told.
        """
        begin, end = span(since, until)
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
            **BYTES,
            "estimated": "estimated",
            "disputed": "disputed",
        }
        write_query(settings(), query, columns, as_json=as_json, empty="No sessions.", realm=realm)


def _mount_usage(app: typer.Typer, settings: Callable[[], Settings]) -> None:
    @app.command()
    def usage(
        realm: Realm = None,
        user: User = None,
        since: Since = None,
        until: Until = None,
        by: Annotated[str, typer.Option("--by", help="user or realm.")] = "user",
        per: Annotated[str, typer.Option("--per", help="hour, day or month.")] = "month",
        as_json: Json = False,
    ) -> None:
        """List usage per user or realm; times without a zone are in the realm's."""
        begin, end = span(since, until)
        if by not in {"user", "realm"}:
            raise UsageError(f"--by {by!r}: expected user or realm")
        if per not in {"hour", "day", "month"}:
            raise UsageError(f"--per {per!r}: expected hour, day or month")
        if by == "realm" and user is not None:
            raise UsageError("--user goes with --by user")
        query = view_queries.usage(
            of="user" if by == "user" else "realm",
            length="hour" if per == "hour" else "day" if per == "day" else "month",
            realm=realm,
            user=user,
            since=begin,
            until=end,
        )
        columns = {
            "starts_at": per,
            "realm": "realm",
            "user_id": "user",
            "sessions_started": "sessions",
            "session_seconds": "seconds",
            **BYTES,
            "estimated_bytes": "estimated B",
            "peak_sessions": "peak",
        }
        del columns["peak_sessions" if by == "user" else "user_id"]
        write_query(settings(), query, columns, as_json=as_json, empty="No usage.", realm=realm)
