"""Compares what the views show with the oracle's books, to the byte."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from tests.histories.oracle import (
    COUNTERS,
    NO_USAGE,
    SECOND,
    Books,
    Bucket,
    Calendar,
    Period,
    Stream,
    Usage,
    micros,
    shown,
    statement_digest,
)

VIEWS: Final[Mapping[str, str]] = {
    "sessions": "source, database, realm, username, allocation_id, started_at, session_id",
    "user_usage_hourly": "realm, user_id, starts_at",
    "user_usage_daily": "realm, user_id, starts_at",
    "user_usage_monthly": "realm, user_id, starts_at",
    "realm_usage_hourly": "realm, starts_at",
    "realm_usage_daily": "realm, starts_at",
    "realm_usage_monthly": "realm, starts_at",
    "unattributed_usage": "source, realm, username, starts_at",
    "allocation_events": "source, received_at, position",
    "traffic_reports": "source, received_at, position",
    "rejected_messages": "source, received_at, position",
    "capture_gaps": "source, from_at",
    "sources": "source",
    "periods": "realm, period",
    "statements": "realm, period, user_key",
    "adjustments": "realm, period, user_key, posted_at, adjustment_id",
    "feed": "seq",
}
LATE_USAGE: Final = "turn-accounting"
MAX_DIFFERENCES: Final = 12
"""Differences that are printed for each view."""

Row = Mapping[str, Any]
Views = Mapping[str, Sequence[Row]]


@dataclass(slots=True)
class Expectation:
    """What the player knows besides the messages.

    ``now``: of the database. ``corrections``: rows of manual adjustments, as far as they are known.
    ``closed``: the periods that are closed although a source is behind them: without it, or while
    it was retired. ``retired``: when, by source. ``reports_kept``: whether no report was dropped.
    ``strangers_kept``: whether the names of what was never confirmed are all there.
    """

    calendars: dict[bytes, Calendar]
    streams: Mapping[str, Stream]
    now: int = 0
    corrections: list[tuple[Any, ...]] = field(default_factory=list)
    closed: set[tuple[str, str]] = field(default_factory=set)
    retired: dict[str, int] = field(default_factory=dict)
    reports_kept: bool = True
    strangers_kept: bool = True


@dataclass(slots=True)
class Identities:
    """Ids that were seen in one dump and must be the same in the next ones."""

    user_keys: dict[tuple[str, str], str] = field(default_factory=dict)
    session_ids: dict[object, str] = field(default_factory=dict)
    books_at: dict[str, Books] = field(default_factory=dict)
    """The oracle's books by the cutoff of a statement; they never change."""


def differences(expected: Expectation, views: Views, identities: Identities) -> list[str]:
    """What the views show otherwise than the oracle; empty when they agree."""
    return list(Comparison(expected, views, identities).run())


def time_of(value: Any) -> int | None:
    return None if value is None else micros(value)


def usage_of(row: Row) -> Usage:
    return Usage(
        tuple(int(row[name]) for name in COUNTERS),
        row["sessions_started"],
        row["sessions_ended"],
        seconds_to_micros(row["session_seconds"]),
        int(row["estimated_bytes"]),
    )


def seconds_to_micros(seconds: Decimal) -> int:
    exact = seconds * SECOND
    assert exact == int(exact), f"{seconds} is no number of microseconds"
    return int(exact)


@dataclass(slots=True)
class Comparison:
    expected: Expectation
    views: Views
    identities: Identities
    books: Books = field(init=False)

    def run(self) -> Iterator[str]:
        self.books = Books(self.expected.streams, self.expected.calendars)
        yield from self._sessions()
        yield from self._usage()
        yield from self._unattributed()
        yield from self._evidence()
        yield from self._periods()
        yield from self._statements()
        yield from self._adjustments()
        yield from self._feed()
        yield from self._user_keys()

    # -- sessions

    def _sessions(self) -> Iterator[str]:
        expected = []
        for session in self.books.confirmed:
            first = session.first
            client, server, transport = None, None, None
            if session.addresses is not None:
                transport, server, client = session.addresses
            expected.append(
                (
                    session.source,
                    first.database,
                    shown(first.realm),
                    shown(first.username),
                    first.allocation,
                    first.at,
                    shown(self.books.user(session)),
                    session.start_known,
                    session.last_seen_at,
                    session.ended_at,
                    session.end_cause,
                    transport,
                    client,
                    server,
                    *session.counters(),
                    bool(session.client_totals),
                    session.estimated,
                    session.disputed,
                )
            )
        actual = [
            (
                row["source"],
                row["database"],
                row["realm"],
                row["username"],
                row["allocation_id"],
                micros(row["started_at"]),
                row["user_id"],
                row["start_known"],
                micros(row["last_seen_at"]),
                time_of(row["ended_at"]),
                row["end_cause"],
                row["transport"],
                row["client_address"],
                row["server_address"],
                *[int(row[name]) for name in COUNTERS],
                row["total_reported"],
                row["estimated"],
                row["disputed"],
            )
            for row in self.views["sessions"]
        ]
        yield from compare_rows("sessions", expected, actual)
        starts = Counter(row[:6] for row in actual)
        for row, values in zip(self.views["sessions"], actual, strict=True):
            if starts[values[:6]] == 1:
                known = self.identities.session_ids.setdefault(values[:6], str(row["session_id"]))
                if known != str(row["session_id"]):
                    yield f"session {values[:6]}: its id was {known}, is {row['session_id']}"

    # -- usage

    def _usage(self) -> Iterator[str]:
        for view, level in (("hourly", "hour"), ("daily", "day"), ("monthly", "month")):
            yield from compare_rows(
                f"user_usage_{view}",
                [
                    (shown(realm), shown(user), *bucket, usage)
                    for (realm, user, bucket), usage in self.books.by_user(level).items()
                    if usage != NO_USAGE
                ],
                [
                    (row["realm"], row["user_id"], *bucket_of(row), usage_of(row))
                    for row in self.views[f"user_usage_{view}"]
                    if usage_of(row) != NO_USAGE
                ],
            )
            peaks = self.books.peaks(level)
            yield from compare_rows(
                f"realm_usage_{view}",
                [
                    (shown(realm), *bucket, usage, peaks.get((realm, bucket), 0))
                    for (realm, bucket), usage in self.books.by_realm(level).items()
                    if usage != NO_USAGE
                ],
                [
                    (
                        row["realm"],
                        *bucket_of(row),
                        usage_of(row),
                        row["peak_sessions"],
                    )
                    for row in self.views[f"realm_usage_{view}"]
                    if usage_of(row) != NO_USAGE
                ],
            )

    def _unattributed(self) -> Iterator[str]:
        expected = [
            (source, shown(realm), shown(username), hour.starts_at, hour.ends_at, counters)
            for (source, realm, username, hour), counters in self.books.unattributed().items()
            if any(counters)
        ]
        actual = [
            (
                row["source"],
                row["realm"],
                row["username"],
                micros(row["starts_at"]),
                micros(row["ends_at"]),
                tuple(int(row[name]) for name in COUNTERS),
            )
            for row in self.views["unattributed_usage"]
            if any(row[name] for name in COUNTERS)
        ]
        if not self.expected.strangers_kept:
            expected, actual = without_usernames(expected), without_usernames(actual)
        yield from compare_rows("unattributed_usage", expected, actual)

    # -- evidence

    def _evidence(self) -> Iterator[str]:
        if self.expected.reports_kept:
            yield from self._reports()
        yield from compare_rows(
            "rejected_messages",
            [
                (source, *message[1:3], message.channel, message.payload)
                for source, message in self.books.rejected
            ],
            [
                (
                    row["source"],
                    row["position"],
                    micros(row["received_at"]),
                    row["channel"],
                    row["payload"],
                )
                for row in self.views["rejected_messages"]
            ],
        )
        yield from compare_rows(
            "capture_gaps",
            [
                (source, gap.from_at, gap.to_at, gap.cause)
                for source, stream in self.expected.streams.items()
                for gap in stream.gaps
            ],
            [
                (row["source"], micros(row["from_at"]), time_of(row["to_at"]), row["cause"])
                for row in self.views["capture_gaps"]
            ],
        )
        yield from compare_rows(
            "sources",
            [
                (source, stream.until, stream.until, stream.until, source in self.expected.retired)
                for source, stream in self.expected.streams.items()
            ],
            [
                (
                    row["source"],
                    *[time_of(row[f"{name}_until"]) for name in ("captured", "loaded", "settled")],
                    row["retired_at"] is not None,
                )
                for row in self.views["sources"]
            ],
        )

    def _reports(self) -> Iterator[str]:
        events, traffic = [], []
        for source, report in self.books.reports:
            head = (
                source,
                report.place[1],
                report.at,
                report.estimated,
                report.database,
                shown(report.realm),
                shown(report.username),
                report.allocation,
            )
            if report.side:
                traffic.append((*head, report.kind, report.side, *report.counts))
            else:
                transport, server, client = report.addresses or (None, None, None)
                events.append((*head, report.kind, report.lifetime, transport, client, server))
        head_names = (
            "source",
            "position",
            "received_at",
            "time_estimated",
            "database",
            "realm",
            "username",
            "allocation_id",
        )
        for view, expected, names in (
            (
                "allocation_events",
                events,
                ("event", "lifetime", "transport", "client_address", "server_address"),
            ),
            ("traffic_reports", traffic, ("report", "side", *COUNTERS[:4])),
        ):
            actual = [
                tuple(
                    micros(row[name]) if name == "received_at" else row[name]
                    for name in (*head_names, *names)
                )
                for row in self.views[view]
            ]
            yield from compare_rows(view, expected, actual)

    # -- billing

    def _expected_periods(self) -> dict[tuple[str, str], tuple[bytes, Period]]:
        """The periods of all realms, by realm and first day.

        From the first usage to now, or to the one that begins where the last closed one ends.
        """
        closed_until: dict[str, int] = defaultdict(int)
        for row in self.views["periods"]:
            if row["closed_at"] is not None:
                closed_until[row["realm"]] = max(closed_until[row["realm"]], micros(row["ends_at"]))
        found = {}
        for realm, calendar in self.expected.calendars.items():
            hours = [bucket.starts_at for of, _, bucket in self.books.hours if of == realm]
            if hours:
                until = max(self.expected.now, closed_until[shown(realm)])
                for period in calendar.periods(min(hours), until):
                    found[shown(realm), period.first_day.isoformat()] = (realm, period)
        return found

    def _may_close(self, key: tuple[str, str], period: Period) -> bool:
        return key in self.expected.closed or period.due_at < self._settled_until()

    def _settled_until(self) -> int:
        in_service = self.expected.streams.keys() - self.expected.retired
        return min(
            [self.expected.now, *(self.expected.streams[source].until for source in in_service)]
        )

    def _periods(self) -> Iterator[str]:
        expected = self._expected_periods()
        settled = self._settled_until()
        rows = {(row["realm"], row["period"].isoformat()): row for row in self.views["periods"]}
        earlier_open: dict[str, bool] = defaultdict(bool)
        for (realm, name), (_, period) in sorted(expected.items()):
            row = rows.get((realm, name))
            if row is None:
                if period.starts_at <= settled:
                    yield f"period {name} of {realm!r} is missing"
                continue
            bounds = (micros(row["starts_at"]), micros(row["ends_at"]), row["time_zone"])
            if bounds != period[1:4]:
                yield f"period {name} of {realm!r}: {bounds}, expected {period[1:4]}"
            if self._may_close((realm, name), period) and not earlier_open[realm]:
                self.expected.closed.add((realm, name))
            if (realm, name) in self.expected.closed:
                state = {"closed"}
            else:
                state = {"closing"} if period.ends_at <= self.expected.now else {"open"}
                earlier_open[realm] = True
            if row["state"] not in state:
                yield (
                    f"period {name} of {realm!r} is {row['state']}, expected {state}:"
                    f" {row['waits_for']}"
                )
        for realm, name in rows.keys() - expected.keys():
            yield f"period {name} of {realm!r} is unexpected"

    def _statements(self) -> Iterator[str]:
        periods = self._expected_periods()
        lines: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in self.views["statements"]:
            lines[row["realm"], row["period"].isoformat()].append(row)
        for key, rows in lines.items():
            if key not in periods:
                yield f"statement {key}: there is no such period"
                continue
            realm, period = periods[key]
            cutoffs = {row["cutoff"] for row in rows}
            if len(cutoffs) != 1:
                yield f"statement {key} has the cutoffs {cutoffs}"
            cutoff = min(cutoffs)
            yield from self._cutoff(key, period, json.loads(cutoff))
            books = self._books_at(cutoff)
            usages = books.in_period(realm, period)
            for row in rows:
                user_key = str(row["user_key"])
                usage = next(
                    (usage for user, usage in usages.items() if shown(user) == row["user_id"]),
                    NO_USAGE,
                )
                digest = statement_digest(key[0], period.first_day, user_key, usage, cutoff)
                if usage_of(row) == usage and row["digest"] != digest:
                    yield f"statement {key} {row['user_id']!r}: another digest than {digest}"
            expected = [(shown(u), usage) for u, usage in usages.items() if usage != NO_USAGE]
            actual = [(r["user_id"], usage_of(r)) for r in rows if usage_of(r) != NO_USAGE]
            yield from compare_rows(f"statement {key}", expected, actual)

    def _cutoff(self, key: object, period: Period, cutoff: Any) -> Iterator[str]:
        for source in self.expected.streams:
            until = (cutoff["sources"].get(source) or {"until": None})["until"]
            is_behind = until is None or until <= period.due_at
            if is_behind != (source in cutoff["without"]):
                yield f"statement {key}: {source!r} settled until {until}, cutoff {cutoff}"

    def _books_at(self, cutoff: str) -> Books:
        books = self.identities.books_at.get(cutoff)
        if books is None:
            books = Books(self._at_cutoff(json.loads(cutoff)), self.expected.calendars)
            self.identities.books_at[cutoff] = books
        return books

    def _at_cutoff(self, cutoff: Any) -> dict[str, Stream]:
        ids = {
            row["gap_id"]: (row["source"], micros(row["from_at"]))
            for row in self.views["capture_gaps"]
        }
        known = {ids[number] for number in ids if number <= cutoff["gap"]}
        streams = {}
        for source, stream in self.expected.streams.items():
            at = cutoff["sources"].get(source)
            if at is None or at["until"] is None:
                streams[source] = Stream()
                continue
            place = at["epoch"], at["position"]
            streams[source] = Stream(
                [m for m in stream.messages if (m.epoch, m.position) <= place],
                [gap for gap in stream.gaps if (source, gap.from_at) in known],
                [sighting for sighting in stream.sightings if sighting[:3] <= tuple(at["sighted"])],
                at["until"],
            )
        return streams

    def _is_late_usage(self, reason: str) -> bool:
        return reason == "late usage"

    def _adjustments(self) -> Iterator[str]:
        """Statement + late usage = the hours, for each user of a closed period."""
        periods = self._expected_periods()
        states = {(r["realm"], r["period"].isoformat()): r for r in self.views["periods"]}
        billed: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0] * 9)
        for row in self.views["statements"]:
            add_to(billed, row)
        corrections = []
        for row in self.views["adjustments"]:
            key = row["realm"], row["period"].isoformat()
            posted_in = states.get((row["realm"], row["posted_in"].isoformat()))
            if posted_in is None or (
                posted_in["closed_at"] is not None and posted_in["closed_at"] < row["posted_at"]
            ):
                yield f"adjustment of {key} was posted in {row['posted_in']}: {posted_in}"
            if states[key]["closed_at"] is None or states[key]["closed_at"] > row["posted_at"]:
                yield f"adjustment of {key}, which was not closed then"
            if row["author"] == LATE_USAGE:
                add_to(billed, row)
                if not self._is_late_usage(row["reason"]):
                    yield f"adjustment of {key} with the reason {row['reason']!r}"
            else:
                corrections.append(
                    (
                        *key,
                        row["user_id"],
                        tuple(int(row[name]) for name in COUNTERS),
                        seconds_to_micros(row["session_seconds"]),
                        row["reason"],
                        row["author"],
                    )
                )
        yield from compare_rows("corrections", self.expected.corrections, corrections)
        hours: dict[tuple[str, str, str], list[int]] = {}
        for (name, first_day), (realm, period) in periods.items():
            state = states.get((name, first_day))
            if state is not None and state["closed_at"] is not None:
                for user, usage in self.books.in_period(realm, period).items():
                    hours[name, first_day, shown(user)] = [*usage.counters, usage.micros]
        yield from compare_rows(
            "statements + late usage",
            [(*key, tuple(sums)) for key, sums in hours.items() if any(sums)],
            [(*key, tuple(sums)) for key, sums in billed.items() if any(sums)],
        )

    # -- feed

    def _feed(self) -> Iterator[str]:
        rows = self.views["feed"]
        if [row["seq"] for row in rows] != list(range(1, len(rows) + 1)):
            yield f"feed: seq {[row['seq'] for row in rows][:50]}"
        if len({row["event_id"] for row in rows}) != len(rows):
            yield "feed: an event_id occurs twice"
        by_type: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            by_type[row["type"]].append(row)
        latest: dict[str, tuple[tuple[datetime, int], Row]] = {}
        for row in by_type["session.ended"]:
            payload = row["payload"]
            session = payload["session_id"]
            order = datetime.fromisoformat(payload["ended_at"]), payload["number"]
            if session in latest and latest[session][0] == order:
                yield f"feed: two events of {session} are number {order}"
            if session not in latest or latest[session][0] < order:
                latest[session] = order, payload
        ended = {str(row["session_id"]): row for row in self.views["sessions"] if row["ended_at"]}
        columns = (
            "source", "database", "allocation_id", "start_known", "end_cause", *COUNTERS,
            "total_reported", "estimated", "disputed",
        )  # fmt: skip
        yield from compare_rows(
            "feed: session.ended",
            [
                (name, str(row["user_key"]), *[row[column] for column in columns])
                for name, row in ended.items()
            ],
            [
                (name, payload["user_key"], *[payload[column] for column in columns])
                for name, (_, payload) in latest.items()
                if name in ended
            ],
        )
        lines = Counter((r["realm"], r["period"].isoformat()) for r in self.views["statements"])
        yield from compare_rows(
            "feed: period.closed",
            [
                (row["realm"], row["period"].isoformat(), lines[row["realm"], str(row["period"])])
                for row in self.views["periods"]
                if row["state"] == "closed"
            ],
            [
                (row["realm"], row["payload"]["period"], row["payload"]["statements"])
                for row in by_type["period.closed"]
            ],
        )
        yield from compare_rows(
            "feed: adjustment.posted",
            [
                (
                    str(row["adjustment_id"]),
                    row["realm"],
                    row["period"].isoformat(),
                    row["posted_in"].isoformat(),
                    str(row["user_key"]),
                    tuple(int(row[name]) for name in COUNTERS),
                    row["reason"],
                    row["author"],
                )
                for row in self.views["adjustments"]
            ],
            [
                (
                    row["payload"]["adjustment_id"],
                    row["realm"],
                    row["payload"]["period"],
                    row["payload"]["posted_in"],
                    row["payload"]["user_key"],
                    tuple(int(row["payload"][name]) for name in COUNTERS),
                    row["payload"]["reason"],
                    row["payload"]["author"],
                )
                for row in by_type["adjustment.posted"]
            ],
        )

    def _user_keys(self) -> Iterator[str]:
        """A user has one key, everywhere and for ever, and no key has two users."""
        users: dict[str, tuple[str, str]] = {}
        for view in ("sessions", "user_usage_monthly", "statements", "adjustments"):
            for row in self.views[view]:
                user, key = (row["realm"], row["user_id"]), str(row["user_key"])
                if self.identities.user_keys.setdefault(user, key) != key:
                    yield f"{view}: {user} has the keys {self.identities.user_keys[user]}, {key}"
                if users.setdefault(key, user) != user:
                    yield f"{view}: {key} is the key of {users[key]} and {user}"


def bucket_of(row: Row) -> Bucket:
    return Bucket(micros(row["starts_at"]), micros(row["ends_at"]), row["time_zone"])


def without_usernames(rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Rows of unattributed usage, summed over usernames: names go, and sums stay."""
    sums: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0] * 8)
    for source, realm, _, starts_at, ends_at, counters in rows:
        entry = sums[source, realm, starts_at, ends_at]
        entry[:] = [a + b for a, b in zip(entry, counters, strict=True)]
    return [(*key, tuple(entry)) for key, entry in sums.items()]


def add_to(sums: dict[tuple[str, str, str], list[int]], row: Row) -> None:
    entry = sums[row["realm"], row["period"].isoformat(), row["user_id"]]
    for index, name in enumerate(COUNTERS):
        entry[index] += int(row[name])
    entry[8] += seconds_to_micros(row["session_seconds"])


def compare_rows(
    what: str, expected: Iterable[tuple[Any, ...]], actual: Iterable[tuple[Any, ...]]
) -> Iterator[str]:
    """Each row that only one of both has, as often as it has it more often."""
    first, second = Counter(expected), Counter(actual)
    wrong = [("-", row) for row in (first - second).elements()]
    wrong += [("+", row) for row in (second - first).elements()]
    wrong.sort(key=lambda entry: [repr(value) for value in entry[1]])
    if wrong:
        yield f"{what}: {len(wrong)} differences (- expected, + shown)"
    for sign, row in wrong[:MAX_DIFFERENCES]:
        yield f"  {sign} {row}"
