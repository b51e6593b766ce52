"""Splits sessions into the hours of their realm, and computes how that changes usage.

Bytes count in the hour of their report; only session time is split between hours, exactly. Usage
is summed by user, and by the server and the transport of the session. These are known with its
first status; what was counted before moves to them then.
"""

from collections.abc import Iterable, Iterator, Sequence
from operator import add, sub
from typing import Final, NamedTuple

from accounting.domain.calendar import Bucket, Calendar
from accounting.domain.server_host import server_host
from accounting.domain.session_fold import PriorState, SessionState

_NOTHING: Final = (0,) * 8
_RECEIVED_BYTES: Final = 1
_SENT_BYTES: Final = 3
# Of the hour of a user, after the counters.
_STARTED: Final = 8
_ENDED: Final = 9
_MICROSECONDS: Final = 10
_ESTIMATED: Final = 11


PeakSlice = tuple[int, int, int]
"""(realm_id, start of the hour, start of the slice)."""


UserHour = tuple[int, bytes, int]
"""(realm_id, user_key, start of the hour)."""


ServerHour = tuple[int, int, str | None, str | None]
"""(realm_id, start of the hour, address of the server with its port, transport)."""


FlagChange = tuple[bytes, bool, bool, str, str, str, str]
"""(id, confirmed, estimated) of a session; its server and transport before, and now."""


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


SLICE_SECONDS: Final = 2


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
    for starts_at in session.hourly_usage:
        if starts_at not in hours:
            hours[starts_at] = calendar.hour(starts_at)
    return [
        (hour, _session_hour(session, hour, session.hourly_usage.get(starts_at, _NOTHING)))
        for starts_at, hour in hours.items()
    ]


def _session_hour(session: SessionState, hour: Bucket, counters: Sequence[int]) -> SessionHour:
    starts_at, ends_at, until = hour.starts_at, hour.ends_at, session.active_until
    return SessionHour(
        session.session_id,
        starts_at,
        session.user_key,
        session.realm_id,
        session.confirmed,
        session.estimated,
        starts_at <= session.started_at < ends_at,
        session.ended_at is not None and starts_at <= session.ended_at < ends_at,
        _clamp(session.started_at, hour),
        _clamp(until, hour),
        counters,
    )


def _clamp(time: int, hour: Bucket) -> int:
    return min(max(time, hour.starts_at), hour.ends_at)


class UsageChanges:
    """What one step changes: the hours of sessions, and by how much those of users and servers.

    ``realm_hours``: every (realm_id, start) of an hour that changes. ``deltas_by_hour``: for each
    hour of a billed user COUNTERS, sessions started and ended, microseconds and estimated bytes.
    ``server_deltas``: the same by server and transport, and sessions that continued into the hour.
    ``peak_slices``: those in which the number of starts or ends of sessions changes, of the realm
    or of a server. ``flag_changes``: of sessions whose rows of hours need these flags, or count at
    another server; ``session_hour_queries.update_flags`` queues what that changes in the usage.
    ``earlier_deltas``: as ``server_deltas``, of usage that was reported before this step, and is
    counted or moves only now: it is in no rate.
    """

    def __init__(self, merged: Iterable[tuple[SessionState, SessionState]] = ()) -> None:
        """``merged``: pending sessions, each with the session that it was merged into."""
        self.hour_rows: list[SessionHour] = []
        self.realm_hours: set[tuple[int, int]] = set()
        self.deltas_by_hour: dict[UserHour, list[int]] = {}
        self.server_deltas: dict[ServerHour, list[int]] = {}
        self.earlier_deltas: dict[ServerHour, list[int]] = {}
        self.peak_slices: set[PeakSlice] = set()
        self.flag_changes: list[FlagChange] = []
        self._with_hour_rows: set[bytes] = set()
        for pending, session in merged:
            if pending.prior is not None and pending.prior.single_hour is None:
                # Its rows of hours become the session's, which therefore needs such rows too.
                self._with_hour_rows.add(session.session_id)
                self._add_flags(session)

    def add_session(self, session: SessionState, calendar: Calendar) -> int | None:
        """Add what a session changed in this step.

        Returns the start of the only hour that it was active in; a session that was active in
        several has a row for each.
        """
        prior, until = session.prior, session.active_until
        only = calendar.hour(until).starts_at
        added = session.hourly_usage
        if (
            session.started_at >= only
            and (not added or (only in added and len(added) == 1))
            and (prior is None or prior.single_hour == only)
            and session.session_id not in self._with_hour_rows
        ):
            self._add_within_hour(session, calendar, only, until)
            return only
        if prior is not None:
            self._add_flag_changes(session, prior)
        hours = _hours(session, calendar)
        realm_id = session.realm_id
        for hour, row in hours:
            self.realm_hours.add((realm_id, row.starts_at))
            if session.confirmed:
                self._add_delta(session, hour, row)
        if session.confirmed:
            self._add_changed_slices(session, calendar)
        only = hours[0][1].starts_at
        stored = only if prior is None else prior.single_hour
        if len(hours) == 1 and only == stored and session.session_id not in self._with_hour_rows:
            return only
        rows = [row for _, row in hours]
        if prior is not None and prior.single_hour is not None:
            rows = _with_stored_hour(session, prior, rows, calendar)
        self.hour_rows += rows
        return None

    def _add_within_hour(
        self, session: SessionState, calendar: Calendar, hour: int, until: int
    ) -> None:
        """Add what a session changed that was only ever active in one hour: most sessions."""
        self.realm_hours.add((session.realm_id, hour))
        if not session.confirmed:
            return
        prior, ended = session.prior, session.ended_at is not None
        counters = session.hourly_usage.get(hour)
        realm_id = session.realm_id
        estimated_of = counters
        if prior is None:
            started, ended_change = 1, int(ended)
            active_micros = until - session.started_at
            counters = estimated_of = session.usage
            has_slices = True
        else:
            started = 0
            ended_change = ended - prior.ended
            active_micros = until - prior.active_until
            has_slices = ended or prior.ended
            if prior.estimated != session.estimated:
                # Its usage before this step counts as estimated from now on.
                estimated_of = session.usage
                has_slices = True
            if not prior.confirmed:
                # Its usage before this step counts from now on.
                self._add_earlier(session, hour, _stored_change(session, prior))
                has_slices = True
            elif _has_moved(session, prior):
                self._move(session, prior, hour)
                has_slices = True
        estimated = 0
        if session.estimated and estimated_of is not None:
            estimated = estimated_of[_RECEIVED_BYTES] + estimated_of[_SENT_BYTES]
        for sums in (
            self._sums((realm_id, session.user_key, hour)),
            _sums_at(self.server_deltas, realm_id, hour, session.server_address, session.transport),
        ):
            if counters is not None:
                sums[:8] = map(add, sums, counters)
            sums[_STARTED] += started
            sums[_ENDED] += ended_change
            sums[_MICROSECONDS] += active_micros
            sums[_ESTIMATED] += estimated
        if has_slices:
            self._add_changed_slices(session, calendar)

    def _move(self, session: SessionState, prior: PriorState, hour: int) -> None:
        """Move what was counted of a session in its only hour to the server that it turned out."""
        change = _stored_change(session, prior)
        before = _sums_at(
            self.earlier_deltas, session.realm_id, hour, prior.server_address, prior.transport
        )
        before[:] = map(sub, before, change)
        self._add_at_server(self.earlier_deltas, session, hour, change)

    def _add_flag_changes(self, session: SessionState, prior: PriorState) -> None:
        """Count the stored hours of a session as if its flags and its server had been the same."""
        has_moved = prior.confirmed and _has_moved(session, prior)
        has_same_flags = (prior.confirmed, prior.estimated) == (
            session.confirmed,
            session.estimated,
        )
        if has_same_flags and not has_moved:
            return
        if prior.single_hour is None:
            self._add_flags(session)
            return
        if has_moved:
            self._move(session, prior, prior.single_hour)
        if has_same_flags:
            return
        sign = session.confirmed - prior.confirmed
        estimated_sign = (session.confirmed and session.estimated) - (
            prior.confirmed and prior.estimated
        )
        usage = prior.usage
        self._add_earlier(
            session,
            prior.single_hour,
            (
                *(sign * count for count in usage),
                sign,
                sign * prior.ended,
                sign * (prior.active_until - session.started_at),
                estimated_sign * (usage[_RECEIVED_BYTES] + usage[_SENT_BYTES]),
                0,
            ),
        )

    def _add_flags(self, session: SessionState) -> None:
        self.flag_changes.append(
            (
                session.session_id,
                session.confirmed,
                session.estimated,
                *stored_place(session),
                server_host(session.server_address),
                session.transport or "",
            )
        )

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
        self._add(
            session,
            row.starts_at,
            (
                *counters,
                started,
                ended,
                active_micros - active_micros_before,
                estimated,
                carried,
            ),
        )

    def _add_changed_slices(self, session: SessionState, calendar: Calendar) -> None:
        prior, ended_at = session.prior, session.ended_at
        ended_before = prior.active_until if prior is not None and prior.ended else None
        if prior is None or not prior.confirmed:
            self._add_slice(session.realm_id, session.started_at, calendar)
        elif _has_moved(session, prior):
            self._add_slice(session.realm_id, session.started_at, calendar)
            if ended_before is not None:
                self._add_slice(session.realm_id, ended_before, calendar)
        elif ended_before == ended_at:
            return
        elif ended_before is not None:
            self._add_slice(session.realm_id, ended_before, calendar)
        if ended_at is not None:
            self._add_slice(session.realm_id, ended_at, calendar)

    def _add_slice(self, realm_id: int, at: int, calendar: Calendar) -> None:
        hour = calendar.hour(at)
        self.peak_slices.add((realm_id, hour.starts_at, slice_start(hour, at)))

    def _sums(self, user_hour: UserHour) -> list[int]:
        """What is added to an hour of a user."""
        sums = self.deltas_by_hour.get(user_hour)
        if sums is None:
            sums = self.deltas_by_hour[user_hour] = [0] * 12
        return sums

    def _add(self, session: SessionState, hour: int, change: Sequence[int]) -> None:
        """Add a change in the order of ``server_deltas``."""
        sums = self._sums((session.realm_id, session.user_key, hour))
        sums[:] = map(add, sums, change)
        self._add_at_server(self.server_deltas, session, hour, change)

    def _add_earlier(self, session: SessionState, hour: int, change: Sequence[int]) -> None:
        """As :meth:`_add`, of usage that was reported before this step."""
        sums = self._sums((session.realm_id, session.user_key, hour))
        sums[:] = map(add, sums, change)
        self._add_at_server(self.earlier_deltas, session, hour, change)

    def _add_at_server(
        self,
        deltas: dict[ServerHour, list[int]],
        session: SessionState,
        hour: int,
        change: Sequence[int],
    ) -> None:
        sums = _sums_at(deltas, session.realm_id, hour, session.server_address, session.transport)
        sums[:] = map(add, sums, change)

    def deltas(self) -> Iterator[tuple[UserHour, Sequence[int]]]:
        """The hours of users that changed, each with its change."""
        return (
            (user_hour, change) for user_hour, change in self.deltas_by_hour.items() if any(change)
        )


def _sums_at(
    deltas: dict[ServerHour, list[int]],
    realm_id: int,
    hour: int,
    server_address: str | None,
    transport: str | None,
) -> list[int]:
    """What is added to an hour of a server and a transport."""
    key = realm_id, hour, server_address, transport
    sums = deltas.get(key)
    if sums is None:
        sums = deltas[key] = [0] * 13
    return sums


def _stored_change(session: SessionState, prior: PriorState) -> Sequence[int]:
    """All that a session had in its only hour before this step, in the order of a delta."""
    usage = prior.usage
    return (
        *usage,
        1,
        int(prior.ended),
        prior.active_until - session.started_at,
        usage[_RECEIVED_BYTES] + usage[_SENT_BYTES] if prior.estimated else 0,
        0,
    )


def stored_place(session: SessionState) -> tuple[str, str]:
    """The server and the transport that the stored hours of a session count at.

    Of one that is not stored, those that they are going to count at.
    """
    place = session if session.prior is None else session.prior
    return server_host(place.server_address), place.transport or ""


def _has_moved(session: SessionState, prior: PriorState) -> bool:
    """Whether its server or transport became known since."""
    return session.server_address != prior.server_address or session.transport != prior.transport


def _with_stored_hour(
    session: SessionState, prior: PriorState, rows: list[SessionHour], calendar: Calendar
) -> list[SessionHour]:
    """The rows, and with them the only hour that the session had before this step."""
    for index, row in enumerate(rows):
        if row.starts_at == prior.single_hour:
            counters = [a + b for a, b in zip(row.counters, prior.usage, strict=True)]
            rows[index] = row._replace(counters=counters)
            return rows
    assert prior.single_hour is not None
    hour = calendar.hour(prior.single_hour)
    return [_session_hour(session, hour, prior.usage), *rows]
