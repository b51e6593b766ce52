"""The check of a front after a round: it shows what its cell has, and has billed it.

The front's own scheduler forwards the feed. The jobs that run once a minute, this runs itself.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from accounting.billing.adjust import adjust
from accounting.billing.close_period import close_periods
from accounting.db.engine import Engine, open_engine
from accounting.domain.counters import COUNTERS
from accounting.errors import LockHeld
from accounting.feed.number_feed import number_feed
from accounting.front.billing.copy_billing import copy_billing
from tests.chaos.deployment import PACE, POLL_SECONDS, Deployment
from tests.chaos.front import Front

CATCH_UP_SECONDS: Final = 90.0
VIEWS: Final = (
    "sessions",
    "user_usage_hourly",
    "user_usage_daily",
    "user_usage_monthly",
    "realm_usage_hourly",
    "realm_usage_daily",
    "realm_usage_monthly",
    "unattributed_usage",
    "capture_gaps",
)
"""The views of which each row is the same in the front and in the cell."""
OWN: Final = ("gap_id",)
"""Columns in which they differ."""
DIGEST: Final = """
SELECT count(*) AS rows, md5(string_agg(t.row, E'\\n' ORDER BY t.row COLLATE "C")) AS digest
FROM (SELECT (to_jsonb(v) - %s::text[])::text AS row FROM reporting.{} v) t
"""
ROWS: Final = "SELECT (to_jsonb(v) - %s::text[])::text AS row FROM reporting.{} v"
FEED: Final = """
SELECT seq, event_id, concat_ws(' ', type, realm, payload - 'cell') AS event FROM reporting.feed
WHERE seq > %s AND type NOT IN ('period.closed', 'adjustment.posted') ORDER BY seq
"""
IDS_IN_FRONT: Final = """
SELECT e.event_id::text AS of_cell,
    accounting.event_id('event of a cell', n.database_id || ' ' || e.event_id) AS of_front
FROM accounting.cells n, unnest(%s::text[]) e (event_id)
"""
KNOWN: Final = "SELECT event_id FROM reporting.feed WHERE seq <= %s AND event_id = ANY (%s)"
CELL_POSITION: Final = """
SELECT coalesce((SELECT max(seq) FROM accounting.feed), 0) AS seq,
    (SELECT count(*) FROM accounting.feed_outbox) AS waiting
"""
FRONT_POSITION: Final = """
SELECT coalesce((SELECT seq FROM accounting.feed_positions ORDER BY number DESC LIMIT 1), 0) AS seq,
    (SELECT count(*) FROM accounting.feed_outbox) AS waiting, feed_error AS error
FROM accounting.cells
"""
CLOSED: Final = (
    "SELECT realm, period, starts_at, ends_at FROM reporting.periods WHERE closed_at IS NOT NULL"
)
BILLED: Final = """
SELECT user_id, {sums} FROM (
    SELECT user_id, {counters} FROM reporting.statements WHERE realm = %s AND period = %s
    UNION ALL
    SELECT user_id, {counters} FROM reporting.adjustments WHERE realm = %s AND period = %s
) b GROUP BY user_id
"""
USED: Final = """
SELECT user_id, {sums} FROM reporting.user_usage_hourly
WHERE realm = %s AND starts_at >= %s AND starts_at < %s GROUP BY user_id
"""


class FrontChecker:
    """Compares a front with its cell, after each round in which nothing goes on any more."""

    def __init__(self, deployment: Deployment, front: Front) -> None:
        self._deployment = deployment
        self._front = front
        self._restores = deployment.restores
        self._cell_seq = 0
        self._front_seq = 0
        self.closed_count = 0
        self.event_count = 0

    def run_jobs_of_cell(self) -> None:
        """Close, adjust and number all that the cell has counted."""
        with opened(self._deployment.postgres.url()) as engine:
            for job in (close_periods, adjust, number_feed):
                run_when_free(job, engine)

    def check(self) -> Iterator[str]:
        """What differs, once the front's scheduler has forwarded all that the cell has numbered."""
        if late := self._wait_for_feed():
            yield late
            return
        with opened(self._front.postgres.url()) as engine:
            run_when_free(copy_billing, engine)
        yield from self._view_differences()
        yield from self._feed_differences()
        yield from self._billing_differences()

    def _wait_for_feed(self) -> str:
        """Wait for the front's scheduler; returns what is missing at the deadline."""
        self._front.read_cell_now()
        deadline = time.monotonic() + CATCH_UP_SECONDS
        while True:
            self._deployment.restart_exited()
            [cell] = self._deployment.query(CELL_POSITION)
            [front] = self._front.query(FRONT_POSITION)
            if not (cell["waiting"] or front["waiting"]) and cell["seq"] == front["seq"]:
                return ""
            if time.monotonic() > deadline:
                return f"the front is behind its cell: {front}, the cell {cell}"
            PACE.wait(POLL_SECONDS)

    def _view_differences(self) -> Iterator[str]:
        for view in VIEWS:
            cell, front = (query(DIGEST.format(view), (list(OWN),)) for query in self._queries())
            if cell == front:
                continue
            # What a status key confirms is settled at any time.
            has, shows = (
                Counter(row["row"] for row in query(ROWS.format(view), (list(OWN),)))
                for query in self._queries()
            )
            if has != shows:
                yield f"{view} has {list(shows - has)[:2]}, its cell {list(has - shows)[:2]}"

    def _queries(self) -> tuple[Callable[..., list[dict[str, Any]]], ...]:
        return self._deployment.query, self._front.query

    def _feed_differences(self) -> Iterator[str]:
        """Each event of the cell is in the front's feed once, and in the cell's order.

        A restored cell records again what the front has already, and the front then has what the
        cell has lost. It is compared with all of the front's feed, and later each event that it
        records again must be there from before.
        """
        is_restored = self._deployment.restores != self._restores
        self._restores = self._deployment.restores
        cell_since, front_since = (0, 0) if is_restored else (self._cell_seq, self._front_seq)
        cell, front = self._read_feeds(cell_since, front_since)
        self._cell_seq = cell[-1]["seq"] if cell else cell_since
        self._front_seq = front[-1]["seq"] if front else front_since
        self.event_count = len(front) if is_restored else self.event_count + len(front)
        ids = {
            row["of_cell"]: row["of_front"]
            for row in self._front.query(IDS_IN_FRONT, ([str(row["event_id"]) for row in cell],))
        }
        has = [(ids[str(row["event_id"])], row["event"]) for row in cell]
        shows = [(row["event_id"], row["event"]) for row in front]
        if is_restored:
            counts = Counter(event_id for event_id, _ in shows)
            wrong = [event for event in has if counts[event[0]] != 1]
            if wrong:
                yield f"after a restore its feed lacks or doubles {len(wrong)} events: {wrong[0]}"
            return
        known: set[object] = set()
        if self._restores:
            values = (front_since, list(ids.values()))
            known = {row["event_id"] for row in self._front.query(KNOWN, values)}
        expected = [event for event in has if event[0] not in known]
        if expected != shows:
            yield (
                f"its feed has {len(shows)} new events, its cell {len(expected)}: lost"
                f" {list(Counter(expected) - Counter(shows))[:2]}, doubled or added"
                f" {list(Counter(shows) - Counter(expected))[:2]}, or in another order"
            )

    def _read_feeds(self, cell_since: int, front_since: int) -> tuple[list[dict[str, Any]], ...]:
        """Both feeds, of a moment in which the front had forwarded all."""
        while True:
            [forwarded] = self._front.query(FRONT_POSITION)
            front = self._front.query(FEED, (front_since,))
            cell = self._deployment.query(FEED, (cell_since,))
            [numbered] = self._deployment.query(CELL_POSITION)
            is_whole = forwarded["seq"] == numbered["seq"] and not forwarded["waiting"]
            if is_whole or self._wait_for_feed():
                return cell, front

    def _billing_differences(self) -> Iterator[str]:
        """What the front has billed of a period is what its cell has counted in it."""
        closed = self._front.query(CLOSED)
        in_cell = {(row["realm"], row["period"]) for row in self._deployment.query(CLOSED)}
        for realm, period in in_cell - {(row["realm"], row["period"]) for row in closed}:
            yield f"has not closed {period} of realm '{realm}', its cell has"
        self.closed_count = len(closed)
        sums = ", ".join(f"sum({name})::text AS {name}" for name in COUNTERS)
        counters = ", ".join(COUNTERS)
        for row in closed:
            key = row["realm"], row["period"]
            billed = self._front.query(BILLED.format(sums=sums, counters=counters), (*key, *key))
            span = row["realm"], row["starts_at"], row["ends_at"]
            used = self._deployment.query(USED.format(sums=sums), span)
            of_users = [
                {tuple(user.values()) for user in users if any(map(int, list(user.values())[1:]))}
                for users in (billed, used)
            ]
            if of_users[0] != of_users[1]:
                yield f"{key} billed otherwise than used: {of_users[0] ^ of_users[1]}"


@contextmanager
def opened(url: str) -> Iterator[Engine]:
    engine = open_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


def run_when_free(job: Callable[[Engine], object], engine: Engine) -> None:
    """Run a job once no scheduler has its lock."""
    while True:
        try:
            job(engine)
        except LockHeld:
            PACE.wait(POLL_SECONDS)
        else:
            return
