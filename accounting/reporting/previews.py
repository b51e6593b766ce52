"""The lines of a period that is not closed, from the month of usage that has the same bounds.

The hours of a large realm take seconds to add up. Its months are the sums of the same hours, and a
page of their users is found by an index.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from typing import Any, Final

from accounting.reporting import usage_queries
from accounting.reporting.view_query import USAGE_SUMS, Arrangement, ViewQuery

_MONTH: Final = """(
SELECT m.realm, m.starts_at, m.ends_at, p.period FROM reporting.periods p
JOIN reporting.realm_usage_monthly m
ON m.realm = p.realm AND m.starts_at = p.starts_at AND m.ends_at = p.ends_at
WHERE p.realm = %(realm)s AND p.period = %(period)s AND p.closed_at IS NULL
) m"""
_WITH_TOTALS: Final = """(
WITH totals AS MATERIALIZED (
SELECT n.users AS total_row_count, n.estimated_users AS total_estimated_users, {sums}
FROM reporting.realm_usage_monthly m
CROSS JOIN LATERAL reporting.users_of_month(m.realm, m.starts_at) n
WHERE m.realm = %(month_realm)s AND m.starts_at = %(month_starts_at)s
)
SELECT l.*, t.* FROM ({lines}) l CROSS JOIN totals t
) s"""


def month_of_period(realm: str, period: date) -> ViewQuery:
    """The month of usage that a period is, unless it is closed.

    No row for a period with other bounds, which it has after a change of the realm's rules.
    """
    return ViewQuery(relation=_MONTH, values={"realm": realm, "period": period})


def lines_of_month(month: Mapping[str, Any], arrangement: Arrangement) -> ViewQuery:
    """The lines that :func:`billing_queries.statements` has for the preview of such a period.

    As in :func:`usage_queries.usage`: a condition that is added selects from the page.
    """
    after = arrangement.after
    if after is not None:
        realm, _, user_id, user_key = after
        after = (month["starts_at"], realm, user_id, user_key)
    usage = usage_queries.usage(
        by="user",
        per="month",
        realm=month["realm"],
        since=month["starts_at"],
        until=month["ends_at"],
        arrangement=replace(arrangement, after=after),
    )
    columns = (
        "realm",
        "%(period)s::date AS period",
        "coalesce(user_id, '') AS user_id",
        "user_key",
        *USAGE_SUMS,
        "NULL::text AS cutoff",
        "NULL::timestamptz AS closed_at",
        "NULL::text AS digest",
    )
    return ViewQuery(
        relation=f"({replace(usage, columns=columns).text}) s",
        values={**usage.values, "period": month["period"]},
        order=[column for column in usage.order if column != "starts_at"],
    )


def with_month_totals(lines: ViewQuery, month: Mapping[str, Any]) -> ViewQuery:
    """As :func:`accounting.reporting.overview.with_totals`, with the sums of the realm's month."""
    sums = ", ".join(f"m.{name} AS total_{name}" for name in USAGE_SUMS)
    return replace(
        lines,
        relation=_WITH_TOTALS.format(lines=lines.text, sums=sums),
        conditions=(),
        values={
            **lines.values,
            "month_realm": month["realm"],
            "month_starts_at": month["starts_at"],
        },
    )
