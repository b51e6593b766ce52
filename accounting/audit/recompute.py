"""Recompute: the lives of all settled reports once more, from the reports alone.

The same fold as settling's, of the same model, but over each key's whole stream at once: what
settling came to in many steps must be what this comes to in one. Where reports were dropped it
begins with the lives that they left. On the way it can stop at the cutoffs of closed periods. Owns
no table, and writes nothing.
"""

import copy
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import Final

from sqlalchemy import Connection

from accounting.audit import evidence_queries
from accounting.audit.evidence_queries import Cutoff
from accounting.domain import session_fold
from accounting.domain.calendar import Calendar
from accounting.domain.realm_rules import RealmRules
from accounting.domain.session_fold import (
    AllocationKey,
    KeyState,
    Phase,
    Report,
    SessionState,
    StatusKeySighting,
    UsageDelta,
)

Told = SessionState | Report | StatusKeySighting
"""What a key is told by: the lives carried over first, then its evidence in order."""
MAX_DELTAS: Final = 1_000
"""Whenever a life has gathered so many entries, those of one hour become one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """A closed period, microseconds, and the cutoff that its lives are told at."""

    realm_id: int
    starts_at: int
    ends_at: int
    cutoff: Cutoff


def replay(
    connection: Connection,
    rules: Mapping[int, RealmRules],
    cutoff: Cutoff,
    realm_ids: Collection[int],
    usernames: Sequence[bytes] | None = None,
) -> Iterator[tuple[AllocationKey, SessionState]]:
    """Every life of those realms as it stood at the cutoff, by key; each life once.

    But for those that ended with the dropped reports. ``usernames``: only of these username keys.
    A life's entries of one hour may have become one.
    The connection should be in REPEATABLE READ. Memory does not grow with the reports.
    """
    for key, session, _ in replay_by(connection, rules, cutoff, realm_ids, (), usernames):
        yield key, session


def replay_by(
    connection: Connection,
    rules: Mapping[int, RealmRules],
    cutoff: Cutoff,
    realm_ids: Collection[int],
    stops: Collection[Stop],
    usernames: Sequence[bytes] | None = None,
    *,
    day: tuple[int, int] | None = None,
) -> Iterator[tuple[AllocationKey, SessionState, Stop | None]]:
    """The same, and in the same pass also each confirmed life as it stood at each stop.

    A life is told with a stop where it may have hours in that period; with None as it stands at
    ``cutoff``. The stops are some of :func:`in_one_pass`. ``day``: only the lives that the reports
    of that day touch, or that only await their end; the cutoff lies within it.
    """
    gap_positions = {
        mark.source_id: evidence_queries.gap_positions(connection, mark.source_id, cutoff)
        for mark in cutoff.watermarks
    }
    untils = {mark.source_id: mark.settled_until for mark in cutoff.watermarks}
    routes = {
        (realm_id, mark.source_id): _Route(mark.source_id, stops, realm_id)
        for realm_id in {stop.realm_id for stop in stops}
        for mark in cutoff.watermarks
    }
    none = _Route(0, (), 0)
    told = read_told(connection, cutoff, realm_ids, usernames, day=day)
    for key, group in groupby(told, key=itemgetter(0)):
        heard = (one for _, one in group)
        first = next(heard)
        fold = _Fold(
            key,
            rules,
            gap_positions[key.source_id],
            routes.get((first.realm_id, key.source_id), none),
        )
        for session, stop in fold.tell(first, heard, untils[key.source_id]):
            yield key, session, stop


def read_told(
    connection: Connection,
    cutoff: Cutoff,
    realm_ids: Collection[int],
    usernames: Sequence[bytes] | None = None,
    *,
    day: tuple[int, int] | None = None,
) -> Iterator[tuple[AllocationKey, Told]]:
    """All that the keys of those realms are told by, key by key; as :func:`replay_by` takes it."""
    return merge(
        evidence_queries.read_carried(connection, cutoff, realm_ids, usernames, day=day),
        evidence_queries.read_evidence(connection, cutoff, realm_ids, usernames, day=day),
        key=itemgetter(0),
    )


def in_one_pass(connection: Connection, stops: Collection[Stop]) -> tuple[list[Stop], list[Stop]]:
    """The stops that one pass can make on its way, and those that need a pass of their own.

    A stop is on the way where all evidence up to its cutoff comes before all the rest, and where
    no gap that became known later would have changed anything.
    """
    on_the_way: list[Stop] = []
    others: list[Stop] = []
    last: dict[int, tuple[int, dict[int, tuple[tuple[int, int], tuple[int, int, int]]]]] = {}
    for stop in sorted(stops, key=lambda stop: (stop.realm_id, stop.starts_at)):
        marks = {
            mark.source_id: ((mark.epoch, mark.position), mark.last_sighting)
            for mark in stop.cutoff.watermarks
        }
        ends_at, before = last.get(stop.realm_id, (stop.starts_at, {}))
        comes_after = ends_at <= stop.starts_at and all(
            source_id in marks and marks[source_id][0] >= mark[0] and marks[source_id][1] >= mark[1]
            for source_id, mark in before.items()
        )
        if comes_after and not evidence_queries.is_entangled(connection, stop.cutoff):
            on_the_way.append(stop)
            last[stop.realm_id] = stop.ends_at, marks
        else:
            others.append(stop)
    return on_the_way, others


class _Route:
    """The stops of one realm on the way through one source's evidence, in order."""

    def __init__(self, source_id: int, stops: Collection[Stop], realm_id: int) -> None:
        self.stops = sorted(
            (stop for stop in stops if stop.realm_id == realm_id), key=lambda stop: stop.starts_at
        )
        marks = [
            next((mark for mark in stop.cutoff.watermarks if mark.source_id == source_id), None)
            for stop in self.stops
        ]
        self._positions = [
            (0, 0) if mark is None else (mark.epoch, mark.position) for mark in marks
        ]
        self._sighted = [(0, 0, 0) if mark is None else mark.last_sighting for mark in marks]
        self.untils = [None if mark is None else mark.settled_until for mark in marks]
        self._starts = [stop.starts_at for stop in self.stops]
        self._ends = [stop.ends_at for stop in self.stops]

    def before(self, one: Report | StatusKeySighting) -> int:
        """How many of the stops lie before that evidence."""
        if isinstance(one, StatusKeySighting):
            return bisect_left(self._sighted, (one.epoch, one.position, one.number))
        return bisect_left(self._positions, one[:2])

    def touched_by(self, session: SessionState, first: int, last: int) -> range:
        """Which of the stops from first to before last have a period that the life may be in."""
        latest = (
            max(session.active_until, session.deltas[-1].at)
            if session.deltas
            else session.active_until
        )
        return range(
            max(first, bisect_right(self._ends, session.started_at)),
            min(last, bisect_right(self._starts, latest)),
        )


class _Fold:
    """One key's evidence, folded into lives, with what stood at each stop on the way."""

    def __init__(
        self,
        key: AllocationKey,
        rules: Mapping[int, RealmRules],
        gap_positions: Sequence[tuple[int, int]],
        route: _Route,
    ) -> None:
        self._key = key
        self._rules = rules
        self._gap_positions = gap_positions
        self._route = route
        self._track = KeyState()
        self._passed = 0

    def tell(
        self, first: Told, rest: Iterator[Told], until: int | None
    ) -> Iterator[tuple[SessionState, Stop | None]]:
        """Every life as it stands at the end, and as it stood at the stops."""
        key_state, stops = self._track, self._route.stops
        one: Told | None = first
        while one is not None:
            if isinstance(one, SessionState):
                carry_on(key_state, one)
                one = next(rest, None)
                continue
            if self._passed < len(stops):
                yield from self._pass(self._route.before(one))
            of_realm = self._rules[one.realm_id]
            take(key_state, one, self._key, of_realm, self._gap_positions)
            if any(session.phase is Phase.CLOSED for session in key_state.changed):
                for session in key_state.changed:
                    if session.phase is Phase.CLOSED:
                        yield from self._past(session)
                key_state.changed = [
                    one for one in key_state.changed if one.phase is not Phase.CLOSED
                ]
            for session in key_state.changed:
                if session.deltas and len(session.deltas) % MAX_DELTAS == 0:
                    merge_deltas(session, of_realm.calendar)
            one = next(rest, None)
        yield from self._pass(len(stops))
        finish(key_state, self._rules, until)
        for session in key_state.changed:
            yield session, None

    def _past(self, session: SessionState) -> Iterator[tuple[SessionState, Stop | None]]:
        """A life that nothing changes any more: so it stands at all stops to come."""
        yield session, None
        stops = self._route.stops
        if session.confirmed:
            for index in self._route.touched_by(session, self._passed, len(stops)):
                yield session, stops[index]

    def _pass(self, upto: int) -> Iterator[tuple[SessionState, Stop]]:
        """The lives under way, as they stand at the stops that are passed now."""
        route = self._route
        for session in self._track.changed if upto > self._passed else ():
            if not session.confirmed:
                continue
            for index in route.touched_by(session, self._passed, upto):
                standing = copy.copy(session)
                standing.deltas = session.deltas.copy()
                until = route.untils[index]
                if session is self._track.active and until is not None:
                    session_fold.expire(
                        standing, until, _grace(self._rules[session.realm_id], session.started_at)
                    )
                yield standing, route.stops[index]
        self._passed = max(self._passed, upto)


def carry_on(key_state: KeyState, session: SessionState) -> None:
    """Begin with a life that the dropped reports of a key left to later ones."""
    if session.phase is Phase.PENDING:
        key_state.pending = session
    else:
        key_state.active = session
    key_state.changed.append(session)


def take(
    key_state: KeyState,
    one: Report | StatusKeySighting,
    key: AllocationKey,
    rules: RealmRules,
    gap_positions: Sequence[tuple[int, int]],
) -> None:
    """Take one more report or sighting of a key, as settling does."""
    current = key_state.active
    if isinstance(one, StatusKeySighting):
        began = one.seen_at if current is None else current.started_at
        session_fold.apply_sighting(key_state, one, grace=_grace(rules, began))
    else:
        began = one.received_at if current is None else current.started_at
        grace = _grace(rules, began)
        session_fold.apply_report(
            key_state, one, source_id=key.source_id, grace=grace, gap_positions=gap_positions
        )


def finish(key_state: KeyState, rules: Mapping[int, RealmRules], until: int | None) -> None:
    """End the key's life under way, if its time has passed by the clock of the cutoff."""
    session = key_state.active
    if session is not None and until is not None:
        session_fold.expire(session, until, _grace(rules[session.realm_id], session.started_at))


def merge_deltas(session: SessionState, calendar: Calendar) -> None:
    """Make one entry of all that a life has of one side in one hour."""
    sums: defaultdict[tuple[int, int], list[int]] = defaultdict(lambda: [0] * 4)
    for at, side, *counts in session.deltas:
        line = sums[calendar.hour(at).starts_at, side]
        line[:] = [a + b for a, b in zip(line, counts, strict=True)]
    session.deltas = [UsageDelta(at, side, *counts) for (at, side), counts in sums.items()]


def _grace(rules: RealmRules, began: int) -> int:
    return rules.rule_at(began).grace_seconds * session_fold.SECOND
