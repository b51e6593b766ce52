"""Time zones come from the package tzdata, and mean the same on every machine."""

import string
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import files, version
from itertools import pairwise
from pathlib import Path

import pytest

from accounting.domain.time_zones import (
    SPAN,
    offset_seconds,
    sample_offsets,
    time_zone,
    time_zone_names,
    tzdata_version,
)


@pytest.mark.parametrize(
    "name",
    [
        "localtime",
        "Factory",
        "posixrules",
        "posix/Europe/Berlin",
        "right/Europe/Berlin",
        "europe/berlin",
        "EUROPE/BERLIN",
        "utc",
        "Europe",
        "Europe/",
        "/Europe/Berlin",
        "../Europe/Berlin",
        "Europe/Berlin\n",
        "Europe/../Europe/Berlin",
        "zones",
        "tzdata.zi",
        "CET-1CEST",
        "",
    ],
)
def test_a_name_that_a_machine_gives_a_meaning_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not in tzdata 2") as raised:
        time_zone(name)
    assert repr(name) in str(raised.value)


def test_the_names_are_those_of_the_package() -> None:
    assert {"UTC", "Europe/Berlin", "US/Eastern", "Etc/GMT+5"} <= time_zone_names()
    for name in time_zone_names():
        assert str(time_zone(name)) == name
    assert time_zone("Europe/Berlin") is time_zone("Europe/Berlin")


WITH_OTHER_DATA = """
import shutil, sys, zoneinfo
from datetime import datetime, timedelta
from pathlib import Path
other = Path(sys.argv[1])
(other / "Europe").mkdir()
shutil.copy(sys.argv[2], other / "Europe" / "Berlin")
zoneinfo.reset_tzpath(to=[other])
machines = zoneinfo.ZoneInfo("Europe/Berlin")
assert datetime(2026, 9, 21, tzinfo=machines).utcoffset() == timedelta(minutes=330)
from accounting.domain.calendar import BucketLength, Calendar, TIME_MIN
calendar = Calendar([(TIME_MIN, "Europe/Berlin")])
print(calendar.bucket(BucketLength.DAY, 1_790_000_000_000_000).starts_at)
"""


def test_data_of_the_machine_does_not_move_a_day(tmp_path: Path) -> None:
    [kolkata] = [file for file in files("tzdata") or () if file.match("zoneinfo/Asia/Kolkata")]
    ran = subprocess.run(
        [sys.executable, "-c", WITH_OTHER_DATA, str(tmp_path), kolkata.locate()],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    midnight = datetime(2026, 9, 20, 22, tzinfo=UTC)  # in Berlin
    assert int(ran.stdout) == int(midnight.timestamp()) * 1_000_000


def test_the_version_is_that_of_the_data() -> None:
    """The package calls 2026a 2026.1."""
    year, _, number = version("tzdata").partition(".")
    assert tzdata_version() == f"{year}{string.ascii_lowercase[int(number) - 1]}"


@pytest.mark.parametrize("name", ["UTC", "Europe/Berlin", "Australia/Lord_Howe", "Africa/Cairo"])
def test_samples_show_every_change_of_offset(name: str) -> None:
    zone = time_zone(name)
    offsets = sample_offsets(zone)
    assert all(offset_seconds(zone, second) == offset for second, offset in offsets.items())
    samples = list(offsets)
    assert samples == sorted(samples)
    assert (samples[0], samples[-1]) == (
        SPAN[0].timestamp(),
        SPAN[1].timestamp() - 86_400,
    )
    changes = [
        (before, after) for before, after in pairwise(samples) if offsets[before] != offsets[after]
    ]
    assert all(after - before == 1 for before, after in changes)
    assert len(changes) >= {"UTC": 0, "Africa/Cairo": 30}.get(name, 40)
