"""The checks of the proof of delivery find each kind of violation."""

from collections.abc import Sequence

import pytest

from tests.support.webhook_checks import PAUSE, Fault, describe_violations
from tests.support.webhook_receiver import RecordedRequest

SECOND = 1_000_000_000
EXPECTED = ["a", "b", "c", "d"]


def request(
    number: str, seconds: float, ids: str, *, status: int | None = 200, until: float | None = None
) -> RecordedRequest:
    """A request for events with these letters, which takes a tenth of a second."""
    return RecordedRequest(
        number=number,
        path="/",
        headers={},
        body=f'[{", ".join(f"""{{"id": "{each}"}}""" for each in ids)}]',
        is_verified=True,
        received_at=int(seconds * SECOND),
        ended_at=int((seconds + 0.1 if until is None else until) * SECOND),
        status=status,
    )


def fault(began: float, ended: float, kind: str = "kill") -> Fault:
    return Fault(kind=kind, began_at=int(began * SECOND), ended_at=int(ended * SECOND))


def test_a_sender_that_stood_still_may_send_one_request_late() -> None:
    late = [*IN_ORDER, request("1'", 40, "a")]
    pause = fault(9, 39, PAUSE)
    assert describe_violations(EXPECTED, late, [pause]) == []
    assert describe_violations(EXPECTED, late, [fault(9, 39)]) == ["1': event 0 again after 3"]
    early = [fault(9, 31, PAUSE)]
    assert describe_violations(EXPECTED, late, early) == ["1': event 0 again after 3"]
    twice = [*late, request("2'", 40.5, "bc")]
    assert describe_violations(EXPECTED, twice, [pause]) == ["2': event 1 again after 3"]


IN_ORDER = [request("1", 10, "a"), request("2", 20, "bc"), request("3", 30, "d")]


@pytest.mark.parametrize(
    "requests",
    [
        IN_ORDER,
        [request("0", 5, "ab", status=500), *IN_ORDER],
        [request("0", 5, "a", status=None), *IN_ORDER],
        [request("0", 5, "abcd")],
    ],
)
def test_correct_deliveries_have_no_violation(requests: Sequence[RecordedRequest]) -> None:
    assert describe_violations(EXPECTED, requests, []) == []


def test_a_fault_between_explains_one_repeat() -> None:
    repeated = [*IN_ORDER[:2], request("2'", 25, "bc"), IN_ORDER[2]]
    assert describe_violations(EXPECTED, repeated, [fault(20.05, 20.06)]) == []
    expected = ["2': event 1 again after 2", "2': event 2 again after 2"]
    assert describe_violations(EXPECTED, repeated, []) == expected
    assert describe_violations(EXPECTED, repeated, [fault(15, 16)]) == expected
    assert describe_violations(EXPECTED, repeated, [fault(26, 27)]) == expected
    twice = [*repeated[:3], request("2''", 27, "bc"), IN_ORDER[2]]
    assert describe_violations(EXPECTED, twice, [fault(20.05, 20.06)]) == [
        "2'': event 1 again after 2'",
        "2'': event 2 again after 2'",
    ]


@pytest.mark.parametrize(
    ("requests", "violation"),
    [
        (IN_ORDER[:2], "event 3 was not delivered"),
        ([*IN_ORDER[:2], request("3", 30, "d", status=500)], "event 3 was not delivered"),
        ([request("1", 10, "b"), request("2", 20, "acd")], "1: event 1 before 0"),
        ([request("1", 10, "a", status=500), request("2", 20, "bcd")], "2: event 1 before 0"),
        ([request("1", 10, "acbd")], "1: events [0, 2, 1, 3] do not follow one another"),
        ([*IN_ORDER, request("4", 40, "b")], "4: event 1 again after 3"),
        ([request("1", 10, "ax")], "1: not asked for: ['x']"),
        (
            [request("1", 10, "ab", status=500, until=21), request("2", 20, "abcd")],
            "2: while 1 was under way",
        ),
    ],
)
def test_each_violation_is_found(requests: Sequence[RecordedRequest], violation: str) -> None:
    assert violation in describe_violations(EXPECTED, requests, [])


def test_without_order_only_repeats_and_missing_events_count() -> None:
    requests = [request("1", 10, "d"), request("2", 10.05, "b"), request("3", 20, "ac")]
    assert describe_violations(EXPECTED, requests, [], is_ordered=False) == []
    assert describe_violations(EXPECTED, requests[:2] * 2, [], is_ordered=False) == [
        "1: event 3 again after 1",
        "2: event 1 again after 2",
        "event 0 was not delivered",
        "event 2 was not delivered",
    ]
