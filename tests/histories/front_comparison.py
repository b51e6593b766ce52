"""Compares what a front shows with the oracle's books over all of its cells."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tests.histories.comparison import (
    Comparison,
    Expectation,
    Identities,
    Row,
    Views,
    compare_rows,
    usage_of,
)
from tests.histories.oracle import (
    NO_USAGE,
    Period,
    Usage,
    added,
    shown,
    statement_digest,
)

OF_THE_FRONT = ("period.closed", "adjustment.posted")


class FrontComparison(Comparison):
    """The views of a front. A statement is the sum of its cells', each at its own cutoff."""

    def __init__(
        self,
        expected: Expectation,
        views: Views,
        identities: Identities,
        cells: Mapping[str, Expectation],
    ) -> None:
        super().__init__(expected, views, identities)
        self.cells = cells

    def _may_close(self, key: tuple[str, str], period: Period) -> bool:
        """Once all cells have closed it, or have settled all of it where they have none of it."""
        return all(
            key in of_cell.closed or period.due_at < self._of_cell(cell)._settled_until()
            for cell, of_cell in self.cells.items()
        )

    def _is_late_usage(self, reason: str) -> bool:
        found = re.fullmatch(r"late usage \((?:cell|difference to cell) ([a-z]+)\)", reason)
        return found is not None and found[1] in self.cells

    def _statements(self) -> Iterator[str]:
        periods = self._expected_periods()
        lines: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in self.views["statements"]:
            lines[row["realm"], row["period"].isoformat()].append(row)
        for key, rows in lines.items():
            cutoffs = {row["cutoff"] for row in rows}
            if key not in periods or len(cutoffs) != 1:
                yield f"statement {key}: {key in periods}, the cutoffs {cutoffs}"
                continue
            yield from self._statement(key, *periods[key], rows, json.loads(min(cutoffs))["cells"])

    def _statement(
        self,
        key: tuple[str, str],
        realm: bytes,
        period: Period,
        rows: list[Row],
        cutoffs: Mapping[str, Any],
    ) -> Iterator[str]:
        sums: dict[str, Usage] = defaultdict(lambda: NO_USAGE)
        by_cell: dict[str, dict[str, Usage]] = {}
        for cell, cutoff in cutoffs.items():
            of_cell = self._of_cell(cell)
            yield from of_cell._cutoff(key, period, cutoff)
            text = json.dumps(cutoff, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            usages = of_cell._books_at(text).in_period(realm, period)
            by_cell[cell] = {shown(user): usage for user, usage in usages.items()}
            for user, usage in by_cell[cell].items():
                sums[user] = added(sums[user], usage)
        for row in rows:
            user = row["user_id"]
            digests = [
                f"{cell} "
                + statement_digest(
                    key[0],
                    period.first_day,
                    str(row["user_key"]),
                    by_cell[cell][user],
                    json.dumps(cutoff, sort_keys=True, separators=(",", ":"), ensure_ascii=False),
                )
                for cell, cutoff in sorted(cutoffs.items())
                if by_cell[cell].get(user, NO_USAGE) != NO_USAGE
            ]
            digest = hashlib.sha256("\n".join(digests).encode()).hexdigest()
            if usage_of(row) == sums[user] != NO_USAGE and row["digest"] != digest:
                yield f"statement {key} {user!r}: another digest than {digest}"
        yield from compare_rows(
            f"statement {key}",
            [(user, usage) for user, usage in sums.items() if usage != NO_USAGE],
            [(r["user_id"], usage_of(r)) for r in rows if usage_of(r) != NO_USAGE],
        )

    def _of_cell(self, cell: str) -> "Comparison":
        """The comparison of one cell, which has its own numbers of gaps."""
        streams = self.cells[cell].streams
        gaps = [
            {**row, "gap_id": row["gap_id"] // 1024}
            for row in self.views["capture_gaps"]
            if row["source"] in streams
        ]
        expected = replace(self.cells[cell], calendars=self.expected.calendars)
        return Comparison(expected, {"capture_gaps": gaps}, self.identities)


def front_differences(
    expected: Expectation,
    views: Views,
    identities: Identities,
    cells: Mapping[str, Expectation],
) -> list[str]:
    """What a front shows otherwise than the oracle; empty when they agree."""
    return list(FrontComparison(expected, views, identities, cells).run())


def feed_differences(
    of_front: Sequence[Row], of_cell: Sequence[Row], *, restored: bool
) -> Iterator[str]:
    """What the front's feed has of a cell's: every event once, in the order of the cell.

    ``restored``: the front also has events that the cell has no more.
    """

    def text(row: Row) -> str:
        payload = {name: value for name, value in row["payload"].items() if name != "cell"}
        return json.dumps([row["type"], row["realm"], payload], sort_keys=True)

    expected = [text(row) for row in of_cell if row["type"] not in OF_THE_FRONT]
    actual = [text(row) for row in of_front]
    if restored:
        counts = Counter(actual)
        expected = [row for row in expected if counts[row] != 1]
        yield from compare_rows(
            "feed: lost or doubled after a restore", [(r,) for r in expected], []
        )
    elif expected != actual:
        yield from compare_rows("feed of a cell", [(r,) for r in expected], [(r,) for r in actual])
        yield "feed of a cell: not in its order"
