"""Finds the lines that several logs have, by hashes of whole lines with their times.

Copies and rotated files of one log have lines in common at an end or as a whole; these are counted
once. Equal lines elsewhere may be of two servers, or of two starts of one.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from accounting.domain.coturn_log import LogLine
from accounting.domain.log_envelope import Unwrapped


@dataclass(slots=True)
class LineHashes:
    """Hashes of a log's lines about sessions: ``lines`` has all of them, oldest first.

    ``usage``: of those with usage, without what they are wrapped in. ``borders``: of those with a
    start or an end. ``distinct``: of those that no other start or server is expected to write just
    so. ``is_newest_first``: how the file was; None if that can't be seen.
    """

    forms: set[str] = field(default_factory=set)
    is_newest_first: bool | None = None
    lines: "array[int]" = field(default_factory=lambda: array("q"))
    usage: set[int] = field(default_factory=set)
    borders: set[int] = field(default_factory=set)
    distinct: set[int] = field(default_factory=set)

    def add(self, server: bytes, line: LogLine, unwrapped: Unwrapped) -> None:
        """Add a line, in the order of the file."""
        self.forms.add(unwrapped.form)
        self.lines.append(hash((server, unwrapped.time, unwrapped.text)))
        if any(line.counters):
            self.usage.add(hash(line))
        if line.event in {"new", "delete"}:
            self.borders.add(self.lines[-1])
        # Seconds since the start may be the same after another start, then with other usage.
        if unwrapped.form not in {"bare", "uptime"} or any(line.counters):
            self.distinct.add(self.lines[-1])

    def set_order(self, *, is_newest_first: bool | None) -> None:
        """Note the order of the file, and put the lines oldest first."""
        self.is_newest_first = is_newest_first
        if is_newest_first:
            self.lines.reverse()

    @property
    def is_repeated(self) -> bool:
        """Whether the file is a log twice."""
        lines, length = self.lines, len(self.lines)
        return any(
            start
            and lines[start:] == lines[: length - start]
            and not self.borders.isdisjoint(lines[:start])
            for start in _places_of(lines[0], lines[: length // 2 + 1])
        )


def repeated_places(hashes: LineHashes, earlier: Sequence[LineHashes]) -> set[int]:
    """The places of lines that earlier logs have too, at one end or as a whole.

    Where neither times nor sessions show which way a file goes, both ways are tried.
    """
    skipped: set[int] = set()
    for other in earlier:
        places = _shared_places(hashes, other.lines)
        if None in (hashes.is_newest_first, other.is_newest_first):
            backwards = _shared_places(hashes, other.lines[::-1])
            places = max(places, backwards, key=len)
        skipped |= places
    return skipped


def has_lines_of(hashes: LineHashes, other: LineHashes, skipped: set[int]) -> bool:
    """Whether a log has lines of another one that are not among its repeated places."""
    return any(
        hash_ in other.distinct for place, hash_ in enumerate(hashes.lines) if place not in skipped
    )


def is_in_another_form(hashes: LineHashes, other: LineHashes) -> bool:
    """Whether a log has mostly the usage of another one, wrapped otherwise."""
    smaller, larger = sorted((hashes.usage, other.usage), key=len)
    return hashes.forms != other.forms and len(smaller & larger) * 2 > len(smaller)


def _shared_places(hashes: LineHashes, theirs: "array[int]") -> set[int]:
    ours = hashes.lines
    shared: set[int] = set()
    for start in _places_of(ours[0], theirs):
        length = min(len(ours), len(theirs) - start)
        if theirs[start : start + length] == ours[:length]:
            shared.update(_credible(hashes, 0, length))
    for start in _places_of(theirs[0], ours):
        length = min(len(theirs), len(ours) - start)
        if ours[start : start + length] == theirs[:length]:
            shared.update(_credible(hashes, start, length))
    return shared


def _credible(hashes: LineHashes, start: int, length: int) -> range:
    """Those places, unless they are lines without a time that may be alike by chance."""
    if hashes.forms == {"bare"} and length < len(hashes.lines):
        return range(0)
    return range(start, start + length)


def _places_of(hash_: int, lines: "array[int]") -> Iterator[int]:
    return (place for place, other in enumerate(lines) if other == hash_)
