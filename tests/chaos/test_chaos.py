"""Short runs of the fault suite; ``make long`` and ``make chaos`` play longer ones.

The seeds are fixed, so that a run that fails can be played again.
"""

from pathlib import Path

import pytest

from tests.chaos.figures import Figures
from tests.chaos.runner import run


def assert_clean(figures: Figures, faults: int) -> None:
    assert figures.faults.total() == faults
    assert figures.tally.loaded > 0
    assert (figures.tally.lost, figures.tally.doubled, figures.tally.errors) == (0, 0, [])


def test_a_few_faults_lose_and_double_nothing(tmp_path: Path) -> None:
    assert_clean(run(4, 21, servers=["valkey"], directory=tmp_path), 4)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_faults_lose_and_double_nothing_with_valkey(tmp_path: Path) -> None:
    assert_clean(run(13, 21, servers=["valkey"], directory=tmp_path), 13)


@pytest.mark.long
@pytest.mark.needs_redis
@pytest.mark.timeout(300)
def test_faults_lose_and_double_nothing_with_debians_redis(tmp_path: Path) -> None:
    assert_clean(run(7, 8, servers=["redis"], directory=tmp_path), 7)
