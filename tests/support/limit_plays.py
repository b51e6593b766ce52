"""Random changes of users' hours, and limits on them, to prove that order does not matter."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from hypothesis import strategies as st

from tests.support.books import Books

ZONES: Final = {"example.org": "America/New_York", "example.net": "UTC"}
USERS: Final = ("alice", "bob", "carol")
FIRST_HOUR: Final = datetime(2026, 11, 14, 20, tzinfo=UTC)
"""Before midnight of the anchor day in both zones."""
SET_AT: Final = FIRST_HOUR + timedelta(hours=2)


class Change(NamedTuple):
    """A change of a user's hour."""

    realm: int
    user: int
    hour: int
    counts: tuple[int, ...]


def changes_of(hours: Sequence[int]) -> st.SearchStrategy[list[Change]]:
    return st.lists(
        st.builds(
            Change,
            st.sampled_from([0, 0, 0, 1]),
            st.sampled_from([0, 0, 1, 2]),
            st.sampled_from(hours),
            st.tuples(
                st.sampled_from([0, 1, 30, 50, 99, 100, -30]),
                st.sampled_from([0, 1, 20, 100, -20]),
                st.sampled_from([0, 0, 1, 2, -1]),
                st.sampled_from([0, 1, 500_000, 3_000_000, -500_000]),
            ),
        ),
        min_size=3,
        max_size=20,
    )


CHANGES: Final = st.lists(
    st.sampled_from([0, 1, 3, 4, 8, 9, 30, 400]), min_size=1, max_size=4
).flatmap(changes_of)
LIMIT: Final = st.builds(
    lambda per, whom, kind, amount, warnings: (per, whom, *kind, amount, warnings),
    st.sampled_from(["hour", "day", "month", "period"]),
    st.sampled_from(["every_user", "every_user", "user", "realm"]),
    st.sampled_from(
        [
            ("bytes", "both"),
            ("bytes", "received"),
            ("bytes", "sent"),
            ("sessions", "both"),
            ("session_seconds", "both"),
        ]
    ),
    st.sampled_from([1, 3, 100, 150, 300]),
    st.sampled_from([[], [33], [50, 80, 120]]),
)
STEPS: Final = st.lists(st.one_of(LIMIT, st.integers(0, 5)), max_size=3)
"""Limits that are set or changed, and which of those that are set is removed."""

_STATE: Final = (
    "limit_id", "realm", "whom", "user_id", "user_key", "measure", "direction", "per", "amount",
    "threshold", "starts_at", "ends_at", "time_zone", "usage", "cleared_at IS NULL AS is_reached",
    "times_reached",
)  # fmt: skip
LIMIT_EVENTS: Final = (
    "SELECT event_id, type, payload FROM accounting.feed_outbox WHERE type LIKE 'limit.%%'"
    " ORDER BY outbox_id"
)


def limit_states(books: Books) -> list[dict[str, Any]]:
    """What is comparable of the states of limits: without times."""
    return books.rows("limit_states", *_STATE, order="limit_id, user_key, starts_at, threshold")
