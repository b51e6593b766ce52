"""Rows of the views on standard output: as a table for people, as JSON for programs.

Owns what an empty answer means: nothing, or a slip in the name of a realm.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import Any, Final
from zoneinfo import ZoneInfo

from accounting.cli.terminal import write_json, write_table
from accounting.config import Settings
from accounting.db.engine import lost_connections
from accounting.errors import NotAllowed, unknown_name
from accounting.identities.realm_rules import realm_names
from accounting.ops import service
from accounting.reporting import view_queries

BYTES: Final = {
    "received_bytes": "received B",
    "sent_bytes": "sent B",
    "peer_received_bytes": "peer received B",
    "peer_sent_bytes": "peer sent B",
}
"""The columns of bytes, and the headings under which people see them."""


def write_rows(
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str],
    *,
    as_json: bool,
    empty: str = "Nothing.",
) -> None:
    """Write rows that are read already. ``columns``: what people see, under which headings."""
    if as_json:
        write_json(rows)
    else:
        write_table("", rows, columns, empty=empty)


def write_query(
    settings: Settings,
    query: Any,
    columns: Mapping[str, str],
    *,
    as_json: bool,
    empty: str,
    realm: str | None = None,
) -> None:
    """Write the rows of a query; with ``realm``, none at all may mean that it is a slip."""
    with (
        service.database(settings, service.READER) as engine,
        lost_connections(),
        engine.connect() as connection,
    ):
        rows = view_queries.rows(connection, query)
        first = next(rows, None)
        if first is not None:
            every = chain([first], rows)
            if as_json:
                write_json(every)
            else:
                write_rows([in_zone(row) for row in every], columns, as_json=False)
            return
    if realm is not None:
        _check_realm(settings, realm)
    write_rows([], columns, as_json=as_json, empty=empty)


def _check_realm(settings: Settings, name: str) -> None:
    """Refuse a realm that nobody knows, as far as this user may see which are known."""
    try:
        with service.database(settings, service.WRITER) as engine:
            known = realm_names(engine)
    except NotAllowed:
        return
    if name not in known:
        raise unknown_name("realm", name, known)


def in_zone(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """For people, the times of a bucket or period in its own zone."""
    return moved(row, ZoneInfo(row["time_zone"])) if "time_zone" in row else row


def moved(row: Mapping[str, Any], zone: ZoneInfo) -> Mapping[str, Any]:
    """A row with its times in that zone."""
    return {
        name: value.astimezone(zone) if isinstance(value, datetime) else value
        for name, value in row.items()
    }
