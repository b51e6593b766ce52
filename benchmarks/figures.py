"""What a benchmark says: figures of several rounds, beside their targets, as a table and as JSON.

Owns the shape of a figure and how it is shown. Measures nothing.
"""

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final, Literal

HEADINGS: Final = ("part", "figure", "median", "low", "high", "unit", "target", "met")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured figure: its value in every round.

    ``limit``: what the value is a ratio to; it is measured in the same run. ``target``: the value
    that must be reached, and ``bound`` whether it is an upper or lower one; None without a target.
    """

    part: str
    name: str
    unit: str
    values: Sequence[float]
    limit: str = ""
    target: float | None = None
    bound: Literal["at most", "at least"] = "at most"

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def is_met(self) -> bool | None:
        """Whether the median reaches the target; None without one."""
        if self.target is None:
            return None
        if self.bound == "at most":
            return self.median <= self.target
        return self.median >= self.target

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Figure":
        return cls(
            part=row["part"],
            name=row["figure"],
            unit=row["unit"],
            values=row["rounds"],
            limit=row["limit"],
            target=row["target"],
            bound=row["bound"] or "at most",
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "part": self.part,
            "figure": self.name,
            "unit": self.unit,
            "median": self.median,
            "low": min(self.values),
            "high": max(self.values),
            "rounds": list(self.values),
            "limit": self.limit,
            "target": self.target,
            "bound": None if self.target is None else self.bound,
            "met": self.is_met,
        }


class Rounds:
    """Values of a part's figures, collected round by round in the order of their first round."""

    def __init__(self, part: str) -> None:
        self._part = part
        self._figures: dict[str, dict[str, Any]] = {}

    def add(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        limit: str = "",
        target: float | None = None,
        bound: Literal["at most", "at least"] = "at most",
    ) -> None:
        """Add the value of a figure in the current round."""
        figure = self._figures.setdefault(
            name, {"unit": unit, "limit": limit, "target": target, "bound": bound, "values": []}
        )
        figure["values"].append(value)

    def figures(self) -> list[Figure]:
        return [Figure(part=self._part, name=name, **rest) for name, rest in self._figures.items()]


def table(figures: Iterable[Figure]) -> str:
    """The figures as a Markdown table."""
    return _format_table(HEADINGS, [_cells(figure) for figure in figures], right=range(2, 5))


def format_figures(figures: Sequence[Figure]) -> str:
    """The figures of one part in rows, of several parts in columns."""
    one_part = len({figure.part for figure in figures}) == 1
    return table(figures) if one_part else side_by_side(figures)


def side_by_side(figures: Sequence[Figure]) -> str:
    """The same figures of several parts in columns, with the ratio of the last to the first."""
    parts = list(dict.fromkeys(figure.part for figure in figures))
    by_name: dict[str, dict[str, Figure]] = {}
    for figure in figures:
        by_name.setdefault(f"{figure.name}, {figure.unit}", {})[figure.part] = figure
    rows = []
    for name, by_part in by_name.items():
        values = [by_part[part].median for part in parts]
        ratio = format_number(values[-1] / values[0]) if values[0] else ""
        rows.append((name, *map(format_number, values), ratio))
    headings = ("figure", *parts, "last to first")
    return _format_table(headings, rows, right=range(1, len(headings)))


def _format_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], right: Container[int]
) -> str:
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = line(
        ["-" * (width - 1) + (":" if place in right else "-") for place, width in enumerate(widths)]
    )
    return "\n".join([line(headings), rule, *map(line, rows)])


def _cells(figure: Figure) -> tuple[str, ...]:
    met = {None: "", True: "yes", False: "NO"}[figure.is_met]
    target = "" if figure.target is None else f"{figure.bound} {format_number(figure.target)}"
    name = f"{figure.name}, of {figure.limit}" if figure.limit else figure.name
    return (
        figure.part,
        name,
        format_number(figure.median),
        format_number(min(figure.values)),
        format_number(max(figure.values)),
        figure.unit,
        target,
        met,
    )


def format_number(value: float) -> str:
    """Three significant digits, with thousands separators."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def json_line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)
