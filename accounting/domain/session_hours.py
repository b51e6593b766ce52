"""Splits sessions into the hours of their realm, and computes how that changes users' usage.

Bytes count in the hour of their report; only session time is split between hours, exactly.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from accounting.domain.calendar import Bucket, Calendar
from accounting.domain.session_fold import SessionState

_NOTHING: Final = (0,) * 8
_RECEIVED_BYTES: Final = 1
_SENT_BYTES: Final = 3


PeakSlice = tuple[int, int, int]
"""(realm_id, start of the hour, start of the slice)."""


UserHour = tuple[int, bytes, int]
"""(realm_id, user_key, start of the hour)."""


class SessionHour(NamedTuple):
    """What one step changes in one hour of a session.

    The flags and the active span replace the stored ones; ``counters`` are added.
    """

    session_id: bytes
    starts_at: int
    user_key: bytes
    realm_id: int
    confirmed: bool
    estimated: bool
    started: bool
    ended: bool
    active_from: int
    active_to: int
    counters: Sequence[int]


SLICE_SECONDS: Final = 5


_SLICE: Final = SLICE_SECONDS * 1_000_000


def slice_start(hour: Bucket, time: int) -> int:
    """The start of the slice that contains ``time``; microseconds, as all times."""
    return max(hour.starts_at, time - time % _SLICE)


def slice_end(hour: Bucket, start: int) -> int:
    """The end of the slice that begins at ``start``."""
    return min(hour.ends_at, start - start % _SLICE + _SLICE)


def hours_of(session: SessionState, calendar: Calendar) -> Iterable[SessionHour]:
    """The hours of a session that this step changes."""
    return [row for _, row in _hours(session, calendar)]


def _hours(session: SessionState, calendar: Calendar) -> list[tuple[Bucket, SessionHour]]:
    prior, until = session.prior, session.active_until
    since = session.started_at if prior is None else min(prior.active_until, until)
    last = calendar.hour(until)
    hours = {last.starts_at: last}
    if since < last.starts_at:
        hours = {hour.starts_at: hour for hour in calendar.hours(since, until)}
    added: dict[int, list[int]] = {}
    for at, side, *counts in session.deltas:
        hour = last if last.starts_at <= at < last.ends_at else calendar.hour(at)
        sums = added.get(hour.starts_at)
        if sums is None:
            hours[hour.starts_at] = hour
            sums = added[hour.starts_at] = [0] * 8
        for index, count in enumerate(counts, start=4 * side):
            sums[index] += count
    return [
        (
            hour,
            SessionHour(
                session.session_id,
                starts_at,
                session.user_key,
                session.realm_id,
                session.confirmed,
                session.estimated,
                starts_at <= session.started_at < hour.ends_at,
                session.ended_at is not None and starts_at <= session.ended_at < hour.ends_at,
                _clamp(session.started_at, hour),
                _clamp(until, hour),
                added.get(starts_at, _NOTHING),
            ),
        )
        for starts_at, hour in hours.items()
    ]


def _clamp(time: int, hour: Bucket) -> int:
    return min(max(time, hour.starts_at), hour.ends_at)


class UsageChanges:
    """What one step changes: the hours of sessions, and by how much the hours of users.

    ``single_hours``: by session_id, the start of the only hour that a session was active in; such a
    session gets no row in ``hour_rows``. ``sessions_needing_hour_rows``: those that get a row for
    every hour, because the caller says so or because they reach a second hour in this step.
    ``realm_hours``: every (realm_id, start) of an hour that changes. ``deltas_by_hour``: for each
    hour of a billed user COUNTERS, sessions started and ended, microseconds, estimated bytes, and
    sessions that continued into that hour. ``peak_slices``: those in which the number of starts or
    ends of sessions changes.
    """

    def __init__(self, sessions_needing_hour_rows: Iterable[bytes] = ()) -> None:
        self.hour_rows: list[SessionHour] = []
        self.single_hours: dict[bytes, int] = {}
        self.sessions_needing_hour_rows = set(sessions_needing_hour_rows)
        self.realm_hours: set[tuple[int, int]] = set()
        self.deltas_by_hour: dict[UserHour, list[int]] = {}
        self.peak_slices: set[PeakSlice] = set()

    def add_session(self, session: SessionState, calendar: Calendar) -> None:
        """Add what a session changed in this step.

        If it became confirmed or estimated in this step, its stored hours count here as if they had
        been so before: ``session_hour_queries.update_flags`` queues what that changes.
        """
        hours = _hours(session, calendar)
        self._add_hour_rows(session, [row for _, row in hours])
        for hour, row in hours:
            self.realm_hours.add((session.realm_id, row.starts_at))
            if session.confirmed:
                self._add_delta(session, hour, row)
        if session.confirmed:
            self.peak_slices.update(_changed_slices(session, calendar))

    def _add_hour_rows(self, session: SessionState, rows: list[SessionHour]) -> None:
        prior, session_id = session.prior, session.session_id
        single_hour = rows[0].starts_at if prior is None else prior.single_hour
        if (
            session_id not in self.sessions_needing_hour_rows
            and len(rows) == 1
            and rows[0].starts_at == single_hour
        ):
            self.single_hours[session_id] = single_hour
            return
        self.hour_rows += rows
        if prior is not None and prior.single_hour is not None:
            self.sessions_needing_hour_rows.add(session_id)

    def _add_delta(self, session: SessionState, hour: Bucket, row: SessionHour) -> None:
        counters = row.counters
        prior = session.prior
        active_micros = row.active_to - row.active_from
        if prior is None:
            started, ended, active_micros_before = int(row.started), int(row.ended), 0
        else:
            was_ended = prior.ended and hour.starts_at <= prior.active_until < hour.ends_at
            started, ended = 0, row.ended - was_ended
            active_micros_before = max(0, _clamp(prior.active_until, hour) - row.active_from)
        estimated = counters[_RECEIVED_BYTES] + counters[_SENT_BYTES] if session.estimated else 0
        carried = 0 if row.started else (active_micros > 0) - (active_micros_before > 0)
        user_hour = row.realm_id, row.user_key, row.starts_at
        change = (
            *counters,
            started,
            ended,
            active_micros - active_micros_before,
            estimated,
            carried,
        )
        sums = self.deltas_by_hour.get(user_hour)
        if sums is None:
            self.deltas_by_hour[user_hour] = list(change)
        else:
            for index, number in enumerate(change):
                sums[index] += number

    def deltas(self) -> Iterator[tuple[UserHour, Sequence[int]]]:
        """The hours of users that changed, each with its change."""
        return (
            (user_hour, change) for user_hour, change in self.deltas_by_hour.items() if any(change)
        )


def _changed_slices(session: SessionState, calendar: Calendar) -> Iterator[PeakSlice]:
    prior = session.prior
    times = []
    if prior is None or not prior.confirmed:
        times.append(session.started_at)
        if session.ended_at is not None:
            times.append(session.ended_at)
    elif (prior.active_until if prior.ended else None) != session.ended_at:
        times = [
            at
            for at in (prior.active_until if prior.ended else None, session.ended_at)
            if at is not None
        ]
    for at in times:
        hour = calendar.hour(at)
        yield session.realm_id, hour.starts_at, slice_start(hour, at)
