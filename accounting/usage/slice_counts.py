"""Counts slices from the starts and ends of sessions, for the realm, its servers and transports.

Sessions are half-open, so ends come before starts, and a live one lasts to the end of the hour.
"""

import sys
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum

from accounting.domain.server_host import server_host

SliceSteps = tuple[int, int, int, str | None, str | None, bool, bytes]
"""(realm_id, hour, slice, server address, transport, whether ends, times of 8 bytes each)."""


class Dimension(StrEnum):
    """What sessions are counted by."""

    REALM = "realm"
    SERVER = "server"
    TRANSPORT = "transport"


SliceCount = tuple[int, int, int, str, str, int, int]
"""A row of ``realm_peak_slices``."""


def count_slices(steps: Iterable[SliceSteps]) -> Iterator[SliceCount]:
    """Count each slice for its realm, and for each server and transport."""
    slices = defaultdict[tuple[int, int, int, str, str], tuple[list[bytes], list[bytes]]](
        lambda: ([], [])
    )
    for realm_id, hour, slice_at, server_address, transport, is_end, times in steps:
        for dimension, name in counted_by(server_address, transport):
            slices[realm_id, hour, slice_at, dimension, name][is_end].append(times)
    for key, (starts, ends) in slices.items():
        yield *key, *count_sessions(_sorted_times(starts), _sorted_times(ends))


def counted_by(server_address: str | None, transport: str | None) -> Iterable[tuple[str, str]]:
    """The (dimension, name) pairs by which a session is counted."""
    return (
        (Dimension.REALM.value, ""),
        (Dimension.SERVER.value, server_host(server_address)),
        (Dimension.TRANSPORT.value, transport or ""),
    )


def count_sessions(starts: Sequence[int], ends: Sequence[int]) -> tuple[int, int]:
    """By how many sessions grow, and the most by which they exceed those before; times in order."""
    most = ended = 0
    for started, at in enumerate(starts, 1):
        while ended < len(ends) and ends[ended] <= at:
            ended += 1
        most = max(most, started - ended)
    return len(starts) - len(ends), most


def _sorted_times(packed: Sequence[bytes]) -> list[int]:
    times = array("q", b"".join(packed))
    if sys.byteorder == "little":
        times.byteswap()
    return sorted(times)
