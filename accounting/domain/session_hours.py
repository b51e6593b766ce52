"""Hours: what lives come to in the hours of their realm, and by how much that changes usage.

Bytes stand in the hour of their report; only the time that a life lived is split, exactly. Knows
no table but the shapes of their rows.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from accounting.domain.calendar import Bucket, Calendar
from accounting.domain.session_fold import Life

_NOTHING: Final = (0,) * 8
_RECEIVED_BYTES: Final = 1
_SENT_BYTES: Final = 3


Slice = tuple[int, int, int]
"""Realm, start of the hour, start of the slice."""


Place = tuple[int, bytes, int]
"""An hour of a user: realm, user key, start."""


class UsageRow(NamedTuple):
    """What one step adds to one hour of a session, and how the session stands in that hour.

    The flags and the active span replace what stood there; ``counters`` are added.
    """

    session_id: bytes
    starts_at: int
    user_key: bytes
    realm_id: int
    vouched: bool
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


def hours_of(life: Life, calendar: Calendar) -> Iterable[UsageRow]:
    """What this step makes of the hours of a session: added usage, and how it stands in each."""
    return [row for _, row in _hours(life, calendar)]


def _hours(life: Life, calendar: Calendar) -> list[tuple[Bucket, UsageRow]]:
    stored, until = life.stored, life.until
    since = life.started_at if stored is None else min(stored.until, until)
    last = calendar.hour(until)
    hours = {last.starts_at: last}
    if since < last.starts_at:
        hours = {hour.starts_at: hour for hour in calendar.hours(since, until)}
    added: dict[int, list[int]] = {}
    for at, side, *counts in life.entries:
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
            UsageRow(
                life.session_id,
                starts_at,
                life.user_key,
                life.realm_id,
                life.vouched,
                life.estimated,
                starts_at <= life.started_at < hour.ends_at,
                life.ended_at is not None and starts_at <= life.ended_at < hour.ends_at,
                _within(life.started_at, hour),
                _within(until, hour),
                added.get(starts_at, _NOTHING),
            ),
        )
        for starts_at, hour in hours.items()
    ]


def _within(time: int, hour: Bucket) -> int:
    return min(max(time, hour.starts_at), hour.ends_at)


class Changes:
    """What one step changes: rows of sessions' hours, and by how much it changes users' hours.

    A session that has lived in one hour only has no row of it: ``only_hours`` has its start, by
    session. ``spread`` are those that had none until now and are given one, with those that the
    caller names: their hours stand in rows whatever they are. ``hours`` are all that were touched,
    of realms. ``by_hour`` holds for each hour of a user that is billed COUNTERS, sessions started
    and ended, microseconds, estimated bytes, and sessions that lived on into that hour. ``slices``
    are those in which sessions began or ended, or do so no more.
    """

    def __init__(self, spread: Iterable[bytes] = ()) -> None:
        self.rows: list[UsageRow] = []
        self.only_hours: dict[bytes, int] = {}
        self.spread = set(spread)
        self.hours: set[tuple[int, int]] = set()
        self.by_hour: dict[Place, list[int]] = {}
        self.slices: set[Slice] = set()

    def take(self, life: Life, calendar: Calendar) -> None:
        """Take in what a life came to in this step.

        Where it was not vouched for before, or not estimated, what its hours held already is the
        business of ``session_usage.reflag``: here they count as if they had been.
        """
        hours = _hours(life, calendar)
        self._place(life, [row for _, row in hours])
        for hour, row in hours:
            self.hours.add((life.realm_id, row.starts_at))
            if life.vouched:
                self._change(life, hour, row)
        if life.vouched:
            self.slices.update(_touched_slices(life, calendar))

    def _place(self, life: Life, rows: list[UsageRow]) -> None:
        stored, number = life.stored, life.session_id
        only = rows[0].starts_at if stored is None else stored.only_hour
        if number not in self.spread and len(rows) == 1 and rows[0].starts_at == only:
            self.only_hours[number] = only
            return
        self.rows += rows
        if stored is not None and stored.only_hour is not None:
            self.spread.add(number)

    def _change(self, life: Life, hour: Bucket, row: UsageRow) -> None:
        counters = row.counters
        stored = life.stored
        lived = row.active_to - row.active_from
        if stored is None:
            started, ended, lived_before = int(row.started), int(row.ended), 0
        else:
            was_ended = stored.ended and hour.starts_at <= stored.until < hour.ends_at
            started, ended = 0, row.ended - was_ended
            lived_before = max(0, _within(stored.until, hour) - row.active_from)
        estimated = counters[_RECEIVED_BYTES] + counters[_SENT_BYTES] if life.estimated else 0
        carried = 0 if row.started else (lived > 0) - (lived_before > 0)
        place = row.realm_id, row.user_key, row.starts_at
        change = (*counters, started, ended, lived - lived_before, estimated, carried)
        known = self.by_hour.get(place)
        if known is None:
            self.by_hour[place] = list(change)
        else:
            for index, number in enumerate(change):
                known[index] += number

    def marks(self) -> Iterator[tuple[Place, Sequence[int]]]:
        """The hours of users that changed, each with by how much."""
        return ((place, change) for place, change in self.by_hour.items() if any(change))


def _touched_slices(life: Life, calendar: Calendar) -> Iterator[Slice]:
    stored = life.stored
    times = []
    if stored is None or not stored.vouched:
        times.append(life.started_at)
        if life.ended_at is not None:
            times.append(life.ended_at)
    elif (stored.until if stored.ended else None) != life.ended_at:
        times = [
            at for at in (stored.until if stored.ended else None, life.ended_at) if at is not None
        ]
    for at in times:
        hour = calendar.hour(at)
        yield life.realm_id, hour.starts_at, slice_start(hour, at)
