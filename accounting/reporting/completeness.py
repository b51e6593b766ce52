"""What the books do not have yet, so that an empty result is no wrong answer."""

from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo
from enum import Enum, auto
from typing import TYPE_CHECKING

from accounting.domain.time_zones import time_zone
from accounting.reporting import view_queries
from accounting.reporting.view_queries import Bound

if TYPE_CHECKING:
    from accounting.reporting.reader import Reader


class Counted(Enum):
    """What is computed from reports, of which some may not be counted yet."""

    SESSIONS = auto()
    USAGE = auto()


def span_waits_for(
    reader: "Reader",
    realm: str | None,
    counted: Counted,
    since: datetime | None = None,
    until: datetime | None = None,
) -> str | None:
    """What a span lacks, as sentences without an end; None if nothing.

    ``until``: in the past; None for all that was received.
    """
    is_usage = counted is Counted.USAGE
    [row] = reader.read_rows(view_queries.span_waits_for(realm, since, until, is_usage=is_usage))
    text: str | None = row["waits_for"]
    return text


def explain_empty(
    reader: "Reader",
    empty: str,
    counted: Counted,
    realm: str | None,
    since: Bound | None,
    until: Bound | None,
) -> str:
    """Why nothing is in a span. ``empty``: a sentence for a span that is still open."""
    nothing = empty.rstrip(".")
    [clock] = reader.read_rows(view_queries.database_now())
    now = clock["now"]
    zones = _zones(reader, realm) if counted is Counted.USAGE else [UTC]
    begin, end = (
        None if bound is None else choose(view_queries.instant(bound, now, zone) for zone in zones)
        for bound, choose in ((since, min), (until, max))
    )
    if begin is not None and begin > now:
        return f"{nothing}: that span is in the future."
    is_past = end is not None and end <= now
    waits_for = span_waits_for(reader, realm, counted, begin, end if is_past else None)
    if waits_for is not None:
        return f"{nothing} yet: {waits_for}."
    return f"{nothing} in that span; it is complete." if is_past else empty


def _zones(reader: "Reader", realm: str | None) -> Sequence[tzinfo]:
    """The time zones in which a realm or any realm has usage; UTC without any."""
    names = reader.read_rows(view_queries.time_zones(realm))
    return [time_zone(row["time_zone"]) for row in names] or [UTC]
