"""Queries for a first look at all realms: now, the day and the month, and what happens by hour."""

from dataclasses import replace
from datetime import timedelta
from typing import Final, Literal

from accounting.reporting.view_queries import USAGE_SUMS, ViewQuery, view

_VIEWS: Final = {"day": "realm_usage_daily", "month": "realm_usage_monthly"}
_LONGEST: Final = {"day": timedelta(days=4), "month": timedelta(days=63)}
"""How long ago the bucket before the present one began at most."""


def realm_usage_now(per: Literal["day", "month"]) -> ViewQuery:
    """Usage of each realm in its day or month that is now, and in the one before.

    With ``is_now``: which of both it is.
    """
    begin = f"date_trunc('{per}', timezone(time_zone, starts_at))"
    this = f"date_trunc('{per}', timezone(time_zone, reporting.database_now()))"
    query = replace(view(_VIEWS[per]), columns=("*", f"{begin} = {this} AS is_now"))
    return replace(
        query.where(
            "starts_at > reporting.database_now() - %(longest)s", longest=_LONGEST[per]
        ).where(f"{begin} >= {this} - interval '1 {per}'"),
        order=("realm", "starts_at"),
    )


def hours_of_all(hours: int) -> ViewQuery:
    """Usage of all realms together in each of the last hours."""
    sums = (f"sum({name}) AS {name}" for name in USAGE_SUMS)
    query = view("realm_usage_hourly").where(
        "starts_at > reporting.database_now() - %(span)s", span=timedelta(hours=hours)
    )
    return replace(query, columns=("starts_at", *sums), group="starts_at", order=("starts_at",))
