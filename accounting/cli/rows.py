"""Rows of the views on standard output: as a table for people, as JSON for programs."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import Any, Final
from zoneinfo import ZoneInfo

from accounting.cli.output import write_json
from accounting.cli.resources import reader_engine
from accounting.cli.table import write_table
from accounting.config import Settings
from accounting.domain.time_zones import time_zone
from accounting.reporting.known_names import check_names
from accounting.reporting.reader import ViewQuery, open_rows

BYTE_COLUMNS: Final = {
    "received_bytes": "received B",
    "sent_bytes": "sent B",
    "peer_received_bytes": "peer received B",
    "peer_sent_bytes": "peer sent B",
}
"""The byte counters and their headings in tables."""


def write_rows(
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str],
    *,
    as_json: bool,
    empty: str = "Nothing.",
) -> None:
    """Write rows. ``columns``: heading by field name, for the table."""
    if as_json:
        write_json(rows)
    else:
        write_table("", rows, columns, empty=empty)


def write_query(
    settings: Settings,
    query: ViewQuery,
    columns: Mapping[str, str],
    *,
    as_json: bool,
    empty: str,
    realm: str | None = None,
    user: str | None = None,
) -> None:
    """Write the rows of a query.

    Raises UsageError if there are none and ``realm`` or ``user`` is unknown.
    """
    with reader_engine(settings) as engine, open_rows(engine, query) as rows:
        first = next(rows, None)
        if first is not None:
            all_rows = chain([first], rows)
            if as_json:
                write_json(all_rows)
            else:
                write_table("", [in_own_zone(row) for row in all_rows], columns, empty=empty)
            return
        check_names(engine, realm=realm, user=user)
    write_rows([], columns, as_json=as_json, empty=empty)


def in_own_zone(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A bucket, period or rule with its times in its own ``time_zone``; other rows as they are."""
    return in_zone(row, time_zone(row["time_zone"])) if "time_zone" in row else row


def in_zone(row: Mapping[str, Any], zone: ZoneInfo) -> Mapping[str, Any]:
    """A row with its times in ``zone``."""
    return {
        name: value.astimezone(zone) if isinstance(value, datetime) else value
        for name, value in row.items()
    }
