"""Writes the figures of a run into docs/performance.md and docs/scale.md.

    python -m benchmarks.report bench.jsonl

It replaces the blocks between ``<!-- figures: PART -->`` and ``<!-- end -->`` of the parts in the
run. The rate that one core carries is computed from the CPU time of the whole path.
"""

import argparse
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.figures import Figure, format_figures
from tests.support.service import ROOT

PAGES: Final = (ROOT / "docs/performance.md", ROOT / "docs/scale.md")
BLOCK: Final = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_figures(page: str, rows: Iterable[dict[str, Any]]) -> str:
    """The page with the figures of the rows, which are the JSON lines of a run."""
    about: dict[str, Any] = {}
    parts: dict[str, list[Figure]] = {}
    for row in rows:
        if "figure" not in row:
            about = row
            continue
        figure = Figure.from_json(row)
        parts.setdefault(figure.part.partition(",")[0], []).append(figure)

    if "path" in parts:
        parts["cores"] = list(_core_limits(parts["path"]))

    def block(match: re.Match[str]) -> str:
        opening, name, closing = match.groups()
        if name == "about" and about:
            lines = "\n".join(f"- {key}: {value}" for key, value in about.items())
            return f"{opening}{lines}\n{closing}"
        if name in parts:
            return f"{opening}{format_figures(parts[name])}\n{closing}"
        return match[0]

    return BLOCK.sub(block, page)


def _core_limits(figures: Iterable[Figure]) -> Iterator[Figure]:
    """The events a second that one core carries of each process."""
    for figure in figures:
        if figure.name.startswith("CPU, ") and figure.median > 0:
            name = figure.name.removeprefix("CPU, ")
            yield Figure(part="one core", name=name, unit="events/s", values=[1e6 / figure.median])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("lines", type=Path, help="output of `python -m benchmarks --json`")
    given = arguments.parse_args()
    rows = [json.loads(line) for line in given.lines.read_text().splitlines()]
    for page in PAGES:
        page.write_text(with_figures(page.read_text(), rows))


if __name__ == "__main__":
    main()
