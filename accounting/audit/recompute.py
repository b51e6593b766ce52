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
from accounting.domain.session_fold import Entry, Life, Report, Sighting, Standing, Track
from accounting.sessions.session_queries import Key

Told = Life | Report | Sighting
"""What a key is told by: the lives carried over first, then its evidence in order."""
ENTRIES_KEPT: Final = 1_000
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
) -> Iterator[tuple[Key, Life]]:
    """Every life of those realms as it stood at the cutoff, by key; each life once.

    But for those that ended with the dropped reports. ``usernames``: only of these username keys.
    A life's entries of one hour may have become one.
    The connection should be in REPEATABLE READ. Memory does not grow with the reports.
    """
    for key, life, _ in replay_by(connection, rules, cutoff, realm_ids, (), usernames):
        yield key, life


def replay_by(
    connection: Connection,
    rules: Mapping[int, RealmRules],
    cutoff: Cutoff,
    realm_ids: Collection[int],
    stops: Collection[Stop],
    usernames: Sequence[bytes] | None = None,
    *,
    day: tuple[int, int] | None = None,
) -> Iterator[tuple[Key, Life, Stop | None]]:
    """The same, and in the same pass also each vouched life as it stood at each stop.

    A life is told with a stop where it may have hours in that period; with None as it stands at
    ``cutoff``. The stops are some of :func:`in_one_pass`. ``day``: only the lives that the reports
    of that day touch, or that only await their end; the cutoff lies within it.
    """
    breaks = {
        mark.source_id: evidence_queries.breaks(connection, mark.source_id, cutoff)
        for mark in cutoff.marks
    }
    untils = {mark.source_id: mark.until for mark in cutoff.marks}
    routes = {
        (realm_id, mark.source_id): _Route(mark.source_id, stops, realm_id)
        for realm_id in {stop.realm_id for stop in stops}
        for mark in cutoff.marks
    }
    none = _Route(0, (), 0)
    told = read_told(connection, cutoff, realm_ids, usernames, day=day)
    for key, group in groupby(told, key=itemgetter(0)):
        heard = (one for _, one in group)
        first = next(heard)
        fold = _Fold(
            key, rules, breaks[key.source_id], routes.get((first.realm_id, key.source_id), none)
        )
        for life, stop in fold.tell(first, heard, untils[key.source_id]):
            yield key, life, stop


def read_told(
    connection: Connection,
    cutoff: Cutoff,
    realm_ids: Collection[int],
    usernames: Sequence[bytes] | None = None,
    *,
    day: tuple[int, int] | None = None,
) -> Iterator[tuple[Key, Told]]:
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
            mark.source_id: ((mark.epoch, mark.position), mark.sighted)
            for mark in stop.cutoff.marks
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
            next((mark for mark in stop.cutoff.marks if mark.source_id == source_id), None)
            for stop in self.stops
        ]
        self._positions = [
            (0, 0) if mark is None else (mark.epoch, mark.position) for mark in marks
        ]
        self._sighted = [(0, 0, 0) if mark is None else mark.sighted for mark in marks]
        self.untils = [None if mark is None else mark.until for mark in marks]
        self._starts = [stop.starts_at for stop in self.stops]
        self._ends = [stop.ends_at for stop in self.stops]

    def before(self, one: Report | Sighting) -> int:
        """How many of the stops lie before that evidence."""
        if isinstance(one, Sighting):
            return bisect_left(self._sighted, (one.epoch, one.position, one.sighting))
        return bisect_left(self._positions, one[:2])

    def touched_by(self, life: Life, first: int, last: int) -> range:
        """Which of the stops from first to before last have a period that the life may be in."""
        latest = max(life.until, life.entries[-1].at) if life.entries else life.until
        return range(
            max(first, bisect_right(self._ends, life.started_at)),
            min(last, bisect_right(self._starts, latest)),
        )


class _Fold:
    """One key's evidence, folded into lives, with what stood at each stop on the way."""

    def __init__(
        self,
        key: Key,
        rules: Mapping[int, RealmRules],
        breaks: Sequence[tuple[int, int]],
        route: _Route,
    ) -> None:
        self._key = key
        self._rules = rules
        self._breaks = breaks
        self._route = route
        self._track = Track()
        self._passed = 0

    def tell(
        self, first: Told, rest: Iterator[Told], until: int | None
    ) -> Iterator[tuple[Life, Stop | None]]:
        """Every life as it stands at the end, and as it stood at the stops."""
        track, stops = self._track, self._route.stops
        one: Told | None = first
        while one is not None:
            if isinstance(one, Life):
                carry_on(track, one)
                one = next(rest, None)
                continue
            if self._passed < len(stops):
                yield from self._pass(self._route.before(one))
            of_realm = self._rules[one.realm_id]
            take(track, one, self._key, of_realm, self._breaks)
            if any(life.standing is Standing.PAST for life in track.touched):
                for life in track.touched:
                    if life.standing is Standing.PAST:
                        yield from self._past(life)
                track.touched = [one for one in track.touched if one.standing is not Standing.PAST]
            for life in track.touched:
                if life.entries and len(life.entries) % ENTRIES_KEPT == 0:
                    condense(life, of_realm.calendar)
            one = next(rest, None)
        yield from self._pass(len(stops))
        finish(track, self._rules, until)
        for life in track.touched:
            yield life, None

    def _past(self, life: Life) -> Iterator[tuple[Life, Stop | None]]:
        """A life that nothing changes any more: so it stands at all stops to come."""
        yield life, None
        stops = self._route.stops
        if life.vouched:
            for index in self._route.touched_by(life, self._passed, len(stops)):
                yield life, stops[index]

    def _pass(self, upto: int) -> Iterator[tuple[Life, Stop]]:
        """The lives under way, as they stand at the stops that are passed now."""
        route = self._route
        for life in self._track.touched if upto > self._passed else ():
            if not life.vouched:
                continue
            for index in route.touched_by(life, self._passed, upto):
                standing = copy.copy(life)
                standing.entries = life.entries.copy()
                until = route.untils[index]
                if life is self._track.current and until is not None:
                    session_fold.expire(
                        standing, until, _grace(self._rules[life.realm_id], life.started_at)
                    )
                yield standing, route.stops[index]
        self._passed = max(self._passed, upto)


def carry_on(track: Track, life: Life) -> None:
    """Begin with a life that the dropped reports of a key left to later ones."""
    if life.standing is Standing.LIMBO:
        track.limbo = life
    else:
        track.current = life
    track.touched.append(life)


def take(
    track: Track,
    one: Report | Sighting,
    key: Key,
    rules: RealmRules,
    breaks: Sequence[tuple[int, int]],
) -> None:
    """Take one more report or sighting of a key, as settling does."""
    current = track.current
    if isinstance(one, Sighting):
        began = one.seen_at if current is None else current.started_at
        session_fold.sight(track, one, grace=_grace(rules, began))
    else:
        began = one.received_at if current is None else current.started_at
        grace = _grace(rules, began)
        session_fold.settle(track, one, source_id=key.source_id, grace=grace, breaks=breaks)


def finish(track: Track, rules: Mapping[int, RealmRules], until: int | None) -> None:
    """End the key's life under way, if its time has passed by the clock of the cutoff."""
    life = track.current
    if life is not None and until is not None:
        session_fold.expire(life, until, _grace(rules[life.realm_id], life.started_at))


def condense(life: Life, calendar: Calendar) -> None:
    """Make one entry of all that a life has of one side in one hour."""
    sums: defaultdict[tuple[int, int], list[int]] = defaultdict(lambda: [0] * 4)
    for at, side, *counts in life.entries:
        line = sums[calendar.hour(at).starts_at, side]
        line[:] = [a + b for a, b in zip(line, counts, strict=True)]
    life.entries = [Entry(at, side, *counts) for (at, side), counts in sums.items()]


def _grace(rules: RealmRules, began: int) -> int:
    return rules.at(began).grace_seconds * session_fold.SECOND
