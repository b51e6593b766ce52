"""Recorded traffic through the pipeline: every message is accounted as coturn's own log has it.

A recording has the commands that one Redis received from consecutive runs of coturn; a log is of
one run. A run starts with coturn's KEYS command, and its log is the one with the same usage.
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
NO_TRAFFIC: Final = (0,) * 8
CHANNEL: Final = re.compile(
    rb"turn/realm/(?P<realm>[^/]*)/user/(?P<username>.*)/allocation/(?P<id>\d{18})/(?P<suffix>[a-z_/]+)",
    re.DOTALL,
)


class Run(NamedTuple):
    """What a coturn process published: interims, and the allocations that it confirmed."""

    from_us: int
    to_us: int
    interims: dict[LoggedKey, Eight]
    confirmed: set[LoggedKey]

    def used_interims(self) -> dict[LoggedKey, Eight]:
        return {key: eight for key, eight in self.interims.items() if any(eight)}


def runs(name: str) -> list[Run]:
    """The runs of a recording: each coturn starts with a KEYS command."""
    starts = [line.time_us for line in recorded_commands(name) if line.command == "keys"]
    messages = allocation_messages(name)
    coturn_runs = []
    for start, end in zip([0, *starts], [*starts, 2**63], strict=True):
        run = Run(start, end, {}, set())
        for line in messages:
            if not start <= line.time_us < end:
                continue
            match = CHANNEL.fullmatch(line.args[0])
            assert match is not None
            key = LoggedKey(match["realm"], match["username"], match["id"].decode())
            suffix = match["suffix"]
            if not suffix.startswith(b"traffic"):
                run.confirmed.add(key)
                continue
            counts = [int(number) for number in re.findall(rb"=(\d+)", line.args[1])]
            eight = [0] * 4 + counts if suffix == b"traffic/peer" else counts + [0] * 4
            before = run.interims.get(key, NO_TRAFFIC)
            run.interims[key] = tuple(a + b for a, b in zip(before, eight, strict=True))
        if run.interims or run.confirmed:
            coturn_runs.append(run)
    return coturn_runs


def log_of(run: Run) -> dict[LoggedKey, LoggedUsage] | None:
    """The log with this run's usage; None if there is none."""
    for path in sorted(DIRECTORY.glob("*.log")):
        log = coturn_log_usage(path.read_bytes())
        used = {key: usage.counters() for key, usage in log.items() if any(usage.counters())}
        if used and used == run.used_interims():
            return log
    return None


@pytest.mark.parametrize("name", recording_names())
def test_sessions_equal_coturns_log(books: Books, name: str) -> None:
    receive_recording(books, name)
    sessions = books.rows("sessions")
    logged = [(run, log) for run in runs(name) if (log := log_of(run)) is not None]
    assert any(
        log == coturn_log_usage((DIRECTORY / f"{name}.log").read_bytes()) for _, log in logged
    )
    for run, log in logged:
        stored = {
            (row["realm"], row["username"], row["allocation_id"]): tuple(row[c] for c in COUNTERS)
            for row in sessions
            if run.from_us <= to_microseconds(row["started_at"]) < run.to_us
        }
        assert stored == {
            (escape(key.realm), escape(key.username), key.allocation_id): usage.counters()
            for key, usage in log.items()
            if usage.began
        }
        for key, usage in log.items():
            if not usage.began:
                assert key in run.interims
                assert key not in run.confirmed


@pytest.mark.parametrize("name", recording_names())
def test_every_published_byte_belongs_to_a_session_or_is_unattributed(
    books: Books, name: str
) -> None:
    count = receive_recording(books, name)
    reports = len(books.rows("allocation_events")) + len(books.rows("traffic_reports"))
    assert (reports, books.rows("rejected_messages")) == (count, [])
    billed: dict[tuple[str, str], Eight] = {}
    unattributed: dict[tuple[str, str], Eight] = {}
    for run in runs(name):
        for key in run.interims.keys() | run.confirmed:
            owner = escape(key.realm), escape(key.username)
            sums = billed if key in run.confirmed else unattributed
            eight = run.interims.get(key, NO_TRAFFIC)
            sums[owner] = tuple(
                a + b for a, b in zip(sums.get(owner, NO_TRAFFIC), eight, strict=True)
            )
    assert usage_of(books, "sessions", "username") == billed
    assert usage_of(books, "unattributed_usage", "username") == unattributed
    assert not any(row["estimated"] or row["disputed"] for row in books.rows("sessions"))
    books.assert_conserved()


@pytest.mark.parametrize("name", ["unauthenticated-4.6.1", "unauthenticated-4.17.1"])
def test_usage_without_authentication_is_only_in_unattributed_usage(
    books: Books, name: str
) -> None:
    receive_recording(books, name)
    unattributed = books.rows("unattributed_usage")
    victim = sum_counters(row for row in unattributed if row["username"] == "victim")
    assert victim["received_bytes"] >= 108
    if name == "unauthenticated-4.6.1":
        unnamed = sum_counters(row for row in unattributed if row["username"] == "")
        assert tuple(unnamed.values()) == (2, 48, 2, 180, 0, 0, 0, 0)
        assert tuple(victim.values()) == (4, 328, 4, 400, 0, 0, 0, 0)
    for view in ("sessions", "user_usage_hourly", "user_usage_daily", "user_usage_monthly"):
        assert {row["user_id"] for row in books.rows(view)} == {"alice"}, view


def usage_of(books: Books, view: str, name: str) -> dict[tuple[str, str], Eight]:
    """The eight counters of a view by realm and name."""
    rows = books.rows(view)
    return {
        owner: tuple(
            sum_counters(row for row in rows if (row["realm"], row[name]) == owner).values()
        )
        for owner in {(row["realm"], row[name]) for row in rows}
    }


def to_microseconds(at: datetime) -> int:
    return round(at.timestamp() * 1e6)
