"""Computes usage in the simplest way from the sessions and the reports that the views show.

Shares only `accounting.domain.calendar` with the service, which has its own tests.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from accounting.domain.calendar import TIME_MIN, BucketLength, Calendar, to_micros
from accounting.domain.counters import COUNTERS
from tests.support.scenario_player import ZONES

Rows = Sequence[Mapping[str, Any]]
Shown = Mapping[str, Rows]
Usage = dict[tuple[object, ...], dict[str, Any]]

CALENDARS: Final = {realm: Calendar([(TIME_MIN, zone)]) for realm, zone in ZONES.items()}
SIDES: Final = {"client": COUNTERS[:4], "peer": COUNTERS[4:]}


def bucket(realm: str, level: BucketLength, moment: datetime) -> int:
    return CALENDARS[realm].bucket(level, to_micros(moment)).starts_at


def active_until(session: Mapping[str, Any]) -> datetime:
    end: datetime = session["ended_at"] or session["last_seen_at"]
    return end


def assert_usage_follows_from_sessions_and_reports(shown: Shown) -> None:
    hours = by_bucket(shown["user_usage_hourly"], "realm", "user_id")
    assert_sessions_are_counted(shown["sessions"], hours)
    assert_bytes_count_in_the_hour_of_their_report(shown, hours)
    assert_estimates_equal_those_of_the_sessions(shown)
    assert_levels_are_sums(shown)
    assert_servers_follow_from_sessions(shown, "server", host_of)
    assert_servers_follow_from_sessions(
        shown, "transport", lambda session: session["transport"] or ""
    )
    peaks = {
        key: row["peak_sessions"]
        for key, row in by_bucket(shown["realm_usage_hourly"], "realm").items()
    }
    assert {key: peak for key, peak in peaks.items() if peak} == expected_peaks(shown["sessions"])


def by_bucket(rows: Rows, *names: str) -> Usage:
    return {
        (*(row[name] for name in names), to_micros(row["starts_at"])): dict(row) for row in rows
    }


def assert_sessions_are_counted(sessions: Rows, hours: Usage) -> None:
    """Starts, ends and seconds by user and hour."""
    started, ended = Counter[object](), Counter[object]()
    lived = defaultdict[object, Decimal](Decimal)
    for session in sessions:
        realm, user = session["realm"], session["user_id"]
        started[realm, user, bucket(realm, BucketLength.HOUR, session["started_at"])] += 1
        if session["ended_at"]:
            ended[realm, user, bucket(realm, BucketLength.HOUR, session["ended_at"])] += 1
        time, end = to_micros(session["started_at"]), to_micros(active_until(session))
        while time < end:
            hour = CALENDARS[realm].bucket(BucketLength.HOUR, time)
            lived[realm, user, hour.starts_at] += Decimal(min(end, hour.ends_at) - time) / 10**6
            time = hour.ends_at
    for name, expected in (
        ("sessions_started", started),
        ("sessions_ended", ended),
        ("session_seconds", lived),
    ):
        actual = {key: row[name] for key, row in hours.items() if row[name]}
        assert actual == {key: value for key, value in expected.items() if value}, name


def assert_bytes_count_in_the_hour_of_their_report(shown: Shown, hours: Usage) -> None:
    """Billed and unattributed usage equals the interims, except where a total corrected it."""
    users = {(row["realm"], row["username"]): row["user_id"] for row in shown["traffic_reports"]}
    actual = defaultdict[object, Counter[str]](Counter)
    for key, row in hours.items():
        actual[key].update({name: int(row[name]) for name in COUNTERS})
    for unattributed in shown["unattributed_usage"]:
        user = users[unattributed["realm"], unattributed["username"]]
        key = unattributed["realm"], user, to_micros(unattributed["starts_at"])
        actual[key].update({name: int(unattributed[name]) for name in COUNTERS})
    reported = defaultdict[object, Counter[str]](Counter)
    corrected = set()
    for report in shown["traffic_reports"]:
        hour = bucket(report["realm"], BucketLength.HOUR, report["received_at"])
        key = report["realm"], report["user_id"], hour
        if report["report"] == "total":
            corrected.add((key, report["side"]))
            continue
        for name, column in zip(SIDES[report["side"]], COUNTERS[:4], strict=True):
            reported[key][name] += report[column]
    for user_hour in {*actual, *reported}:
        for side, names in SIDES.items():
            if (user_hour, side) not in corrected:
                for name in names:
                    assert actual[user_hour][name] == reported[user_hour][name], (user_hour, name)


def assert_estimates_equal_those_of_the_sessions(shown: Shown) -> None:
    expected, actual = Counter[object](), Counter[object]()
    for session in shown["sessions"]:
        if session["estimated"]:
            key = session["realm"], session["user_id"]
            expected[key] += session["received_bytes"] + session["sent_bytes"]
    for row in shown["user_usage_monthly"]:
        actual[row["realm"], row["user_id"]] += row["estimated_bytes"]
    assert {key: n for key, n in actual.items() if n} == {
        key: n for key, n in expected.items() if n
    }


def assert_levels_are_sums(shown: Shown) -> None:
    """Days and months are the sums of their hours; a realm's usage is that of its users."""
    summed = (
        *COUNTERS,
        "sessions_started",
        "sessions_ended",
        "session_seconds",
        "estimated_bytes",
    )
    for length, level in (
        ("hourly", BucketLength.HOUR),
        ("daily", BucketLength.DAY),
        ("monthly", BucketLength.MONTH),
    ):
        for subject, names in (("user", ("realm", "user_id")), ("realm", ("realm",))):
            expected = defaultdict[object, Counter[str]](Counter)
            peaks = defaultdict[object, int](int)
            for row in shown["user_usage_hourly"]:
                key = (
                    *(row[name] for name in names),
                    bucket(row["realm"], level, row["starts_at"]),
                )
                for name in summed:
                    expected[key][name] += row[name]
            for row in shown["realm_usage_hourly"]:
                key = row["realm"], bucket(row["realm"], level, row["starts_at"])
                peaks[key] = max(peaks[key], row["peak_sessions"])
            actual = by_bucket(shown[f"{subject}_usage_{length}"], *names)
            assert {key: {name: row[name] for name in summed} for key, row in actual.items()} == {
                key: {name: sums[name] for name in summed} for key, sums in expected.items()
            }
            if subject == "realm":
                assert {key: row["peak_sessions"] for key, row in actual.items()} == peaks
            for key, row in actual.items():
                calendar = CALENDARS[row["realm"]]
                borders = calendar.bucket(level, to_micros(row["starts_at"]))
                assert borders.starts_at == key[-1]
                assert borders.ends_at == to_micros(row["ends_at"])


def host_of(session: Mapping[str, Any]) -> str:
    """The server of a session; all of the scenarios have an IPv4 address with a port."""
    address: str = session["server_address"] or ""
    return address.removesuffix(":3478")


def assert_servers_follow_from_sessions(
    shown: Shown, dimension: str, name_of: Callable[[Mapping[str, Any]], str]
) -> None:
    """The sums of all hours by server or transport are those of its sessions; so are its peaks."""
    column = "server_address" if dimension == "server" else dimension
    expected = defaultdict[object, Counter[str]](Counter)
    sessions = defaultdict[str, list[Mapping[str, Any]]](list)
    for session in shown["sessions"]:
        name = name_of(session)
        sessions[name].append(session)
        expected[session["realm"], name].update({one: int(session[one]) for one in COUNTERS})
        expected[session["realm"], name]["sessions_started"] += 1
    for length, level in (("hourly", BucketLength.HOUR), ("daily", BucketLength.DAY)):
        actual = defaultdict[object, Counter[str]](Counter)
        peaks: dict[tuple[str, str, int], int] = {}
        for row in shown[f"{dimension}_usage_{length}"]:
            sums = actual[row["realm"], row[column]]
            sums.update({one: int(row[one]) for one in (*COUNTERS, "sessions_started")})
            if row["peak_sessions"]:
                peaks[row["realm"], row[column], to_micros(row["starts_at"])] = row["peak_sessions"]
        assert {key: +sums for key, sums in actual.items() if +sums} == {
            key: +sums for key, sums in expected.items() if +sums
        }
        highest: dict[tuple[str, str, int], int] = {}
        for name, of_name in sessions.items():
            for (realm, hour), peak in expected_peaks(of_name).items():
                start = CALENDARS[realm].bucket(level, hour).starts_at
                highest[realm, name, start] = max(highest.get((realm, name, start), 0), peak)
        assert peaks == highest


def expected_peaks(sessions: Rows) -> dict[tuple[str, int], int]:
    """The maximum of concurrent sessions at a start or at the begin of an hour; without zeros.

    All of them have ended.
    """
    spans = defaultdict[str, list[tuple[int, int]]](list)
    for session in sessions:
        assert session["ended_at"]
        spans[session["realm"]].append(
            (to_micros(session["started_at"]), to_micros(session["ended_at"]))
        )
    actual: dict[tuple[str, int], int] = {}
    for realm, spans_of_realm in spans.items():
        moments = {start for start, _ in spans_of_realm}
        for start, end in spans_of_realm:
            moments |= {hour.starts_at for hour in CALENDARS[realm].hours(start, end)}
        for moment in moments:
            concurrent = sum(start <= moment < end for start, end in spans_of_realm)
            key = realm, CALENDARS[realm].bucket(BucketLength.HOUR, moment).starts_at
            if concurrent:
                actual[key] = max(actual.get(key, 0), concurrent)
    return actual
