"""Hours: what lives come to in the hours of their realm, and by how much that changes usage.

Bytes stand in the hour of their report; only the time that a life lived is split, exactly. Knows
no table but the shapes of their rows.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from accounting.domain.calendar import Bucket, Calendar
from accounting.domain.session_fold import SessionState

_NOTHING: Final = (0,) * 8
_RECEIVED_BYTES: Final = 1
_SENT_BYTES: Final = 3


PeakSlice = tuple[int, int, int]
"""Realm, start of the hour, start of the slice."""


UserHour = tuple[int, bytes, int]
"""An hour of a user: realm, user key, start."""


class SessionHour(NamedTuple):
    """What one step adds to one hour of a session, and how the session stands in that hour.

    The flags and the active span replace what stood there; ``counters`` are added.
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
    """Where the slice begins that ``time`` falls in; microseconds, as all times."""
    return max(hour.starts_at, time - time % _SLICE)


def slice_end(hour: Bucket, start: int) -> int:
    """Where the slice ends that begins at ``start``."""
    return min(hour.ends_at, start - start % _SLICE + _SLICE)


def hours_of(session: SessionState, calendar: Calendar) -> Iterable[SessionHour]:
    """What this step makes of the hours of a session: added usage, and how it stands in each."""
    return [row for _, row in _hours(session, calendar)]


def _hours(session: SessionState, calendar: Calendar) -> list[tuple[Bucket, SessionHour]]:
    stored, until = session.prior, session.active_until
    since = session.started_at if stored is None else min(stored.active_until, until)
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
                _within(session.started_at, hour),
                _within(until, hour),
                added.get(starts_at, _NOTHING),
            ),
        )
        for starts_at, hour in hours.items()
    ]


def _within(time: int, hour: Bucket) -> int:
    return min(max(time, hour.starts_at), hour.ends_at)


class UsageChanges:
    """What one step changes: rows of sessions' hours, and by how much it changes users' hours.

    A session that has lived in one hour only has no row of it: ``single_hours`` has its start, by
    session. ``spread`` are those that had none until now and are given one, with those that the
    caller names: their hours stand in rows whatever they are. ``hours`` are all that were touched,
    of realms. ``by_hour`` holds for each hour of a user that is billed COUNTERS, sessions started
    and ended, microseconds, estimated bytes, and sessions that lived on into that hour. ``slices``
    are those in which sessions began or ended, or do so no more.
    """

    def __init__(self, spread: Iterable[bytes] = ()) -> None:
        self.hour_rows: list[SessionHour] = []
        self.single_hours: dict[bytes, int] = {}
        self.sessions_needing_hour_rows = set(spread)
        self.realm_hours: set[tuple[int, int]] = set()
        self.deltas_by_hour: dict[UserHour, list[int]] = {}
        self.peak_slices: set[PeakSlice] = set()

    def add_session(self, session: SessionState, calendar: Calendar) -> None:
        """Take in what a life came to in this step.

        Where it was not confirmed for before, or not estimated, what its hours held already is the
        business of ``session_usage.reflag``: here they count as if they had been.
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
        stored, number = session.prior, session.session_id
        only = rows[0].starts_at if stored is None else stored.single_hour
        if (
            number not in self.sessions_needing_hour_rows
            and len(rows) == 1
            and rows[0].starts_at == only
        ):
            self.single_hours[number] = only
            return
        self.hour_rows += rows
        if stored is not None and stored.single_hour is not None:
            self.sessions_needing_hour_rows.add(number)

    def _add_delta(self, session: SessionState, hour: Bucket, row: SessionHour) -> None:
        counters = row.counters
        stored = session.prior
        lived = row.active_to - row.active_from
        if stored is None:
            started, ended, lived_before = int(row.started), int(row.ended), 0
        else:
            was_ended = stored.ended and hour.starts_at <= stored.active_until < hour.ends_at
            started, ended = 0, row.ended - was_ended
            lived_before = max(0, _within(stored.active_until, hour) - row.active_from)
        estimated = counters[_RECEIVED_BYTES] + counters[_SENT_BYTES] if session.estimated else 0
        carried = 0 if row.started else (lived > 0) - (lived_before > 0)
        place = row.realm_id, row.user_key, row.starts_at
        change = (*counters, started, ended, lived - lived_before, estimated, carried)
        known = self.deltas_by_hour.get(place)
        if known is None:
            self.deltas_by_hour[place] = list(change)
        else:
            for index, number in enumerate(change):
                known[index] += number

    def deltas(self) -> Iterator[tuple[UserHour, Sequence[int]]]:
        """The hours of users that changed, each with by how much."""
        return ((place, change) for place, change in self.deltas_by_hour.items() if any(change))


def _changed_slices(session: SessionState, calendar: Calendar) -> Iterator[PeakSlice]:
    stored = session.prior
    times = []
    if stored is None or not stored.confirmed:
        times.append(session.started_at)
        if session.ended_at is not None:
            times.append(session.ended_at)
    elif (stored.active_until if stored.ended else None) != session.ended_at:
        times = [
            at
            for at in (stored.active_until if stored.ended else None, session.ended_at)
            if at is not None
        ]
    for at in times:
        hour = calendar.hour(at)
        yield session.realm_id, hour.starts_at, slice_start(hour, at)
