"""Queries for a first look at all realms: now, the day and the month, and what happens by hour."""

from typing import Any, Final, Literal

from sqlalchemy import Select, column, func, select, table, text

from accounting.reporting.view_queries import USAGE_SUMS, view

_BEFORE: Final = {
    "day": (text("interval '1 day'"), text("interval '4 days'")),
    "month": (text("interval '1 month'"), text("interval '63 days'")),
}
"""The length of a bucket, and how long ago the one before began at most."""


def realm_usage_now(per: Literal["day", "month"]) -> Select[Any]:
    """Usage of each realm in its day or month that is now, and in the one before.

    With ``is_now``: which of both it is.
    """
    length, longest = _BEFORE[per]
    now = func.reporting.database_now()
    zone: Any = column("time_zone")
    begins_at: Any = column("starts_at")
    begin = func.date_trunc(per, func.timezone(zone, begins_at))
    this = func.date_trunc(per, func.timezone(zone, now))
    view_name = {"day": "realm_usage_daily", "month": "realm_usage_monthly"}[per]
    fields: list[Any] = [column("*", is_literal=True), (begin == this).label("is_now")]
    return (
        select(*fields)
        .select_from(table(view_name, schema="reporting"))
        .where(begins_at > now - longest, begin >= this - length)
        .order_by(column("realm"), begins_at)
    )


def hours_of_all(hours: int) -> Select[Any]:
    """Usage of all realms together in each of the last hours."""
    begins_at: Any = column("starts_at")
    return (
        view("realm_usage_hourly")
        .with_only_columns(begins_at, *(func.sum(column(name)).label(name) for name in USAGE_SUMS))
        .where(begins_at > func.reporting.database_now() - func.make_interval(0, 0, 0, 0, hours))
        .group_by(begins_at)
        .order_by(begins_at)
    )
