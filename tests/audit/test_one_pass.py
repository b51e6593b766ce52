"""Closed periods are proved in one pass: at each stop on the way lives are as they were there."""

from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from itertools import pairwise

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from accounting.audit import evidence_queries
from accounting.audit.evidence_queries import Cutoff
from accounting.audit.recompute import Stop, in_one_pass, replay, replay_by
from accounting.db.engine import Engine
from accounting.domain.calendar import to_micros
from accounting.domain.realm_rules import RealmRules
from accounting.domain.session_fold import SessionState
from accounting.domain.session_hours import hours_of
from accounting.identities import realm_queries
from accounting.sources import source_queries
from accounting.sources.watermark_queries import Watermark
from tests.support.scenario_player import BEGIN, PLANS, STEPS, JobCall, ScenarioPlayer, Step

HOUR = 3600 * 1_000_000


def cutoff_at(connection: Connection, time: int) -> Cutoff:
    """What was settled of each source when its clock stood at that time."""
    marks = []
    for source in source_queries.all_sources(connection):
        reports = connection.exec_driver_sql(
            "SELECT epoch, position FROM accounting.reports WHERE source_id = %s"
            " AND received_at < timestamptz 'epoch' + %s * interval '1 microsecond'"
            " ORDER BY epoch DESC, position DESC LIMIT 1",
            (source.source_id, time),
        ).one_or_none() or (0, 0)
        marks.append(
            Watermark(
                source_id=source.source_id,
                epoch=reports[0],
                position=reports[1],
                received_at=None,
                settled_until=time,
            )
        )
    return Cutoff(watermarks=tuple(marks))


def hours(
    sessions: Iterable[SessionState], rules: dict[int, RealmRules], stop: Stop
) -> Counter[tuple[object, ...]]:
    return Counter(
        (*row[:10], *row.counters)
        for session in sessions
        if session.confirmed
        for row in hours_of(session, rules[session.realm_id].calendar)
        if stop.starts_at <= row.starts_at < stop.ends_at
    )


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS, PLANS, st.lists(st.integers(1, 60), min_size=2, max_size=6, unique=True))
def test_each_stop_on_the_way_is_told_as_if_it_were_the_end(
    scenario_player: ScenarioPlayer,
    shared_engine: Engine,
    steps: list[Step],
    plan: list[JobCall],
    borders: list[int],
) -> None:
    scenario_player.play(steps, plan)
    begin = to_micros(BEGIN - timedelta(minutes=50))
    times = [begin + hours * HOUR for hours in (0, *sorted(borders))]
    with shared_engine.connect() as connection:
        rules = realm_queries.all_rules(connection)
        stops = [
            Stop(
                realm_id=realm_id,
                starts_at=starts_at,
                ends_at=ends_at,
                cutoff=cutoff_at(connection, ends_at + HOUR),
            )
            for realm_id, rule in rules.items()
            # Periods begin with an hour of their realm.
            for starts_at, ends_at in pairwise(rule.calendar.hour(at).starts_at for at in times)
        ]
        on_the_way, others = in_one_pass(connection, stops)
        assert (len(on_the_way), others) == (len(stops), [])
        now = evidence_queries.settled_cutoff(connection)
        told = list(replay_by(connection, rules, now, list(rules), on_the_way))
        assert [(key, session) for key, session, stop in told if stop is None] == list(
            replay(connection, rules, now, list(rules))
        )
        for stop in stops:
            alone = [
                session for _, session in replay(connection, rules, stop.cutoff, [stop.realm_id])
            ]
            passed = [session for _, session, of in told if of is stop]
            assert hours(passed, rules, stop) == hours(alone, rules, stop)
