"""Queries on the views of schema ``reporting``: filters, and an order that is always the same."""

from datetime import UTC, date, datetime
from typing import Any, Final, Literal

from sqlalchemy import Select, column, func, select, table

_VIEW_SUFFIXES: Final = {"hour": "hourly", "day": "daily", "month": "monthly"}


def sessions(
    *,
    realm: str | None = None,
    user: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    live: bool = False,
    limit: int | None = None,
) -> Select[Any]:
    """Sessions that were open at some time in [since, until), newest first.

    ``user``: a user_id or a username. ``live``: only open ones. Naive times are UTC.
    """
    query = view("sessions")
    if realm is not None:
        query = query.where(column("realm") == realm)
    if user is not None:
        query = query.where((column("user_id") == user) | (column("username") == user))
    if until is not None:
        query = query.where(column("started_at") < _aware(until))
    if since is not None:
        ended_at: Any = column("ended_at")
        begin = _aware(since)
        # Half-open; a session that began and ended in one instant counts at that instant.
        query = query.where(
            ended_at.is_(None) | (ended_at > begin) | (column("started_at") >= begin)
        )
    if live:
        query = query.where(column("ended_at").is_(None))
    query = query.order_by(column("started_at").desc(), column("session_id").desc())
    return query if limit is None else query.limit(limit)


def usage(
    *,
    by: Literal["user", "realm"],
    per: Literal["hour", "day", "month"],
    realm: str | None = None,
    user: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Select[Any]:
    """Usage in the buckets that start in [since, until), oldest first.

    Naive times are in the time zone of each bucket.
    """
    query = view(f"{by}_usage_{_VIEW_SUFFIXES[per]}")
    starts_at: Any = column("starts_at")
    if realm is not None:
        query = query.where(column("realm") == realm)
    if user is not None:
        query = query.where(column("user_id") == user)
    for bound, compare in ((since, "__ge__"), (until, "__lt__")):
        if bound is None:
            continue
        value: Any = bound
        if bound.tzinfo is None:
            value = func.timezone(column("time_zone"), bound)
        query = query.where(getattr(starts_at, compare)(value))
    order = [starts_at, column("realm")]
    return query.order_by(*order, *([column("user_id")] if by == "user" else []))


def periods(realm: str | None = None) -> Select[Any]:
    """Billing periods by realm, oldest first."""
    query = view("periods")
    if realm is not None:
        query = query.where(column("realm") == realm)
    return query.order_by(column("realm"), column("starts_at"))


def statements(realm: str, period: date, user: str | None = None) -> Select[Any]:
    """The lines of a statement, by user."""
    query = view("statements").where(column("realm") == realm, column("period") == period)
    if user is not None:
        query = query.where(column("user_id") == user)
    return query.order_by(column("user_id"), column("user_key"))


def adjustments(
    realm: str, period: date, user: str | None = None, *, by: Literal["period", "posted_in"]
) -> Select[Any]:
    """The adjustments that correct a period, or that are posted in it, oldest first."""
    query = view("adjustments").where(column("realm") == realm, column(by) == period)
    if user is not None:
        query = query.where(column("user_id") == user)
    return query.order_by(column("posted_at"), column("user_id"), column("adjustment_id"))


def gaps(since: datetime, until: datetime) -> Select[Any]:
    """The capture gaps that overlap [since, until), oldest first."""
    from_at: Any = column("from_at")
    to_at: Any = column("to_at")
    return (
        view("capture_gaps")
        .where(from_at < until, to_at.is_(None) | (to_at > since))
        .order_by(from_at, column("gap_id"))
    )


def view(name: str) -> Select[Any]:
    """All columns of a view."""
    return select(column("*", is_literal=True)).select_from(table(name, schema="reporting"))


def sources() -> Select[Any]:
    """All sources by name."""
    return view("sources").order_by(column("source"))


def source_notices() -> Select[Any]:
    """What an operator should know of sources: ``source``, ``is_error`` and ``notice``."""
    notices = func.reporting.source_notices().table_valued("source", "is_error", "notice")
    return select(notices).order_by(notices.c.source, notices.c.notice)


def _aware(time: datetime) -> datetime:
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
