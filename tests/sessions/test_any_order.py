"""Any batching of the same messages, and any order of the jobs, gives the same books."""

from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.reference_usage import assert_usage_follows_from_sessions_and_reports
from tests.support.scenario_player import (
    PLANS,
    STEPS,
    JobCall,
    ScenarioPlayer,
    Step,
    assert_conserved,
)

EXAMPLES: Final = [2, pytest.param(8, marks=pytest.mark.long)]


@pytest.mark.parametrize("examples", EXAMPLES)
def test_any_batching_repetition_order_of_jobs_and_memory_gives_the_same_books(
    scenario_player: ScenarioPlayer, examples: int
) -> None:
    @settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow])
    @given(STEPS, PLANS, st.sampled_from([None, 0, 2, 10**6]))
    def check(steps: list[Step], plan: list[JobCall], memory_limit: int) -> None:
        shown = scenario_player.play(steps)
        assert scenario_player.play(steps, plan, memory_limit=memory_limit) == shown
        assert_conserved(shown)

    check()


@pytest.mark.parametrize("examples", EXAMPLES)
def test_usage_equals_a_naive_sum_over_the_sessions_and_the_reports(
    scenario_player: ScenarioPlayer, examples: int
) -> None:
    @settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow])
    @given(STEPS, PLANS)
    def check(steps: list[Step], plan: list[JobCall]) -> None:
        shown = scenario_player.play(steps, plan)
        assert_conserved(shown)
        assert_usage_follows_from_sessions_and_reports(shown)

    check()
