"""What an operator should know, as ``turn-accounting doctor`` says it, where the views show it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from accounting.domain.gap_causes import cause_in_words
from accounting.domain.human_text import human_seconds
from accounting.plurals import counted
from accounting.reporting.completeness import not_captured
from accounting.reporting.view_query import Row

MAX_STAGE_LAG: Final = timedelta(seconds=300)
"""As in ``/healthz``: after an outage loading and settling have to catch up."""


@dataclass(frozen=True, slots=True)
class Notice:
    """About a source. ``is_error``: usage is lost, or not counted, until the cause is fixed."""

    source: str
    is_error: bool
    text: str


def notices_of(
    now: datetime,
    sources: Sequence[Row],
    gaps: Sequence[Row],
    source_notices: Sequence[Row],
    rejected: Sequence[Row],
    rejected_hours: int,
) -> list[Notice]:
    """All notices, errors first. ``sources``: those in service."""
    open_gaps = {gap["source"]: gap for gap in gaps if gap["to_at"] is None}
    found = [
        *(Notice(row["source"], row["is_error"], row["notice"]) for row in source_notices),
        *_gap_notices(now, open_gaps.values()),
        *(
            Notice(lapse.source, lapse.since is not None, str(lapse))
            for lapse in not_captured(now, sources, gaps)
        ),
        *(
            notice
            for source in sources
            if source["source"] not in open_gaps
            for notice in _lag_notices(source)
        ),
        *(
            Notice(
                row["source"],
                False,
                f"{counted(int(row['messages']), 'message')} of the last {rejected_hours} hours "
                "could not be parsed: something else publishes there, or this coturn is newer than "
                "this version",
            )
            for row in rejected
        ),
    ]
    return sorted(found, key=lambda notice: not notice.is_error)


def _gap_notices(now: datetime, gaps: Iterable[Row]) -> Iterator[Notice]:
    for gap in gaps:
        age = human_seconds(max(0, round((now - gap["from_at"]).total_seconds())))
        yield Notice(
            gap["source"],
            True,
            f"not capturing for {age}, a gap is open: {cause_in_words(gap['cause'])}",
        )


def _lag_notices(source: Row) -> Iterator[Notice]:
    captured_until: datetime | None = source["captured_until"]
    if captured_until is None:
        return
    for stage, column in (("loading", "loaded_until"), ("settling", "settled_until")):
        reached: datetime | None = source[column]
        if reached is None or captured_until - reached > MAX_STAGE_LAG:
            lag = (
                "never ran" if reached is None else f"is {_length(captured_until - reached)} behind"
            )
            yield Notice(source["source"], True, f"{stage} {lag}")
            break


def _length(span: timedelta) -> str:
    return human_seconds(round(span.total_seconds()))
