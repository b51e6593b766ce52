"""Any order and batching of changes reaches the thresholds that the final hours reach."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from operator import itemgetter
from typing import Any, Final
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounting.domain.calendar import BucketLength, to_micros
from accounting.domain.identity import user_key
from accounting.domain.periods import periods
from accounting.domain.realm_rules import RealmRules
from accounting.errors import ConnectionLost
from accounting.identities.realm_queries import all_rules
from accounting.usage.limits.limit_rules import remove_limit, set_limit
from accounting.usage.rollup import rollup
from tests.support.books import Books
from tests.support.crash_injection import (
    BACKEND_IS_ALIVE,
    CrashInjector,
    SimulatedCrash,
    crashing_engine,
)
from tests.support.limit_plays import (
    CHANGES,
    FIRST_HOUR,
    LIMIT,
    SET_AT,
    STEPS,
    USERS,
    ZONES,
    Change,
)
from tests.support.realm_rules import set_realm_rule
from tests.support.servers import wait_until
from tests.support.truncate import empty_database

COUNTERS: Final = ("received_bytes", "sent_bytes", "sessions_started", "session_microseconds")


class LimitPlayer:
    """Books with the realms and users of the changes."""

    def __init__(self, books: Books) -> None:
        self.books = books
        empty_database(books.server, books.name)
        books.set_database_clock(SET_AT)
        for realm, zone in ZONES.items():
            set_realm_rule(books, realm, time_zone=zone, anchor_day=15)
        with psycopg.connect(books.url()) as connection:
            self.realm_ids = [
                int(row[0])
                for realm in ZONES
                for row in connection.execute(
                    "SELECT realm_id FROM accounting.realms WHERE realm = %s", [realm]
                )
            ]
            [identity_key] = connection.execute(
                "SELECT identity_key FROM accounting.installation"
            ).fetchone() or [b""]
            self.keys = [
                [
                    UUID(bytes=user_key(bytes(identity_key), realm.encode(), user.encode()))
                    for user in USERS
                ]
                for realm in ZONES
            ]
            for realm_id, [first, *_] in zip(self.realm_ids, self.keys, strict=True):
                connection.execute(
                    "INSERT INTO accounting.users (user_key, realm_id, user_id)"
                    " VALUES (%s, %s, %s)",
                    [first, realm_id, USERS[0]],
                )

    def change_limits(self, steps: Iterable[int | Sequence[Any]]) -> None:
        for step in steps:
            if isinstance(step, int):
                limits = self.books.query("SELECT limit_id FROM accounting.limits ORDER BY 1")
                if limits:
                    remove_limit(self.books.engine, limits[step % len(limits)]["limit_id"])
                continue
            per, whom, measure, direction, amount, warnings = step
            for realm in ZONES:
                set_limit(
                    self.books.engine,
                    realm,
                    user=USERS[0] if whom == "user" else None,
                    every_user=whom == "every_user",
                    measure=measure,
                    direction=direction,
                    per=per,
                    amount=amount,
                    warnings=warnings,
                )

    def user_key(self, realm: int, user: int) -> UUID:
        return self.keys[realm][user]

    def add(self, changes: Iterable[Change]) -> None:
        with psycopg.connect(self.books.url()) as connection:
            for change in changes:
                connection.execute(
                    "INSERT INTO accounting.usage_deltas (realm_id, user_key, starts_at,"
                    " received_bytes, sent_bytes, sessions_started, session_microseconds)"
                    " VALUES (%s, %s, %s, %s, %s, %s, %s)",
                    [
                        self.realm_ids[change.realm],
                        self.user_key(change.realm, change.user),
                        FIRST_HOUR + timedelta(hours=change.hour),
                        *change.counts,
                    ],
                )

    def reached(self) -> set[tuple[Any, ...]]:
        """(limit, user, start, threshold) of all that is reached now."""
        return {
            (row["limit_id"], row["user_key"], row["starts_at"], row["threshold"])
            for row in self.books.query(
                "SELECT * FROM accounting.limit_states WHERE cleared_at IS NULL"
            )
        }

    def expected(self) -> set[tuple[Any, ...]]:
        """The same from one pass over the hours of users."""
        with self.books.engine.begin() as connection:
            rules = all_rules(connection)
        limits = self.books.query("SELECT * FROM accounting.limits")
        sums: dict[tuple[Any, ...], list[int]] = {}
        for hour in self.books.query("SELECT * FROM accounting.user_usage_hourly"):
            for limit in limits:
                if limit["realm_id"] != hour["realm_id"]:
                    continue
                if limit["user_key"] not in (None, hour["user_key"]):
                    continue
                start, end = span(rules[hour["realm_id"]], limit["per"], hour["starts_at"])
                if end > to_micros(limit["set_at"]):
                    user = UUID(int=0) if limit["whom"] == "realm" else hour["user_key"]
                    total = sums.setdefault((limit["limit_id"], user, start), [0] * 4)
                    for place, name in enumerate(COUNTERS):
                        total[place] += int(hour[name])
        by_id = {limit["limit_id"]: limit for limit in limits}
        return {
            (limit_id, user, datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=start), of)
            for (limit_id, user, start), total in sums.items()
            for of in by_id[limit_id]["thresholds"]
            if usage(by_id[limit_id], total) * 100 >= unit(by_id[limit_id]) * of
        }

    def assert_right(self) -> None:
        """What is reached is right, and each event was enqueued once and in turn."""
        assert self.reached() == self.expected()
        rows = self.books.query(
            "SELECT event_id, type, payload FROM accounting.feed_outbox"
            " WHERE type <> 'usage.counted' ORDER BY outbox_id"
        )
        assert len({row["event_id"] for row in rows}) == len(rows)
        types: dict[tuple[Any, ...], list[str]] = {}
        for row in rows:
            said = row["payload"]
            key = (said["limit_id"], said["user_key"], said["starts_at"], said["threshold"])
            types.setdefault(key, []).append(row["type"])
        for of_one in types.values():
            assert of_one == (["limit.reached", "limit.cleared"] * len(of_one))[: len(of_one)]
        assert sum(len(of_one) % 2 for of_one in types.values()) == len(self.reached())


def span(rules: RealmRules, per: str, moment: datetime) -> tuple[int, int]:
    time = to_micros(moment)
    if per == "period":
        [period] = list(periods(rules, time, time))
        return period.starts_at, period.ends_at
    bucket = rules.calendar.bucket(BucketLength(per), time)
    return bucket.starts_at, bucket.ends_at


def usage(limit: Mapping[str, Any], total: Sequence[int]) -> int:
    received, sent, sessions, micros = total
    match limit["measure"], limit["direction"]:
        case "bytes", "received":
            return received
        case "bytes", "sent":
            return sent
        case "bytes", _:
            return received + sent
        case "sessions", _:
            return sessions
        case _:
            return micros


def unit(limit: Mapping[str, Any]) -> int:
    amount = int(limit["amount"])
    return amount * 1_000_000 if limit["measure"] == "session_seconds" else amount


Play = tuple[
    list[Change],
    list[Sequence[Any]],
    list[tuple[int, list[int | Sequence[Any]]]],
    int,
]
PLAYS: Final = st.tuples(
    CHANGES,
    st.lists(LIMIT, min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 20), STEPS), max_size=10),
    st.integers(0, 60),
)
"""Changes, limits, and when a roll-up is killed. There is one before some of the changes; after it,
limits are set, changed and removed."""


@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@given(PLAYS)
def test_any_batching_and_any_kill_reaches_what_the_final_hours_reach(
    shared_books: Books, played: Play
) -> None:
    play(shared_books, *played)


@pytest.mark.long
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(PLAYS)
def test_any_batching_and_any_kill_in_many_plays(shared_books: Books, played: Play) -> None:
    play(shared_books, *played)


def play(
    shared_books: Books,
    changes: list[Change],
    limits: list[Sequence[Any]],
    cuts: list[tuple[int, list[int | Sequence[Any]]]],
    moment: int,
) -> None:
    """Roll up between some of the changes; one of the roll-ups is killed at some statement."""
    player = LimitPlayer(shared_books)
    player.change_limits(limits)
    injector = CrashInjector()
    cuts = sorted(cuts, key=itemgetter(0))
    borders = [0, *(border for border, _ in cuts), len(changes)]
    steps = [*(limits_then for _, limits_then in cuts), []]
    with crashing_engine(shared_books, injector) as engine:
        injector.arm(moment)
        for (begin, end), limits_then in zip(pairwise(borders), steps, strict=True):
            player.add(changes[begin:end])
            try:
                rollup(engine)
            except (SimulatedCrash, ConnectionLost):
                wait_until(
                    lambda: not shared_books.query(BACKEND_IS_ALIVE, [injector.backend_pids])
                )
                injector.arm(0)
                rollup(shared_books.engine)
            player.assert_right()
            player.change_limits(limits_then)
            player.assert_right()
