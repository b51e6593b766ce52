"""Verify finds no difference in books that the service made, from any evidence in any order."""

import pytest
from hypothesis import HealthCheck, given, settings

from accounting.audit.verify import VerifyResult, verify
from accounting.db.engine import Engine
from accounting.simulator import play
from tests.support.books import Books
from tests.support.coturn_messages import FakeAllocation
from tests.support.scenario_player import PLANS, STEPS, JobCall, ScenarioPlayer, Step
from tests.support.simulated_fleet import hard_case_scenarios, receive_commands


@pytest.mark.parametrize("examples", [2, pytest.param(10, marks=pytest.mark.long)])
def test_any_evidence_in_any_order_of_jobs_verifies(
    scenario_player: ScenarioPlayer, shared_engine: Engine, examples: int
) -> None:
    @settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow])
    @given(STEPS, PLANS)
    def check(steps: list[Step], plan: list[JobCall]) -> None:
        scenario_player.play(steps, plan)
        assert list(verify(shared_engine)) == []

    check()


def test_every_hard_case_of_the_simulator_verifies(books: Books) -> None:
    for name, scenario in hard_case_scenarios("4.17"):
        commands, _ = play(scenario)
        receive_commands(books, name, commands)
    books.run_jobs()
    result = VerifyResult()
    assert list(verify(books.engine, result=result)) == []
    assert result.sessions > 100


def test_verify_first_settles_and_rolls_up_what_is_loaded(books: Books) -> None:
    FakeAllocation(books).new(0)
    FakeAllocation(books).interim(10, 1, 100, 2, 200)
    books.advance_clock(5000)
    books.load()
    assert list(verify(books.engine)) == []
    assert len(books.rows("user_usage_hourly")) == 1
