"""Recompute: the lives of all settled reports once more, from the reports alone.

The same fold as settling's, of the same model, but over each key's whole stream at once: what
settling came to in many steps must be what this comes to in one. Owns no table, and writes nothing.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Final

from sqlalchemy import Connection

from accounting.model import lives
from accounting.model.buckets import Calendar
from accounting.model.lives import Entry, Life, Report, Sighting, Standing, Track
from accounting.model.realms import RealmRules
from accounting.store import replaying
from accounting.store.replaying import Cutoff
from accounting.store.settling import Key

ENTRIES_KEPT: Final = 1_000
"""Whenever a life has gathered so many entries, those of one hour become one."""


def replay(
    connection: Connection,
    rules: Mapping[int, RealmRules],
    cutoff: Cutoff,
    realm_ids: Collection[int],
    usernames: Sequence[bytes] | None = None,
) -> Iterator[tuple[Key, Life]]:
    """Every life of those realms as it stood at the cutoff, by key; each life once.

    ``usernames``: only of these username keys. A life's entries of one hour may have become one.
    The connection should be in REPEATABLE READ. Memory does not grow with the reports.
    """
    breaks = {
        mark.source_id: replaying.breaks(connection, mark.source_id, cutoff)
        for mark in cutoff.marks
    }
    untils = {mark.source_id: mark.until for mark in cutoff.marks}
    evidence = replaying.read_evidence(connection, cutoff, realm_ids, usernames)
    for key, group in groupby(evidence, key=itemgetter(0)):
        until = untils[key.source_id]
        heard = (one for _, one in group)
        for life in _fold(key, heard, rules, breaks[key.source_id], until):
            yield key, life


def _fold(
    key: Key,
    heard: Iterator[Report | Sighting],
    rules: Mapping[int, RealmRules],
    breaks: Sequence[tuple[int, int]],
    until: int | None,
) -> Iterator[Life]:
    track = Track()
    for one in heard:
        of_realm = rules[one.realm_id]
        take(track, one, key, of_realm, breaks)
        if any(life.standing is Standing.PAST for life in track.touched):
            yield from (life for life in track.touched if life.standing is Standing.PAST)
            track.touched = [life for life in track.touched if life.standing is not Standing.PAST]
        for life in track.touched:
            if life.entries and len(life.entries) % ENTRIES_KEPT == 0:
                condense(life, of_realm.calendar)
    finish(track, rules, until)
    yield from track.touched


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
        lives.sight(track, one, grace=_grace(rules, began))
    else:
        began = one.received_at if current is None else current.started_at
        grace = _grace(rules, began)
        lives.settle(track, one, source_id=key.source_id, grace=grace, breaks=breaks)


def finish(track: Track, rules: Mapping[int, RealmRules], until: int | None) -> None:
    """End the key's life under way, if its time has passed by the clock of the cutoff."""
    life = track.current
    if life is not None and until is not None:
        lives.expire(life, until, _grace(rules[life.realm_id], life.started_at))


def condense(life: Life, calendar: Calendar) -> None:
    """Make one entry of all that a life has of one side in one hour."""
    sums: defaultdict[tuple[int, int], list[int]] = defaultdict(lambda: [0] * 4)
    for at, side, *counts in life.entries:
        line = sums[calendar.hour(at).starts_at, side]
        line[:] = [a + b for a, b in zip(line, counts, strict=True)]
    life.entries = [Entry(at, side, *counts) for (at, side), counts in sums.items()]


def _grace(rules: RealmRules, began: int) -> int:
    return rules.at(began).grace_seconds * lives.SECOND
