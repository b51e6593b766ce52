"""A closed period: its statement's lines, adjustments and gaps, and the files of an export."""

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
from accounting.reporting import view_queries
from accounting.reporting.overview import statement_totals
from accounting.reporting.view_queries import TRAFFIC, Arrangement
from accounting.web.pages.page_books import PageBooks, PageBooksDependency
from accounting.web.pages.usage_chart import Row
from accounting.web.problems import not_found
from accounting.web.render import page

SHOWN_LINES: Final = 100
SHOWN_ADJUSTMENTS: Final = 50
KEPT_TOTALS: Final = 1000
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
    """A statement; a period that is not closed says what it waits for."""
    row = _period(books, realm, period)
    day: date = row["period"]
    if row["state"] != "closed":
        return page(request, "statement_open.html", realm=realm, period=row)
    most = Arrangement(by=TRAFFIC, descending=True, limit=SHOWN_LINES)
    own_key = books.user_key(None)
    query = view_queries.statements(realm, day, user_key=own_key, arrangement=most)
    lines = books.rows(query, by_user=True)
    adjustments = {
        by: books.rows(
            view_queries.adjustments(
                realm, day, by=by, arrangement=Arrangement(limit=SHOWN_ADJUSTMENTS)
            ),
            by_user=True,
        )
        for by in ("period", "posted_in")
    }
    cutoff = StatementCutoff.from_text(lines[0]["cutoff"]) if lines else None
    return page(
        request,
        "statement.html",
        realm=realm,
        period=row,
        lines=lines,
        totals=_totals(request, books, row),
        adjustments=adjustments["period"],
        posted=adjustments["posted_in"],
        erased=books.erased([*lines, *adjustments["period"], *adjustments["posted_in"]]),
        gaps=books.gaps_between(row["starts_at"], row["ends_at"]),
        cutoff=cutoff,
        exports=EXPORTS if books.reader.reads_realm else (),
        formats=_formats(),
        shown_adjustments=SHOWN_ADJUSTMENTS,
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
    if export not in EXPORTS:
        raise UsageError(f"export {export.value!r}: expected statements or adjustments")
    row = _period(books, realm, period)
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


def _totals(request: Request, books: PageBooks, period: Row) -> Row:
    """The totals of a statement. They never change, so that those of a whole one are kept."""
    user_key = books.user_key(None)
    query = view_queries.statements(period["realm"], period["period"], user_key=user_key)
    if user_key is not None:
        return books.sums(query, statement_totals, by_user=True)
    kept: dict[tuple[object, ...], Row] = request.app.state.statement_totals
    key = period["realm"], period["period"], period["closed_at"]
    totals = kept.get(key)
    if totals is None:
        totals = books.sums(query, statement_totals, by_user=True)
        if len(kept) >= KEPT_TOTALS:
            kept.clear()
        kept[key] = totals
    return totals


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
    rows = books.rows_of_realm(view_queries.periods(realm).where("period = %(day)s", day=period))
    if not rows:
        raise not_found("no such period")
    return rows[0]
