"""Between what an hour's peak over cells lies, from the slices that each cell has of it.

At the start of a slice all cells' counts are known: their sum is that of a moment of the hour.
Within a slice the cells may have had their highest counts at different moments: the sum of these is
more than there was, unless only one cell's count changed.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

Slices = Mapping[int, tuple[int, int]]
"""By the start of a slice: by how many sessions it grows, and the most above those at its start.

As the rows of ``realm_peak_slices``: the first counts the sessions that the hour starts with.
"""


class Candidate(NamedTuple):
    """A slice that may have the peak. ``most``: at most so many; ``before``: at its start."""

    most: int
    slice_at: int
    before: int


def peak_bounds(cells: Sequence[Slices]) -> tuple[int, list[Candidate]]:
    """The most sessions that there were at a known moment, and the slices that may have had more.

    Those with the highest bound come first.
    """
    changing = Counter(slice_at for slices in cells for slice_at in slices)
    before = least = 0
    candidates = []
    for slice_at in sorted(changing):
        changes = [slices[slice_at] for slices in cells if slice_at in slices]
        most = before + sum(peak for _, peak in changes)
        if changing[slice_at] == 1:
            least = max(least, most)
        else:
            candidates.append(Candidate(most, slice_at, before))
        before += sum(delta for delta, _ in changes)
        least = max(least, before)
    return least, sorted((c for c in candidates if c.most > least), reverse=True)
