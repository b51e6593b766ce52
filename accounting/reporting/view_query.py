"""A query on the views of schema ``reporting``: its parts, the borders of a span, and its order."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import Any, Final, Literal
from uuid import UUID

from accounting.domain.counters import COUNTERS

LENGTHS: Final[tuple[Literal["hour", "day", "month"], ...]] = ("hour", "day", "month")

TRAFFIC: Final = "traffic"
"""A rank: received and sent bytes together."""

OF_POSSIBLE_USERS: Final = "user_key = ANY (ARRAY(SELECT reporting.possible_user_keys(%(user)s)))"
"""For the index: a session has only the key of its user, and not the names."""

LENGTH: Final = "length"
"""A rank: how long a gap lasts, an open one until now."""

RATE: Final = "rate"
"""A rank: received and sent bytes per second of the last minute together."""

_RANKS: Final = {
    TRAFFIC: "received_bytes + sent_bytes",
    RATE: "received_bytes_per_second_1m + sent_bytes_per_second_1m",
    LENGTH: "coalesce(to_at, reporting.database_now()) - from_at",
}

_COLUMN: Final = re.compile(r"[a-z_]+")

SUM: Final = "sum(f.{0}) AS {0}"

SUBQUERY: Final = "({}) f"

UTC_ZONE: Final = "'UTC'"

OWN_ZONE: Final = "time_zone"
"""The column with the time zone of a row."""

USAGE_SUMS: Final = (
    *COUNTERS,
    "sessions_started",
    "sessions_ended",
    "session_seconds",
    "estimated_bytes",
)


@dataclass(frozen=True, slots=True)
class DaysAgo:
    """The midnight that began today (0) or an earlier day, by the database's clock.

    ``at``: as of that time instead of now, so that pages of a list have the same bounds.
    """

    days: int
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class HoursAgo:
    """So many hours before now, by the database's clock. ``at``: as :class:`DaysAgo` has it."""

    hours: float
    at: datetime | None = None


Bound = datetime | DaysAgo | HoursAgo
"""A border of a span of time. A naive time and a midnight are in the time zone of each row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """The order of a list, and how much of it. ``by``: a column, TRAFFIC, LENGTH or RATE.

    ``after``: the values of the list's key in the row before the first; only in the usual order.
    """

    by: str | None = None
    descending: bool = False
    limit: int | None = None
    after: Sequence[Any] | None = None


AS_IT_IS: Final = Arrangement()

Row = Mapping[str, Any]
"""A row by the columns of its view."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewQuery:
    """A SELECT in the style of psycopg: ``relation`` is what it reads, ``values`` its parameters.

    Its parts are texts of this module and names of columns; all else is a parameter.
    """

    relation: str
    columns: Sequence[str] = ("*",)
    conditions: Sequence[str] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    group: str | None = None
    order: Sequence[str] = ()
    limit: int | None = None

    def where(self, condition: str, **values: Any) -> "ViewQuery":
        """The query with one condition more, and the parameters that it names."""
        return replace(
            self, conditions=(*self.conditions, condition), values={**self.values, **values}
        )

    @property
    def text(self) -> str:
        parts = ["SELECT", ", ".join(self.columns), "FROM", self.relation]
        if self.conditions:
            parts += ["WHERE", " AND ".join(self.conditions)]
        if self.group is not None:
            parts += ["GROUP BY", self.group]
        if self.order:
            parts += ["ORDER BY", ", ".join(self.order)]
        if self.limit is not None:
            parts += ["LIMIT", str(self.limit)]
        return " ".join(parts)


def descending(key: Sequence[str]) -> Sequence[str]:
    """The columns of a key, from the last to the first."""
    return [f"{name} DESC" for name in key]


def view(name: str) -> ViewQuery:
    """All columns of a view."""
    return ViewQuery(relation=f"reporting.{name}")


def sums(query: ViewQuery, columns: Iterable[str]) -> ViewQuery:
    """The number of rows of a query without its limit, as ``row_count``, and sums of columns."""
    return ViewQuery(
        relation=SUBQUERY.format(replace(query, order=(), limit=None).text),
        columns=("count(*) AS row_count", *map(SUM.format, columns)),
        values=query.values,
    )


def instant(bound: Bound, now: datetime, zone: tzinfo = UTC) -> datetime:
    """A bound as a time. ``zone``: of naive times and midnights."""
    match bound:
        case HoursAgo():
            return now - timedelta(hours=bound.hours)
        case DaysAgo():
            day = now.astimezone(zone).date() - timedelta(days=bound.days)
            return datetime.combine(day, time(), zone)
        case _:
            return bound if bound.tzinfo else bound.replace(tzinfo=zone)


def of_realm(query: ViewQuery, realm: str | None) -> ViewQuery:
    """A query limited to a realm, if one is given."""
    return query if realm is None else query.where("realm = %(realm)s", realm=realm)


def of_user(
    query: ViewQuery, realm: str | None, user: str | None, user_key: UUID | None = None
) -> ViewQuery:
    """A query limited to a realm and a user, as far as they are given."""
    query = of_realm(query, realm)
    if user is not None:
        query = query.where("user_id = %(user)s", user=user)
    if user_key is not None:
        query = query.where("user_key = %(user_key)s", user_key=user_key)
    return query


def bounded(query: ViewQuery, condition: str, zone: str, **bounds: Bound) -> ViewQuery:
    """Add a condition on bounds, each ``{name}`` in it; ``zone`` as for :func:`bound_sql`."""
    instants = {name: bound_sql(name, bound, zone) for name, bound in bounds.items()}
    return query.where(condition.format(**instants), **bound_values(**bounds))


def is_top(arrangement: Arrangement) -> bool:
    """Whether the rows with most traffic are asked for."""
    return arrangement.limit is not None and arrangement.by == TRAFFIC and arrangement.descending


def arranged(
    query: ViewQuery, arrangement: Arrangement, *order: str, key: Sequence[str] = ()
) -> ViewQuery:
    """A query in the order that was asked for; ``order`` is its usual one, and settles ties.

    ``key``: the columns of that order, if ``arrangement.after`` has their values.
    """
    if arrangement.by is not None:
        assert _COLUMN.fullmatch(arrangement.by)
        rank = _RANKS.get(arrangement.by, arrangement.by)
        order = (rank + " DESC NULLS LAST" * arrangement.descending, *order)
    elif key and arrangement.after is not None:
        values = {f"after_{number}": value for number, value in enumerate(arrangement.after)}
        query = query.where(_beyond(key), **values)
    return replace(query, order=order, limit=arrangement.limit)


def _beyond(key: Sequence[str]) -> str:
    """The condition that a key comes after the one in the parameters ``after_0`` and so on."""
    values = ", ".join(f"%(after_{number})s" for number in range(len(key)))
    return f"({', '.join(key)}) > ({values})"


def resolution_of(bound: Bound) -> Literal["hour", "day", "month"]:
    """The longest buckets that this bound does not cut."""
    match bound:
        case datetime(tzinfo=tzinfo) if tzinfo is not None:
            return "month"
        case DaysAgo():
            return "day"
        case datetime(tzinfo=None) if bound.time() == time():
            return "month" if bound.day == 1 else "day"
        case _:
            return "hour"


def bound_sql(name: str, bound: Bound, zone: str) -> str:
    """The SQL of a bound, with the parameters of :func:`bound_values`, as a time.

    ``zone``: the SQL of the time zone that it is in if it has no offset.
    """
    now = "reporting.database_now()"
    if isinstance(bound, DaysAgo | HoursAgo) and bound.at is not None:
        now = "%({name}_at)s"
    match bound:
        case HoursAgo():
            template = "(" + now + " - %({name})s)"
        case DaysAgo():
            day = "date_trunc('day', timezone({zone}, " + now + "))"
            template = "timezone({zone}, " + day + " - %({name})s)"
        case datetime(tzinfo=None):
            template = "timezone({zone}, %({name})s)"
        case _:
            template = "%({name})s"
    return template.format(name=name, zone=zone)


def bound_values(**bounds: Bound | None) -> dict[str, Any]:
    """The parameters of bounds, by name; None has none."""
    values: dict[str, Any] = {}
    for name, bound in bounds.items():
        match bound:
            case HoursAgo():
                values[name] = timedelta(hours=bound.hours)
            case DaysAgo():
                values[name] = timedelta(days=bound.days)
            case datetime():
                values[name] = bound
        if isinstance(bound, DaysAgo | HoursAgo) and bound.at is not None:
            values[f"{name}_at"] = bound.at
    return values


def as_of(bound: Bound | None, at: datetime) -> Bound | None:
    """A bound that stays where it is at a time."""
    return replace(bound, at=at) if isinstance(bound, DaysAgo | HoursAgo) else bound
