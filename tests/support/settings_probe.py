"""Runs the jobs on a database and reads the books in every way, to compare two runs."""

import io
from collections.abc import Mapping
from typing import Any, Final

import psycopg

from accounting.audit.trace import trace
from accounting.audit.verify import verify
from accounting.db.engine import Engine
from accounting.db.revisions import head_revision
from accounting.export.export import export_to_stream
from accounting.export.selection import ExportFormat, ExportKind, Selection
from accounting.feed.client import Feed
from accounting.feed.number_feed import number_feed
from accounting.ops.doctor.postgres_facts import read_postgres_facts
from accounting.ops.doctor.postgres_server import check_postgres
from accounting.ops.monitoring.status_queries import read_database_status
from accounting.reporting import view_query
from accounting.reporting.reader import DatabaseReader
from tests.support.billing_scenarios import NOVEMBER, close_and_adjust_november
from tests.support.books import READER, Books

Outputs = dict[str, object]

_VIEWS: Final = (
    "sessions",
    "radacct",
    "user_usage_hourly",
    "user_usage_monthly",
    "realm_usage_daily",
    "allocation_events",
    "traffic_reports",
    "capture_gaps",
    "sources",
    "periods",
    "statements",
    "adjustments",
)
_UNIQUE: Final = {"created_at", "closed_at", "posted_at", "adjustment_id", "event_id"}
"""Columns that differ between two runs."""
_TEXTS_OF_VIEWS: Final = """
SELECT (SELECT md5(string_agg(payload::text, ',' ORDER BY seq)) FROM reporting.feed
        WHERE type <> 'adjustment.posted'),
    (SELECT md5(string_agg(waits_for, ',' ORDER BY realm, period)) FROM reporting.periods),
    (SELECT md5(string_agg(digest, ',' ORDER BY user_key)) FROM reporting.statements)
"""


def run_and_read(books: Books) -> Outputs:
    """Close and adjust November, and return what every reader gets to see, by name."""
    close_and_adjust_november(books)
    number_feed(books.engine)
    reader = DatabaseReader(books.url(READER))
    try:
        outputs: Outputs = {
            **{view: _rows(reader, view) for view in _VIEWS},
            **_exports(reader),
            "feed": _feed(books.url(READER)),
            "doctor": _findings(books.engine),
            "status": read_database_status(books.engine).realms,
            "verify": list(verify(books.engine)),
        }
    finally:
        reader.close()
    traced = trace(books.engine, "example.org", NOVEMBER, user="alice")
    outputs["trace"] = (traced.adds_up, traced.sessions)
    return outputs


def texts_of_views(url: str) -> list[str]:
    """Digests of the texts that the views make, for a client that applies no settings."""
    with psycopg.connect(url) as connection:
        row = connection.execute(_TEXTS_OF_VIEWS).fetchone()
    assert row is not None
    # psycopg returns bytes where the client encoding is SQL_ASCII.
    return [value.decode() if isinstance(value, bytes) else value for value in row]


def _rows(reader: DatabaseReader, view: str) -> list[dict[str, Any]]:
    return sorted(
        (_without_unique(row) for row in reader.read_rows(view_query.view(view))), key=repr
    )


def _without_unique(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in _UNIQUE}


def _exports(reader: DatabaseReader) -> dict[str, bytes]:
    found = {}
    for kind in (ExportKind.USAGE, ExportKind.SESSIONS):
        for format_ in (ExportFormat.CSV, ExportFormat.JSON_LINES):
            selection = Selection(kind=kind, realm="example.org", period=NOVEMBER)
            stream = io.BytesIO()
            export_to_stream(reader, selection, format_, stream)
            found[f"export of {kind} as {format_}"] = stream.getvalue()
    return found


def _feed(url: str) -> list[tuple[Any, ...]]:
    with Feed(url, reconnect=False) as feed:
        return [
            (event.seq, event.type, event.realm, _without_unique(event.payload))
            for event in feed.consume("worker", follow=False)
        ]


def _findings(engine: Engine) -> list[object]:
    head = head_revision()
    facts = read_postgres_facts(engine, head=head)
    return [
        finding
        for finding in check_postgres(facts, head=head, disk_free_bytes=None)
        # The first differs by run, and the second reports synchronous_commit = off.
        if finding.check not in {"disk", "durable"}
    ]
