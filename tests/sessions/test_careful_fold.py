"""A careful fold restores its sessions when a report raises, also when its classes are compiled."""

import copy

from accounting.domain.calendar import TIME_MIN
from accounting.domain.coturn_messages import ReportKind
from accounting.domain.realm_rules import RealmRule, RealmRules
from accounting.domain.session_fold import SECOND, AllocationKey
from accounting.sessions.careful_fold import CarefulFold, SetAside
from accounting.sessions.session_changes import pack_changes

HOUR = 3600 * SECOND


def test_a_report_that_raises_changes_no_session_but_marks_it_as_disputed() -> None:
    # The unknown time zone raises for reports from its hour on.
    rules = RealmRules(
        [
            RealmRule(holds_from=TIME_MIN, grace_seconds=86_400),
            RealmRule(holds_from=10 * HOUR, grace_seconds=86_400, time_zone="No/Such"),
        ]
    )
    set_aside: list[SetAside] = []
    fold = CarefulFold(AllocationKey(1, 0, b"username", 7), 1, rules, (), set_aside.append)
    fold.apply_status(1, 1, 9 * HOUR, ReportKind.NEW, 3600, "UDP", "192.0.2.1:3478", None)
    fold.apply_interim(1, 2, 9 * HOUR + 1, False, (1, 2, 3, 4))
    assert not set_aside
    pack_changes([fold], {1: rules})
    session = fold.active
    assert session is not None
    assert session.prior is not None
    before = copy.deepcopy(session)
    fold.apply_interim(1, 3, 10 * HOUR + 1, False, (10, 20, 30, 40))
    assert [(report.position, report.reason.partition(" ")[0]) for report in set_aside] == [
        (3, "ValueError")
    ]
    assert fold.active is session
    before.disputed = True
    assert session == before
    assert session.usage[:4] == [1, 2, 3, 4]
