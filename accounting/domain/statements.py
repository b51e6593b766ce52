"""The cutoff of a statement, and the digest of each of its lines.

Both are made of canonical text: equal facts give equal bytes. Neither contains a user's name, so
that erasing a name changes neither.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from typing import Any
from uuid import UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCutoff:
    """How far one source was settled. ``settled_until``: microseconds since the epoch.

    ``last_sighting``: (epoch, position, number) of the last key sighting that was settled.
    """

    epoch: int
    position: int
    settled_until: int | None
    last_sighting: tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementCutoff:
    """What a statement was computed from: each source by name, and the highest ``gap_id``.

    ``excluded_sources``: those that were behind and not waited for.
    """

    sources: Mapping[str, SourceCutoff]
    highest_gap_id: int
    excluded_sources: Sequence[str] = ()

    def to_text(self) -> str:
        """Canonical JSON: sorted names, no spaces, ASCII only."""
        sources = {
            name: {
                "epoch": source.epoch,
                "position": source.position,
                "sighted": list(source.last_sighting),
                "until": source.settled_until,
            }
            for name, source in self.sources.items()
        }
        return json.dumps(
            {
                "gap": self.highest_gap_id,
                "sources": sources,
                "without": sorted(self.excluded_sources),
            },
            sort_keys=True,
            separators=(",", ":"),
        )

    @property
    def settled_until(self) -> int | None:
        """Until when all sources that were waited for were settled; None if one never was."""
        times = []
        for name, source in self.sources.items():
            if name in self.excluded_sources:
                continue
            if source.settled_until is None:
                return None
            times.append(source.settled_until)
        return min(times, default=None)

    @classmethod
    def from_text(cls, text: str) -> "StatementCutoff":
        """Parse what :meth:`to_text` or :func:`cutoff_over_cells` wrote.

        Of cells, it has the sources of all: their names are unique. Gaps have numbers of their
        cells, so there is no highest one.
        """
        fields = json.loads(text)
        if "cells" in fields:
            cells = fields["cells"].values()
            fields = {
                "gap": 0,
                "sources": {
                    name: source for cell in cells for name, source in cell["sources"].items()
                },
                "without": sorted(
                    [
                        *(name for cell in cells for name in cell["without"]),
                        *(f"cell {name}" for name in fields.get("without", ())),
                    ]
                ),
            }
        return cls(
            highest_gap_id=fields["gap"],
            excluded_sources=tuple(fields["without"]),
            sources={
                name: SourceCutoff(
                    epoch=source["epoch"],
                    position=source["position"],
                    settled_until=source["until"],
                    last_sighting=(
                        source["sighted"][0],
                        source["sighted"][1],
                        source["sighted"][2],
                    ),
                )
                for name, source in fields["sources"].items()
            },
        )


def cutoff_over_cells(cutoffs: Mapping[str, str], without: Collection[str] = ()) -> str:
    """The cutoff of a front's statement, in the same form, of those of its cells by name.

    ``without``: the cells that have no part of it, and were not waited for.
    """
    fields: dict[str, Any] = {"cells": {cell: json.loads(text) for cell, text in cutoffs.items()}}
    if without:
        fields["without"] = sorted(without)
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))


def line_digest(
    *, realm: str, period: date, user_key: UUID, numbers: Sequence[int], cutoff: str
) -> str:
    """SHA-256, in hexadecimal, of a statement line; the query ``write_statement`` computes it too.

    ``numbers``: the eight counters, sessions started and ended, session microseconds, estimated
    bytes. ``realm``: as in the views; it is last, because only a realm may contain the separator.
    """
    fields = [period.isoformat(), str(user_key), *map(str, numbers), cutoff, realm]
    return sha256("\n".join(fields).encode()).hexdigest()


def statement_digest(lines: Iterable[tuple[UUID, str]]) -> str:
    """SHA-256, in hexadecimal, of a statement: (user_key, digest) of its lines, sorted by key."""
    text = "\n".join(f"{user_key} {digest}" for user_key, digest in sorted(lines))
    return sha256(text.encode()).hexdigest()
