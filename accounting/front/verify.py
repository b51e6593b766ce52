"""Verifies a front: the books of each cell, and what the front made of them.

Of an ordinary database it is :mod:`accounting.audit.verify` and nothing else.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from itertools import chain
from typing import Final

from sqlalchemy import Connection, Engine

from accounting.audit.differences import Difference
from accounting.audit.verify import VerifyResult, verify
from accounting.db.engine import lost_connections
from accounting.db.queries import Queries
from accounting.domain.calendar import from_micros
from accounting.errors import unknown_name, unknown_period
from accounting.front.billing.check_billing import check_billing
from accounting.front.cells import is_front, open_cell, read_cells
from accounting.front.limits.check_limits import check_front_limits
from accounting.front.peaks.recount_peaks import recount_peaks
from accounting.progress import Progress, no_progress

_QUERIES: Final = Queries("accounting.front")


def verify_installation(
    engine: Engine,
    realm: str | None = None,
    period: date | None = None,
    *,
    result: VerifyResult | None = None,
    progress: Progress = no_progress,
) -> Iterator[Difference]:
    """Yield every difference; those of a cell say so in ``what``. Raises as ``verify``.

    On a front also ConnectionLost, for a cell that does not answer: nothing is proved then.
    """
    summary = result or VerifyResult()
    with lost_connections(), engine.connect() as connection:
        cells = read_cells(connection) if is_front(connection) else None
        if cells is not None:
            _check_names(connection, realm, period)
    if cells is None:
        yield from verify(engine, realm, period, result=summary, progress=progress)
        return
    for cell in cells:
        of_cell = VerifyResult()
        with open_cell(engine, cell) as cell_engine:
            if _lacks(cell_engine, realm, period):
                continue
            for difference in verify(cell_engine, realm, period, result=of_cell, progress=progress):
                yield replace(difference, what=f"{difference.what} of cell {cell.cell}")
        summary.sessions += of_cell.sessions
        summary.differences += of_cell.differences
        summary.partly_dropped += [
            replace(dropped, cell=cell.cell) for dropped in of_cell.partly_dropped
        ]
    for difference in chain(
        check_billing(engine, realm, period),
        _peak_differences(engine, realm) if period is None else (),
        check_front_limits(engine, realm) if period is None else (),
    ):
        summary.differences += 1
        yield difference


def _peak_differences(engine: Engine, realm: str | None) -> Iterator[Difference]:
    """The peaks that another count gives: all of a realm's hours, so not for one period."""
    for peak in recount_peaks(engine, realm):
        yield Difference(
            realm=peak.realm,
            period=None,
            what="front_peaks",
            kind="differs",
            starts_at=from_micros(peak.starts_at),
            column=f"{peak.dimension} {peak.name}".strip(),
            booked=str(peak.stored),
            recomputed=str(peak.recounted),
        )


def _check_names(connection: Connection, realm: str | None, period: date | None) -> None:
    rows = connection.execute(_QUERIES.text("known_periods")).all()
    realms = {row.realm for row in rows}
    if realm is not None and realm not in realms:
        raise unknown_name("realm", realm, realms)
    periods = {row.period for row in rows if realm in (None, row.realm)} - {None}
    if period is not None and period not in periods:
        raise unknown_period(realm, period, periods)


def _lacks(engine: Engine, realm: str | None, period: date | None) -> bool:
    """Whether a cell has nothing of a realm or period that others have."""
    if realm is None and period is None:
        return False
    with lost_connections(), engine.connect() as connection:
        rows = connection.execute(_QUERIES.text("periods_of_cell"), {"realm": realm}).all()
    return not rows or (period is not None and period not in {row.period for row in rows})
