"""A billing worker as docs/billing-worker.md describes it: bills each event once, by its id.

It outlives the database: after a restore it keeps what it billed, and reads the feed again.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tests.histories.comparison import compare_rows
from tests.histories.oracle import COUNTERS

Row = Mapping[str, Any]
Usage = tuple[Any, ...]
"""The eight counters and the session seconds."""

COLUMNS: Final = (*COUNTERS, "session_seconds")


def figures(row: Row) -> Usage:
    return tuple(
        round(float(row[name]) * 10**6) if name == "session_seconds" else int(row[name])
        for name in COLUMNS
    )


@dataclass(slots=True)
class BillingWorker:
    """What was billed so far. ``usage``: by realm, period and user; ``credits``: by event."""

    events: dict[str, str] = field(default_factory=dict)
    usage: dict[tuple[str, str], dict[str, Usage]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    credits: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def work(self, feed: Sequence[Row], statements: Sequence[Row]) -> Iterator[str]:
        """Bill the events that are new; yields what must not be."""
        for event in feed:
            event_id = str(event["event_id"])
            payload = dict(event["payload"])
            if event["type"] == "adjustment.posted":
                # One that comes again after a restore is billed already, with the period of then.
                del payload["posted_in"]
            content = json.dumps([event["type"], event["realm"], payload], sort_keys=True)
            if event_id in self.events:
                if self.events[event_id] != content:
                    yield f"event {event_id} was {self.events[event_id]}, is {content}"
                continue
            self.events[event_id] = content
            self._bill(event_id, event, statements)
        contents = list(self.credits.values())
        if len(contents) != len(set(contents)):
            yield f"the worker has one correction under two ids: {self.credits}"

    def _bill(self, event_id: str, event: Row, statements: Sequence[Row]) -> None:
        payload = event["payload"]
        if event["type"] == "period.closed":
            key = event["realm"], payload["period"]
            # What was billed of users who are not in the statement is given back.
            self.usage[key] = {
                str(line["user_key"]): figures(line)
                for line in statements
                if (line["realm"], line["period"].isoformat()) == key
            }
        elif event["type"] == "adjustment.posted":
            key = event["realm"], payload["period"]
            if payload["before"] is None:
                self.credits[event_id] = (
                    *key,
                    payload["user_key"],
                    figures(payload),
                    payload["reason"],
                    payload["author"],
                )
            else:
                before = figures(payload["before"])
                self.usage[key][payload["user_key"]] = tuple(
                    a + b for a, b in zip(before, figures(payload), strict=True)
                )

    def compare(
        self, views: Mapping[str, Sequence[Row]], corrections: Iterable[tuple[Any, ...]]
    ) -> Iterator[str]:
        """A worker has billed what the hours say, for each closed period, and each correction."""
        keys = {str(row["user_key"]): row["user_id"] for row in views["user_usage_monthly"]}
        billed: list[tuple[Any, ...]] = []
        hours = []
        for row in views["periods"]:
            if row["closed_at"] is None:
                continue
            key = row["realm"], row["period"].isoformat()
            billed += [
                (*key, keys.get(user_key, user_key), usage)
                for user_key, usage in self.usage[key].items()
                if any(usage)
            ]
            sums: dict[str, list[int]] = defaultdict(lambda: [0] * 9)
            for hour in views["user_usage_hourly"]:
                if hour["realm"] == key[0] and (
                    row["starts_at"] <= hour["starts_at"] < row["ends_at"]
                ):
                    figures_of_hour = figures(hour)
                    sums[hour["user_id"]] = [
                        a + b for a, b in zip(sums[hour["user_id"]], figures_of_hour, strict=True)
                    ]
            hours += [(*key, user, tuple(usage)) for user, usage in sums.items() if any(usage)]
        yield from compare_rows("what the worker billed", hours, billed)
        known = {(row[0], row[1], row[3], row[4]) for row in self.credits.values()}
        for correction in corrections:
            realm, period, _, counters, micros, reason, _ = correction
            if (realm, period, (*counters, micros), reason) not in known:
                yield f"the worker has not got the correction {correction}"
