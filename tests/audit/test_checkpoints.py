"""One pass recomputes sessions as they stood at each checkpoint on its way."""

from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from functools import partial
from itertools import pairwise

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from accounting.audit import evidence_queries
from accounting.audit.checkpoints import Checkpoint, partition_checkpoints
from accounting.audit.evidence_queries import Cutoff, EvidenceScope
from accounting.audit.recompute import recompute_sessions
from accounting.db.engine import Engine
from accounting.domain.calendar import to_micros
from accounting.domain.realm_rules import RealmRules
from accounting.domain.session_fold import SessionState
from accounting.domain.session_hours import hours_of
from accounting.identities import realm_queries
from accounting.sessions.careful_fold import SetAside
from accounting.sources import source_queries
from accounting.sources.watermark_queries import Watermark
from tests.support.scenario_player import BEGIN, PLANS, STEPS, JobCall, ScenarioPlayer, Step

HOUR = 3600 * 1_000_000


def cutoff_at(connection: Connection, time: int) -> Cutoff:
    """What was settled of each source when its clock stood at that time."""
    watermarks = []
    for source in source_queries.all_sources(connection):
        position = connection.exec_driver_sql(
            "SELECT epoch, position FROM accounting.reports WHERE source_id = %s"
            " AND received_at < timestamptz 'epoch' + %s * interval '1 microsecond'"
            " ORDER BY epoch DESC, position DESC LIMIT 1",
            (source.source_id, time),
        ).one_or_none() or (0, 0)
        watermarks.append(
            Watermark(
                source_id=source.source_id,
                epoch=position[0],
                position=position[1],
                received_at=None,
                settled_until=time,
            )
        )
    return Cutoff(watermarks=tuple(watermarks))


def hours_within(
    sessions: Iterable[SessionState], rules: dict[int, RealmRules], checkpoint: Checkpoint
) -> Counter[tuple[object, ...]]:
    """The hours of confirmed sessions within the checkpoint's period."""
    return Counter(
        (*hour[:10], *hour.counters)
        for session in sessions
        if session.confirmed
        for hour in hours_of(session, rules[session.realm_id].calendar)
        if checkpoint.starts_at <= hour.starts_at < checkpoint.ends_at
    )


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS, PLANS, st.lists(st.integers(1, 60), min_size=2, max_size=6, unique=True))
def test_sessions_at_a_checkpoint_are_those_of_a_pass_that_ends_there(
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
        checkpoints = [
            Checkpoint(
                realm_id=realm_id,
                starts_at=starts_at,
                ends_at=ends_at,
                cutoff=cutoff_at(connection, ends_at + HOUR),
            )
            for realm_id, rule in rules.items()
            # Periods begin with an hour of their realm.
            for starts_at, ends_at in pairwise(rule.calendar.hour(at).starts_at for at in times)
        ]
        shared, separate = partition_checkpoints(connection, checkpoints)
        assert (len(shared), separate) == (len(checkpoints), [])
        scope = EvidenceScope(
            cutoff=evidence_queries.settled_cutoff(connection), realm_ids=list(rules)
        )
        set_aside: list[SetAside] = []
        recompute = partial(recompute_sessions, connection, rules, on_set_aside=set_aside.append)
        recomputed = list(recompute(scope, shared))
        assert [row for row in recomputed if row.checkpoint is None] == list(recompute(scope))
        for checkpoint in checkpoints:
            scope = EvidenceScope(cutoff=checkpoint.cutoff, realm_ids=[checkpoint.realm_id])
            expected = [row.session for row in recompute(scope)]
            actual = [row.session for row in recomputed if row.checkpoint is checkpoint]
            assert hours_within(actual, rules, checkpoint) == hours_within(
                expected, rules, checkpoint
            )
