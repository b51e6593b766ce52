"""Time zones, by the data of the package ``tzdata`` and by nothing else.

``zoneinfo.ZoneInfo(name)`` prefers the data of the machine. So two machines could put the borders
of an hour in different places, and names would count that mean something on one machine only:
``localtime``, ``posixrules``, ``right/...`` with leap seconds, other cases of letters where file
names have none. The package is a locked dependency, the same for all of an installation.
"""

import difflib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.resources import files
from typing import Final
from zoneinfo import ZoneInfo

_PACKAGE: Final = "tzdata"
_NOT_ZONES: Final = frozenset({"Factory", "localtime", "posixrules"})
"""Names for what a machine was set to, and for one that was not set."""

SPAN: Final = datetime(2020, 1, 1, tzinfo=UTC), datetime(2040, 1, 1, tzinfo=UTC)
"""The times at which a zone has to have the same offsets in Postgres: no usage is older."""
_DAY_SECONDS: Final = 86_400


@cache
def time_zone_names() -> frozenset[str]:
    """The names that a rule may have."""
    return frozenset((files(_PACKAGE) / "zones").read_text().split()) - _NOT_ZONES


@cache
def tzdata_version() -> str:
    """The version of the data, such as ``2026a``."""
    with (files(_PACKAGE) / "zoneinfo" / "tzdata.zi").open() as file:
        return file.readline().removeprefix("# version ").strip()


@cache
def time_zone(name: str) -> ZoneInfo:
    """A time zone by its name. Raises ValueError for an unknown one, with a similar one."""
    if name not in time_zone_names():
        similar = difflib.get_close_matches(name, time_zone_names(), n=1)
        raise ValueError(
            f"time zone {name!r} is not in tzdata {tzdata_version()}: "
            f"expected a name such as {similar[0] if similar else 'Europe/Berlin'!r}"
        )
    with files(_PACKAGE).joinpath("zoneinfo", *name.split("/")).open("rb") as file:
        return ZoneInfo.from_file(file, key=name)


def offset_seconds(zone: ZoneInfo, second: int) -> int:
    """The offset from UTC, in seconds, at a time in seconds since the Unix epoch."""
    offset = datetime.fromtimestamp(second, UTC).astimezone(zone).utcoffset()
    assert offset is not None
    return offset // timedelta(seconds=1)


@cache
def sample_offsets(zone: ZoneInfo) -> Mapping[int, int]:
    """Offsets with which to compare a zone with another: each day of SPAN, and around each change.

    In seconds, by Unix seconds in their order. Two zones with the same offsets at all of them have
    the same changes, except for two changes within one day that cancel each other.
    """
    since, until = (int(moment.timestamp()) for moment in SPAN)
    offset = offset_seconds(zone, since)
    offsets = {}
    for second in range(since, until, _DAY_SECONDS):
        if (next_offset := offset_seconds(zone, second)) != offset:
            before, after = second - _DAY_SECONDS, second
            while after - before > 1:
                middle = (before + after) // 2
                if offset_seconds(zone, middle) == next_offset:
                    after = middle
                else:
                    before = middle
            offsets[before] = offset_seconds(zone, before)
            offsets[after] = next_offset
            offset = next_offset
        offsets[second] = offset
    return offsets
