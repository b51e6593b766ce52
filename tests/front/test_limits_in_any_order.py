"""The states and events of a front's limits are those of one database with the same usage."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from itertools import pairwise
from operator import itemgetter
from typing import Any, Final
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounting.domain.identity import user_key
from accounting.front.limits.check_limits import check_front_limits
from accounting.front.limits.evaluate_limits import USAGE_OF_CELLS, evaluate_limits
from accounting.usage.limits.limit_rules import remove_limit, set_limit
from accounting.usage.rollup import rollup
from tests.support.books import Books
from tests.support.fronts import CELLS, Front, open_front
from tests.support.limit_plays import (
    CHANGES,
    FIRST_HOUR,
    LIMIT,
    LIMIT_EVENTS,
    SET_AT,
    STEPS,
    USERS,
    ZONES,
    Change,
    limit_states,
)
from tests.support.realm_rules import set_realm_rule
from tests.support.servers import PostgresServer
from tests.support.truncate import empty_database


@pytest.fixture(scope="module")
def front(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Front]:
    with open_front(postgres_server, tmp_path_factory.mktemp("limits")) as front:
        yield front


class FrontPlayer:
    """A front, its cells and the whole with the realms and users of the changes."""

    def __init__(self, front: Front) -> None:
        self.front = front
        self.all = (front.books, *front.cells.values(), front.whole)
        for books in self.all:
            empty_database(books.server, books.name)
            books.set_database_clock(SET_AT)
            for realm, zone in ZONES.items():
                set_realm_rule(books, realm, time_zone=zone, anchor_day=15)
            for realm in ZONES:
                self._insert_user(books, realm, USERS[0])

    def _insert_user(self, books: Books, realm: str, user: str) -> None:
        if books is not self.front.books:
            books.query(
                "INSERT INTO accounting.users (user_key, realm_id, user_id)"
                " SELECT %s, realm_id, %s FROM accounting.realms WHERE realm = %s RETURNING 1",
                [self.key(realm, user), user, realm],
            )

    def key(self, realm: str, user: str) -> UUID:
        [row] = self.front.whole.query("SELECT identity_key FROM accounting.installation")
        return UUID(bytes=user_key(bytes(row["identity_key"]), realm.encode(), user.encode()))

    def change_limits(self, steps: Iterable[int | Sequence[Any]]) -> None:
        """On the front and in the whole; both say the same of it."""
        for step in steps:
            if isinstance(step, int):
                limits = self.front.whole.query("SELECT limit_id FROM accounting.limits ORDER BY 1")
                if limits:
                    number = limits[step % len(limits)]["limit_id"]
                    cleared = remove_limit(self.front.books.engine, number, usage=USAGE_OF_CELLS)
                    assert cleared == remove_limit(self.front.whole.engine, number)
                continue
            per, whom, measure, direction, amount, warnings = step
            for realm in ZONES:
                options: dict[str, Any] = {
                    "user": USERS[0] if whom == "user" else None,
                    "every_user": whom == "every_user",
                    "measure": measure,
                    "direction": direction,
                    "per": per,
                    "amount": amount,
                    "warnings": warnings,
                }
                done = set_limit(self.front.books.engine, realm, **options, usage=USAGE_OF_CELLS)
                assert done == set_limit(self.front.whole.engine, realm, **options)

    def add(self, changes: Iterable[tuple[Change, str]]) -> None:
        """Changes of usage in cells, and in the whole; rolled up there."""
        changed = {self.front.whole.name: self.front.whole}
        for change, cell in changes:
            realm = list(ZONES)[change.realm]
            for books in (self.front.cells[cell], self.front.whole):
                changed[books.name] = books
                books.query(
                    "INSERT INTO accounting.usage_deltas (realm_id, user_key, starts_at,"
                    " received_bytes, sent_bytes, sessions_started, session_microseconds)"
                    " SELECT realm_id, %s, %s, %s, %s, %s, %s FROM accounting.realms"
                    " WHERE realm = %s RETURNING 1",
                    [
                        self.key(realm, USERS[change.user]),
                        FIRST_HOUR + timedelta(hours=change.hour),
                        *change.counts,
                        realm,
                    ],
                )
        for books in changed.values():
            rollup(books.engine)

    def reached(self, books: Books) -> set[tuple[Any, ...]]:
        return {
            (row["limit_id"], row["user_key"], row["starts_at"], row["threshold"])
            for row in limit_states(books)
            if row["is_reached"]
        }


Play = tuple[
    list[Change],
    list[str],
    list[Sequence[Any]],
    list[tuple[int, list[int | Sequence[Any]]]],
    bool,
]
PLAYS: Final = st.tuples(
    CHANGES,
    st.lists(st.sampled_from(CELLS), min_size=20, max_size=20),
    st.lists(LIMIT, min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 20), STEPS), max_size=6),
    st.booleans(),
)
"""Changes, their cells, limits, where batches end and how limits change then, and whether the front
looks after each batch."""


@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(PLAYS)
def test_any_usage_over_cells_reaches_what_it_reaches_in_one_database(
    front: Front, played: Play
) -> None:
    play(front, *played)


@pytest.mark.long
@pytest.mark.timeout(900)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(PLAYS)
def test_any_usage_over_cells_in_many_plays(front: Front, played: Play) -> None:
    play(front, *played)


def play(
    front: Front,
    changes: list[Change],
    cells: list[str],
    limits: list[Sequence[Any]],
    cuts: list[tuple[int, list[int | Sequence[Any]]]],
    always_looks: bool,
) -> None:
    player = FrontPlayer(front)
    player.change_limits(limits)
    placed = list(zip(changes, cells, strict=False))
    cuts = sorted(cuts, key=itemgetter(0))
    borders = [0, *(border for border, _ in cuts), len(placed)]
    steps = [*(limits_then for _, limits_then in cuts), []]
    for (begin, end), limits_then in zip(pairwise(borders), steps, strict=True):
        player.add(placed[begin:end])
        if always_looks:
            evaluate_limits(front.books.engine)
            assert limit_states(front.books) == limit_states(front.whole)
            assert front.books.query(LIMIT_EVENTS) == front.whole.query(LIMIT_EVENTS)
            player.change_limits(limits_then)
    evaluate_limits(front.books.engine)
    assert player.reached(front.books) == player.reached(front.whole)
    assert list(check_front_limits(front.books.engine)) == []
