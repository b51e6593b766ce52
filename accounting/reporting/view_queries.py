"""Reading the views of schema ``reporting``: the filters that people and programs ask for."""

from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from typing import Any, Literal

from psycopg.errors import UndefinedColumn, UndefinedTable
from sqlalchemy import Connection, Select, column, func, select, table
from sqlalchemy.exc import ProgrammingError

from accounting.errors import AccountingError

Length = Literal["hour", "day", "month"]

_NAMES = {"hour": "hourly", "day": "daily", "month": "monthly"}


def sessions(
    *,
    realm: str | None = None,
    user: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    live: bool = False,
    limit: int | None = None,
) -> Select[Any]:
    """Sessions alive at some time in [since, until), newest first.

    ``user`` is a user_id or a username. Naive times are UTC.
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
        # Half-open; one that began and ended in the same instant lived at it.
        query = query.where(
            ended_at.is_(None) | (ended_at > begin) | (column("started_at") >= begin)
        )
    if live:
        query = query.where(column("ended_at").is_(None))
    query = query.order_by(column("started_at").desc(), column("session_id").desc())
    return query if limit is None else query.limit(limit)


def usage(
    *,
    of: Literal["user", "realm"],
    length: Length,
    realm: str | None = None,
    user: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Select[Any]:
    """Usage by bucket: those that start in [since, until), oldest first.

    Naive times are in the time zone of each bucket, as the people of that realm mean them.
    """
    query = view(f"{of}_usage_{_NAMES[length]}")
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
    return query.order_by(*order, *([column("user_id")] if of == "user" else []))


def periods(realm: str | None = None) -> Select[Any]:
    """Billing periods, by realm, the oldest first."""
    query = view("periods")
    if realm is not None:
        query = query.where(column("realm") == realm)
    return query.order_by(column("realm"), column("starts_at"))


def statements(realm: str, period: date, user: str | None = None) -> Select[Any]:
    """The lines of a closed period, by user."""
    query = view("statements").where(column("realm") == realm, column("period") == period)
    if user is not None:
        query = query.where(column("user_id") == user)
    return query.order_by(column("user_id"), column("user_key"))


def adjustments(
    realm: str, period: date, user: str | None = None, *, by: Literal["period", "posted_in"]
) -> Select[Any]:
    """The adjustments that correct a period, or that were posted in it, the oldest first."""
    query = view("adjustments").where(column("realm") == realm, column(by) == period)
    if user is not None:
        query = query.where(column("user_id") == user)
    return query.order_by(column("posted_at"), column("user_id"), column("adjustment_id"))


def gaps(since: datetime, until: datetime) -> Select[Any]:
    """The capture gaps that reach into [since, until), the oldest first."""
    from_at: Any = column("from_at")
    to_at: Any = column("to_at")
    return (
        view("capture_gaps")
        .where(from_at < until, to_at.is_(None) | (to_at > since))
        .order_by(from_at, column("gap_id"))
    )


def view(name: str) -> Select[Any]:
    """All of a view."""
    return select(column("*", is_literal=True)).select_from(table(name, schema="reporting"))


def sources() -> Select[Any]:
    """All sources, by name."""
    return view("sources").order_by(column("source"))


def rows(connection: Connection, query: Select[Any]) -> Iterator[Mapping[str, Any]]:
    """The rows of a query, streamed, with the names of the view's columns.

    Raises :class:`AccountingError` where the database does not have the view, or not as we know it.
    """
    try:
        result = connection.execution_options(stream_results=True).execute(query)
    except ProgrammingError as error:
        if isinstance(error.orig, UndefinedTable | UndefinedColumn):
            raise AccountingError(
                f"Postgres: {str(error.orig).splitlines()[0]}: "
                "bring it to this version with `turn-accounting db upgrade`"
            ) from error
        raise
    for row in result.mappings():
        yield dict(row)


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
