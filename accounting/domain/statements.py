"""What a statement's line is proved by: the cutoff that it was computed at, and its digest.

Both are canonical texts: the same facts give the same bytes. No user's name is in either, so that
erasing a name changes nothing.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from uuid import UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCutoff:
    """How far one source was settled. ``until`` in microseconds since the epoch.

    ``sighted``: (epoch, position, number) of the last key sighting that was taken in.
    """

    epoch: int
    position: int
    settled_until: int | None
    last_sighting: tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementCutoff:
    """What a statement was computed from: each source by name, and the highest gap_id known.

    ``without``: the sources that it did not wait for, though they were behind.
    """

    sources: Mapping[str, SourceCutoff]
    gap: int
    excluded_sources: Sequence[str] = ()

    def to_text(self) -> str:
        """Canonical JSON: sorted names, no spaces, ASCII only."""
        found = {
            name: {
                "epoch": one.epoch,
                "position": one.position,
                "sighted": list(one.last_sighting),
                "until": one.settled_until,
            }
            for name, one in self.sources.items()
        }
        return json.dumps(
            {"gap": self.gap, "sources": found, "without": sorted(self.excluded_sources)},
            sort_keys=True,
            separators=(",", ":"),
        )

    @classmethod
    def from_text(cls, text: str) -> "StatementCutoff":
        """The cutoff that :meth:`to_text` wrote."""
        found = json.loads(text)
        return cls(
            gap=found["gap"],
            excluded_sources=tuple(found["without"]),
            sources={
                name: SourceCutoff(
                    epoch=one["epoch"],
                    position=one["position"],
                    settled_until=one["until"],
                    last_sighting=(one["sighted"][0], one["sighted"][1], one["sighted"][2]),
                )
                for name, one in found["sources"].items()
            },
        )


def line_digest(
    *, realm: str, period: date, user_key: UUID, numbers: Sequence[int], cutoff: str
) -> str:
    """SHA-256, hexadecimal, of a statement's line; the query ``write_statement`` computes the same.

    ``numbers``: the eight counters, sessions started and ended, session microseconds, estimated
    bytes. ``realm`` as the views spell it, last: it alone may hold the character between two.
    """
    fields = [period.isoformat(), str(user_key), *map(str, numbers), cutoff, realm]
    return sha256("\n".join(fields).encode()).hexdigest()


def statement_digest(lines: Iterable[tuple[UUID, str]]) -> str:
    """SHA-256, hexadecimal, over a whole statement: (user_key, digest) of its lines by key."""
    told = "\n".join(f"{user_key} {digest}" for user_key, digest in sorted(lines))
    return sha256(told.encode()).hexdigest()
