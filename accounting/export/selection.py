"""Which rows an export contains, and in which format."""

from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum

from accounting.export.focus_terms import FocusTerms


class ExportKind(StrEnum):
    """The kind of rows."""

    USAGE = "usage"
    SESSIONS = "sessions"
    STATEMENTS = "statements"
    ADJUSTMENTS = "adjustments"
    FOCUS = "focus"


class ExportFormat(StrEnum):
    """The format of an exported file, and its extension."""

    CSV = "csv"
    JSON_LINES = "jsonl"
    PARQUET = "parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Rows of one realm or all, of a period or a half-open span of time.

    A session belongs where it ended, usage where its bucket starts, an adjustment where it was
    posted (so the adjustments of a closed period are final), a statement to its period, a charge of
    FOCUS to the period that it is billed with.
    ``subject`` ("user" or "realm") and ``granularity`` ("hour", "day" or "month") are for usage,
    ``focus`` is for FOCUS; None stands for its defaults.
    """

    kind: ExportKind
    realm: str | None = None
    period: date | None = None
    since: datetime | None = None
    until: datetime | None = None
    subject: str = "user"
    granularity: str = "day"
    focus: FocusTerms | None = None
    is_partitioned: bool = False
    """Whether the rows are files of a table, one for each realm and period."""

    @property
    def is_of_periods(self) -> bool:
        """Whether its rows belong to whole periods, whatever the span."""
        return self.kind in {ExportKind.STATEMENTS, ExportKind.FOCUS}

    @property
    def partition_columns(self) -> tuple[str, str]:
        """What a partitioned export is divided by: the names in its directories.

        An adjustment is with the period in which it was posted, as everywhere in exports. Its
        column ``period`` is the corrected one, and stays a column.
        """
        return "realm", "posted_in" if self.kind is ExportKind.ADJUSTMENTS else "period"

    @property
    def has_end(self) -> bool:
        """Whether its rows can be final: those of an open span are added to and change."""
        return self.period is not None or self.until is not None
