"""A period: its statement's lines, adjustments, gaps and files; a preview before the close."""

import tempfile
from collections.abc import Iterator
from datetime import date
from importlib.util import find_spec
from typing import IO, Final
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from accounting.domain.statements import StatementCutoff
from accounting.errors import UsageError
from accounting.export.manifest import file_name
from accounting.export.selection import ExportFormat, ExportKind, Selection
from accounting.reporting import billing_queries
from accounting.reporting.view_query import TRAFFIC, Arrangement
from accounting.web.pages.page_books import PageBooks, PageBooksDependency
from accounting.web.pages.usage_chart import Row
from accounting.web.problems import Problem, not_found
from accounting.web.render import page
from accounting.web.statement_totals import read_totals

SHOWN_LINES: Final = 100
SHOWN_ADJUSTMENTS: Final = 50
SHOWN_GAPS: Final = 50
IN_MEMORY: Final = 1 << 20
"""A file that is larger waits on disk until it is sent."""
MEDIA_TYPES: Final = {
    ExportFormat.CSV: "text/csv; charset=utf-8",
    ExportFormat.JSON_LINES: "application/jsonl; charset=utf-8",
    ExportFormat.PARQUET: "application/vnd.apache.parquet",
}
EXPORTS: Final = (ExportKind.STATEMENTS, ExportKind.ADJUSTMENTS)
router = APIRouter()


@router.get("/statement")
def statement_page(
    request: Request, books: PageBooksDependency, realm: str, period: date
) -> Response:
    """A statement; of a period that is not closed a preview, and what it waits for."""
    books.leave_no_cell_out()
    row = _period(books, realm, period)
    day: date = row["period"]
    if row["state"] != "closed":
        return _preview(request, books, row)
    most = Arrangement(by=TRAFFIC, descending=True, limit=SHOWN_LINES)
    own_key = books.user_key(None)
    query = billing_queries.statements(realm, day, user_key=own_key, arrangement=most)
    lines = books.rows(query, by_user=True)
    adjustments = {
        by: books.rows(
            billing_queries.adjustments(
                realm, day, by=by, arrangement=Arrangement(limit=SHOWN_ADJUSTMENTS)
            ),
            by_user=True,
        )
        for by in ("period", "posted_in")
    }
    cutoff = lines[0]["cutoff"] if lines else None
    return page(
        request,
        "statement.html",
        realm=realm,
        period=row,
        lines=lines,
        totals=read_totals(request, books, row),
        adjustments=adjustments["period"],
        posted=adjustments["posted_in"],
        erased=books.erased([*lines, *adjustments["period"], *adjustments["posted_in"]]),
        gaps=books.gaps_between(row["starts_at"], row["ends_at"], SHOWN_GAPS),
        shown_gaps=SHOWN_GAPS,
        cutoff=StatementCutoff.from_text(cutoff) if books.reader.reads_all and cutoff else None,
        settled_until=None if books.reader.reads_all else cutoff,
        exports=EXPORTS if books.reader.reads_realm else (),
        formats=_formats(),
        shown_adjustments=SHOWN_ADJUSTMENTS,
    )


def _preview(request: Request, books: PageBooks, period: Row) -> Response:
    """A period as its statement would be if it closed now."""
    realm, day = period["realm"], period["period"]
    most = Arrangement(by=TRAFFIC, descending=True, limit=SHOWN_LINES)
    lines, totals = books.preview(realm, day, most)
    posted = books.rows(
        billing_queries.adjustments(
            realm, day, by="posted_in", arrangement=Arrangement(limit=SHOWN_ADJUSTMENTS)
        ),
        by_user=True,
    )
    return page(
        request,
        "statement_open.html",
        realm=realm,
        period=period,
        lines=lines,
        totals=totals,
        posted=posted,
        erased=books.erased([*lines, *posted]),
        gaps=books.gaps_between(period["starts_at"], period["ends_at"], SHOWN_GAPS),
        shown_gaps=SHOWN_GAPS,
        not_counted=books.not_counted(realm),
        lapses=books.lapses(period["ends_at"]),
        shown_adjustments=SHOWN_ADJUSTMENTS,
        now=books.now(),
    )


@router.get("/statement/download")
def download(
    books: PageBooksDependency,
    realm: str,
    period: date,
    export: ExportKind = ExportKind.STATEMENTS,
    format: ExportFormat = ExportFormat.CSV,  # noqa: A002  # the parameter's name
) -> Response:
    """The file that ``turn-accounting export`` writes for the same period, byte for byte."""
    books.leave_no_cell_out()
    if export not in EXPORTS:
        raise UsageError(f"export {export.value!r}: expected statements or adjustments")
    row = _period(books, realm, period)
    if row["state"] != "closed":
        what = f"period {row['period']} of realm '{realm}' is not closed yet"
        raise Problem(409, "Not Yet", f"{what}: its page has a preview, and what it waits for")
    selection = Selection(kind=export, realm=realm, period=row["period"])
    file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115  # sent, then closed
    try:
        books.export(selection, format, file)
    except BaseException:
        file.close()
        raise
    size = file.tell()
    name = file_name(selection, format)
    return StreamingResponse(
        _sent(file),
        media_type=MEDIA_TYPES[format],
        headers={
            "Content-Length": str(size),
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
        },
    )


def _sent(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        file.seek(0)
        while chunk := file.read(1 << 16):
            yield chunk


def _formats() -> list[tuple[ExportFormat, str]]:
    """The formats of downloads and their names; Parquet only where pyarrow is installed."""
    formats = [(ExportFormat.CSV, "CSV"), (ExportFormat.JSON_LINES, "JSON Lines")]
    if find_spec("pyarrow") is not None:
        formats.append((ExportFormat.PARQUET, "Parquet"))
    return formats


def _period(books: PageBooks, realm: str, period: date) -> Row:
    rows = books.rows_of_realm(billing_queries.periods(realm).where("period = %(day)s", day=period))
    if not rows:
        raise not_found("no such period")
    return rows[0]
