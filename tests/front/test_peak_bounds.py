"""Bounds of a peak over cells, from slices as (by how many it grows, the most above its start)."""

from accounting.front.peaks.peak_bounds import Candidate, peak_bounds

CARRIED = -1


def test_a_slice_in_which_one_cell_changes_is_known() -> None:
    """Two sessions that start and end in it, beside three that were open at the start."""
    assert peak_bounds([{CARRIED: (3, 3)}, {0: (0, 2)}]) == (5, [])


def test_a_slice_in_which_several_change_may_have_as_many_as_all_had() -> None:
    assert peak_bounds([{0: (0, 2)}, {0: (1, 1)}]) == (1, [Candidate(3, 0, 0)])


def test_one_session_more_than_is_known_is_enough() -> None:
    assert peak_bounds([{0: (1, 1)}, {0: (0, 1)}]) == (1, [Candidate(2, 0, 0)])


def test_a_slice_that_can_t_have_more_is_not_counted() -> None:
    """Also if it comes before the one that has more."""
    cells = [{0: (0, 1), 2: (4, 4), 4: (-4, 0)}, {0: (1, 1), 4: (0, 0), 6: (0, 1)}]
    assert peak_bounds(cells) == (5, [])


def test_the_highest_bound_comes_first() -> None:
    cells = [{0: (0, 2), 2: (0, 3)}, {0: (0, 2), 2: (0, 3)}]
    assert peak_bounds(cells) == (0, [Candidate(6, 2, 0), Candidate(4, 0, 0)])
