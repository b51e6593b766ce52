"""Pages of the feed, for readers who keep their own place in it."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final
from uuid import UUID

from accounting.feed.client import FeedRestored, NumberBeyondEnd
from accounting.reporting.view_query import Row, ViewQuery, view

if TYPE_CHECKING:
    from accounting.reporting.reader import DatabaseReader

__all__ = ["FeedPage", "FeedRestored", "NumberBeyondEnd", "last_number", "read_feed_page"]

MOST_SCANNED: Final = 20_000
"""So many events are looked at for a page: a reader of one realm may have few among them."""
_PAGE: Final = """(
WITH page AS MATERIALIZED ({page}),
last AS MATERIALIZED (
    SELECT coalesce((SELECT seq FROM reporting.feed ORDER BY seq DESC LIMIT 1), 0) AS seq
),
bounds AS MATERIALIZED (
    SELECT last.seq AS last_seq, CASE WHEN (SELECT count(*) FROM page) = {limit}
        THEN (SELECT max(seq) FROM page)
        ELSE greatest(%(after)s, least(%(after)s + %(most_scanned)s, last.seq)) END AS next_seq
    FROM last
)
SELECT b.last_seq, b.next_seq, reporting.feed_history(%(after)s) AS history_before,
    reporting.feed_history(b.next_seq) AS history_after, page.*
FROM bounds b LEFT JOIN page ON true
) p"""
_OWN: Final = ("last_seq", "next_seq", "history_before", "history_after")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedPage:
    """Events, the number to go on after, and what identifies the events up to there.

    ``is_end``: no event had a higher number.
    """

    events: list[Row]
    next: int
    history: UUID
    is_end: bool


def read_feed_page(
    reader: "DatabaseReader", events: ViewQuery, *, after: int, limit: int, history: UUID | None
) -> FeedPage:
    """Read a page from one snapshot. ``events``: the view's, as far as they may be read.

    Raises FeedRestored if the feed ends before ``after``, or if its ``history`` up to there is
    another one; NumberBeyondEnd if it ends before and only the caller knows of the number.
    """
    page = events.where("seq > %(after)s").where("seq <= %(after)s + %(most_scanned)s")
    page = replace(page, order=("seq",), limit=limit)
    query = ViewQuery(
        relation=_PAGE.format(page=page.text, limit=limit),
        values={**page.values, "after": after, "most_scanned": MOST_SCANNED},
        order=("seq",),
    )
    rows = reader.read_rows(query)
    first = rows[0]
    if first["history_before"] is None and history is None:
        raise NumberBeyondEnd(after, first["last_seq"])
    if first["history_before"] is None or history not in {None, first["history_before"]}:
        raise FeedRestored(after)
    return FeedPage(
        events=[
            {name: value for name, value in row.items() if name not in _OWN}
            for row in rows
            if row["seq"] is not None
        ],
        next=first["next_seq"],
        history=first["history_after"],
        is_end=first["next_seq"] >= first["last_seq"],
    )


def last_number(reader: "DatabaseReader") -> int:
    """The number of the newest event; 0 in an empty feed."""
    query = replace(view("feed"), columns=("seq",), order=("seq DESC",), limit=1)
    rows = reader.read_rows(query)
    return int(rows[0]["seq"]) if rows else 0
