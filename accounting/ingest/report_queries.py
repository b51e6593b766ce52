"""Insert reports by binary COPY, into partitions by day."""

from collections.abc import Iterable
from datetime import date
from typing import Any

from psycopg import Cursor
from sqlalchemy import Connection, text

from accounting.db.binary_copy import copy_packed_chunks
from accounting.ingest.report_rows import COLUMNS


def copy_reports(cursor: Cursor[Any], chunks: Iterable[bytes]) -> int:
    """Insert packed rows; returns how many. The partitions of their days must exist."""
    copy_packed_chunks(cursor, "accounting.reports", COLUMNS, chunks)
    return cursor.rowcount


def ensure_partition(connection: Connection, day: date) -> bool:
    """Create the partition of a day (UTC) if it is missing. True when it was created."""
    created: bool = connection.execute(
        text("SELECT accounting.ensure_report_partition(:day)"), {"day": day}
    ).scalar_one()
    return created
