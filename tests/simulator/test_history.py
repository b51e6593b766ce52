"""Histories: their messages, their look, and what the ledger makes of single allocations."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import pytest

from accounting.domain.calendar import from_micros, to_micros
from accounting.errors import UsageError
from accounting.simulator.history import (
    MINUTE,
    History,
    HistoryScenario,
    JobsDue,
    Messages,
    Outage,
    realm_names,
)
from accounting.simulator.history_oracle import (
    HistoryExpected,
    HistoryLedger,
    HistoryRealm,
    LineKey,
    Record,
)
from accounting.simulator.oracle import ZERO_COUNTERS, Counters
from accounting.simulator.population import SimulatedUser

NOW = to_micros(datetime(2026, 11, 28, 17, 0, tzinfo=UTC))
SMALL = HistoryScenario(until=NOW, months=2, users=8, sessions=150)
BERLIN = ZoneInfo("Europe/Berlin")


def play(scenario: HistoryScenario) -> tuple[list[tuple[int, int, bytes, bytes]], HistoryExpected]:
    history = History(scenario)
    messages = [
        message for step in history.run() if isinstance(step, Messages) for message in step.messages
    ]
    return messages, history.expected()


def test_the_same_seed_gives_the_same_history_and_another_seed_another() -> None:
    assert play(SMALL) == play(SMALL)
    assert play(SMALL)[0] != play(replace(SMALL, seed=2))[0]


def test_steps_come_in_order_and_nothing_is_captured_in_an_outage() -> None:
    history, last, outages = History(SMALL), 0, list[Outage]()
    for step in history.run():
        match step:
            case Messages(until, messages):
                times = [last, *(at for at, *_ in messages), until]
                assert times == sorted(times)
                last = until
            case Outage(from_at, to_at, _):
                assert last == from_at < to_at
                outages.append(step)
            case JobsDue(at):
                assert at == last
    assert last == NOW
    assert len(outages) == history.expected().gaps >= 3
    assert not [at for at, *_ in play(SMALL)[0] for o in outages if o.from_at <= at < o.to_at]


def test_whole_months_of_each_zone_are_closed_and_come_with_late_usage() -> None:
    _, expected = play(replace(SMALL, realms=realm_names(4)))
    assert set(expected.closed) == {
        (realm, month)
        for realm in realm_names(4)
        for month in (date(2026, 9, 1), date(2026, 10, 1))
    }
    assert {key.period for key in expected.statements} == {date(2026, 9, 1), date(2026, 10, 1)}
    assert {key.period for key in expected.months} == {
        date(2026, month, 1) for month in (9, 10, 11)
    }
    assert len(expected.adjustments) >= 4
    assert all(line["session_microseconds"] > 0 for line in expected.adjustments.values())
    assert any(line["sent_bytes"] for line in expected.adjustments.values())


@pytest.mark.parametrize(
    ("now", "first", "closed"),
    [
        # 01:00 in Berlin: October is over, but its late usage is still to come.
        (datetime(2026, 11, 1, 0, 0, tzinfo=UTC), date(2026, 9, 1), [9, 10]),
        (datetime(2026, 11, 1, 3, 0, tzinfo=UTC), date(2026, 10, 1), [10]),
        (datetime(2027, 1, 1, 12, 0, tzinfo=UTC), date(2026, 12, 1), [12]),
    ],
)
def test_a_month_that_was_just_over_does_not_count(
    now: datetime, first: date, closed: list[int]
) -> None:
    scenario = replace(SMALL, until=to_micros(now), months=1, realms=("r",), sessions=50)
    [realm] = History(scenario).realms
    assert realm.first_days[0] == first
    assert [day.month for _, day in play(scenario)[1].closed] == closed


def test_days_and_nights_and_weekends_differ() -> None:
    history = History(replace(SMALL, sessions=4000, users=20))
    starts = [start for start in history._plan_sessions() if start.profile]
    office = [
        from_micros(start.at).astimezone(BERLIN)
        for start in starts
        if start.person.realm is history.realms[0]
    ]
    hours = Counter(time.hour for time in office)
    assert min(hours[hour] for hour in range(9, 17)) > 10 * max(hours[hour] for hour in range(1, 5))
    days = Counter(time.weekday() for time in office)
    assert min(days[day] for day in range(5)) > 2 * max(days[5], days[6])
    users = Counter(start.person.name for start in starts)
    (_, most), *_, (_, fewest) = users.most_common()
    assert most > 3 * fewest
    middle = (history.begins_at + NOW) // 2
    assert sum(start.at > middle for start in starts) > 1.05 * len(starts) / 2


def test_a_history_has_what_a_dashboard_shows() -> None:
    messages, expected = play(replace(SMALL, sessions=800, users=20))
    text = b"\n".join(b" ".join(message[2:]) for message in messages)
    for word in (
        b"type=UDP",
        b"type=TCP",
        b"type=TLS/TCP",
        b"local=192.0.2.1:3478",
        b"local=198.51.100.1:3478",
        b"remote=[2001:db8:",
        b"remote=203.0.113.",
    ):
        assert word in text, word  # fmt: skip
    assert b"turn/realm/example.org/user/alice/" in text
    assert b":alice/allocation" in text
    assert expected.sessions_estimated > 5
    assert ("example.org", "") in expected.unattributed
    assert sum(expected.all_unattributed) > 0
    assert expected.published > expected.captured == len(messages)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"months": 0}, "months is 0, not 1 to 24"),
        ({"realms": ("a", "a")}, "realms names one twice"),
        ({"realms": ("",)}, "realm '' is empty"),
        ({"users": 1}, "users is 1, fewer than the realms"),
        ({"sessions": 0}, "sessions is 0, not above 0"),
    ],
)
def test_a_history_that_does_not_fit_together_is_refused(
    change: dict[str, object], problem: str
) -> None:
    with pytest.raises(UsageError, match=problem):
        replace(SMALL, **change)  # type: ignore[arg-type]


# -- the ledger, by records that are written down here

BORDER = to_micros(datetime(2026, 11, 1, tzinfo=UTC))
REALM = HistoryRealm(
    name="r",
    time_zone="UTC",
    is_rest=False,
    borders=(to_micros(datetime(2026, 10, 1, tzinfo=UTC)), BORDER),
    first_days=(date(2026, 10, 1), date(2026, 11, 1)),
    until=NOW,
)
ALICE = SimulatedUser(b"r", b"alice", b"alice")
OCTOBER, NOVEMBER = (LineKey("r", day, "alice") for day in REALM.first_days)


def counters(count: int) -> Counters:
    return (count, 100 * count, count, 90 * count, count, 90 * count, count, 100 * count)


def booked(
    *records: tuple[float, str, int], lost: tuple[float, float] | None = None
) -> HistoryExpected:
    """What is expected of one allocation; minutes after November began."""

    def at(minutes: float) -> int:
        return BORDER + round(minutes * MINUTE)

    outages = [(at(lost[0]), at(lost[1]))] if lost else []
    ledger = HistoryLedger([REALM], NOW, outages)
    ledger.add_session(
        REALM,
        ALICE,
        [
            Record(at(minutes), kind, counters(count) if count else ZERO_COUNTERS)
            for minutes, kind, count in records
        ],
        600_000_000,
    )
    return ledger.expected(len(records), len(outages))


def minutes_of(expected: HistoryExpected) -> Iterator[tuple[str, float]]:
    for name, lines in (("months", expected.months), ("statements", expected.statements)):
        for key, line in lines.items():
            yield f"{name} {key.period:%m}", line["session_microseconds"] / MINUTE


def test_a_session_over_a_border_is_split_and_billed_in_both_months() -> None:
    expected = booked(
        (-5, "new", 0), (-3, "traffic", 10), (4, "traffic", 5), (6, "deleted", 0),
        (6, "total_traffic", 15),
    )  # fmt: skip
    assert dict(minutes_of(expected)) == {"months 10": 5, "months 11": 6, "statements 10": 2}
    assert expected.months[OCTOBER]["sent_packets"] == 10
    assert expected.months[NOVEMBER]["sent_packets"] == 5
    assert expected.adjustments == {
        OCTOBER: dict.fromkeys(expected.adjustments[OCTOBER], 0)
        | {"session_microseconds": 3 * MINUTE}
    }


def test_usage_that_is_confirmed_after_the_closing_is_late() -> None:
    expected = booked(
        (-20, "new", 0), (-3, "traffic", 10), (4, "refreshed", 0), (6, "deleted", 0),
        (6, "total_traffic", 12), lost=(-25, -5),
    )  # fmt: skip
    assert not expected.statements
    assert expected.adjustments[OCTOBER]["received_bytes"] == 1000
    assert expected.months[NOVEMBER]["estimated_bytes"] == 2 * 190
    assert expected.sessions_estimated == 1


def test_what_nothing_confirms_is_nobodys() -> None:
    expected = booked((-3, "traffic", 10))
    assert not expected.months
    assert expected.unattributed == {("r", "alice"): counters(10)}


def test_interims_after_a_lost_refresh_wait_for_the_next_status() -> None:
    """It seemed to have expired when October was closed."""
    expected = booked(
        (-60, "new", 0), (-51, "refreshed", 0), (-42, "refreshed", 0), (-33, "refreshed", 0),
        (-10, "traffic", 7), (3, "refreshed", 0), (8, "deleted", 0), (8, "total_traffic", 7),
        lost=(-52, -12),
    )  # fmt: skip
    assert expected.statements[OCTOBER]["sessions_ended"] == 1
    assert expected.statements[OCTOBER]["sent_packets"] == 0
    assert expected.adjustments[OCTOBER]["sent_packets"] == 7
    assert expected.months[OCTOBER]["sessions_ended"] == 0
    assert expected.months[NOVEMBER]["sessions_ended"] == 1
