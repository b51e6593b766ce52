"""Real traffic through the path: every message of the recordings, against coturn's own logs.

A recording holds what one Redis saw of several runs of coturn, one after the other; each log is of
one run. A run is told by what coturn does first (KEYS), and belongs to the log with its usage.
"""

import re
from datetime import datetime
from typing import Final, NamedTuple

import pytest

from accounting.domain.counters import COUNTERS
from accounting.domain.text_escaping import escape
from tests.support.books import Books, sum_counters
from tests.support.coturn_log import LoggedKey, LoggedUsage, coturn_log_usage
from tests.support.recordings import (
    DIRECTORY,
    allocation_messages,
    receive_recording,
    recorded_commands,
    recording_names,
)

Eight = tuple[int, ...]
NOTHING: Final = (0,) * 8
CHANNEL: Final = re.compile(
    rb"turn/realm/(?P<realm>[^/]*)/user/(?P<username>.*)/allocation/(?P<id>\d{18})/(?P<what>[a-z_/]+)",
    re.DOTALL,
)


class Run(NamedTuple):
    """What one coturn published between two starts: its interims, and whom it confirmed for."""

    from_us: int
    to_us: int
    interims: dict[LoggedKey, Eight]
    confirmed: set[LoggedKey]

    def busy(self) -> dict[LoggedKey, Eight]:
        return {key: eight for key, eight in self.interims.items() if any(eight)}


def runs(name: str) -> list[Run]:
    """The runs of a recording, cut before the KEYS with which each coturn starts."""
    starts = [line.time_us for line in recorded_commands(name) if line.command == "keys"]
    messages = allocation_messages(name)
    found = []
    for start, end in zip([0, *starts], [*starts, 2**63], strict=True):
        run = Run(start, end, {}, set())
        for line in messages:
            if not start <= line.time_us < end:
                continue
            match = CHANNEL.fullmatch(line.args[0])
            assert match is not None
            key = LoggedKey(match["realm"], match["username"], match["id"].decode())
            what = match["what"]
            if not what.startswith(b"traffic"):
                run.confirmed.add(key)
                continue
            counts = [int(number) for number in re.findall(rb"=(\d+)", line.args[1])]
            eight = [0] * 4 + counts if what == b"traffic/peer" else counts + [0] * 4
            before = run.interims.get(key, NOTHING)
            run.interims[key] = tuple(a + b for a, b in zip(before, eight, strict=True))
        if run.interims or run.confirmed:
            found.append(run)
    return found


def log_of(run: Run) -> dict[LoggedKey, LoggedUsage] | None:
    """The log with this run's usage; None where no log was kept."""
    for path in sorted(DIRECTORY.glob("*.log")):
        log = coturn_log_usage(path.read_bytes())
        used = {key: usage.counters() for key, usage in log.items() if any(usage.counters())}
        if used and used == run.busy():
            return log
    return None


@pytest.mark.parametrize("name", recording_names())
def test_sessions_equal_coturns_log_byte_for_byte(books: Books, name: str) -> None:
    receive_recording(books, name)
    sessions = books.rows("sessions")
    logged = [(run, log) for run in runs(name) if (log := log_of(run)) is not None]
    assert any(
        log == coturn_log_usage((DIRECTORY / f"{name}.log").read_bytes()) for _, log in logged
    )
    for run, log in logged:
        booked = {
            (row["realm"], row["username"], row["allocation_id"]): tuple(row[c] for c in COUNTERS)
            for row in sessions
            if run.from_us <= microseconds(row["started_at"]) < run.to_us
        }
        assert booked == {
            (escape(key.realm), escape(key.username), key.allocation_id): usage.counters()
            for key, usage in log.items()
            if usage.began
        }
        for key, usage in log.items():
            if not usage.began:
                assert key in run.interims
                assert key not in run.confirmed


@pytest.mark.parametrize("name", recording_names())
def test_every_published_byte_is_a_sessions_or_unattributed(books: Books, name: str) -> None:
    count = receive_recording(books, name)
    reports = len(books.rows("allocation_events")) + len(books.rows("traffic_reports"))
    assert (reports, books.rows("rejected_messages")) == (count, [])
    billed: dict[tuple[str, str], Eight] = {}
    unattributed: dict[tuple[str, str], Eight] = {}
    for run in runs(name):
        for key in run.interims.keys() | run.confirmed:
            who = escape(key.realm), escape(key.username)
            sums = billed if key in run.confirmed else unattributed
            eight = run.interims.get(key, NOTHING)
            sums[who] = tuple(a + b for a, b in zip(sums.get(who, NOTHING), eight, strict=True))
    assert usage_of(books, "sessions", "username") == billed
    assert usage_of(books, "unattributed_usage", "username") == unattributed
    assert not any(row["estimated"] or row["disputed"] for row in books.rows("sessions"))
    books.assert_conserved()


@pytest.mark.parametrize("name", ["unauthenticated-4.6.1", "unauthenticated-4.17.1"])
def test_who_never_authenticated_is_unattributed_and_nowhere_else(books: Books, name: str) -> None:
    receive_recording(books, name)
    unattributed = books.rows("unattributed_usage")
    victim = sum_counters(row for row in unattributed if row["username"] == "victim")
    assert victim["received_bytes"] >= 108
    if name == "unauthenticated-4.6.1":
        nobody = sum_counters(row for row in unattributed if row["username"] == "")
        assert tuple(nobody.values()) == (2, 48, 2, 180, 0, 0, 0, 0)
        assert tuple(victim.values()) == (4, 328, 4, 400, 0, 0, 0, 0)
    for view in ("sessions", "user_usage_hourly", "user_usage_daily", "user_usage_monthly"):
        assert {row["user_id"] for row in books.rows(view)} == {"alice"}, view


def usage_of(books: Books, view: str, name: str) -> dict[tuple[str, str], Eight]:
    """The eight counters of a view by realm and name."""
    rows = books.rows(view)
    return {
        who: tuple(sum_counters(r for r in rows if (r["realm"], r[name]) == who).values())
        for who in {(row["realm"], row[name]) for row in rows}
    }


def microseconds(at: datetime) -> int:
    return round(at.timestamp() * 1e6)
