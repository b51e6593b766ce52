"""What a batch of evidence changes: its sessions and all that follows from them, packed for COPY.

A value: the folds go on with the next batch while it is written. Packing takes a snapshot of each
session, so that the next batch knows what is stored without reading it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from accounting.domain.realm_rules import RealmRules
from accounting.domain.session_fold import (
    NO_HOURS,
    NO_MERGES,
    NO_SESSIONS,
    AllocationKey,
    KeyFold,
    Phase,
    PriorState,
    SessionState,
)
from accounting.domain.session_hours import UsageChanges, stored_place
from accounting.domain.thread_silence import ThreadActivity
from accounting.feed import session_ended
from accounting.sessions.fold_failure import FoldFailed
from accounting.sessions.session_rows import pack_id, pack_refresh, pack_session, slow_columns

MergedSession = tuple[bytes, bytes, bytes, str, str]
"""A pending session's id; id, user key, server and transport of the one it was merged into."""

MAX_SLOW_COLUMNS: Final = 10_000
_SLOW_COLUMNS: Final[dict[tuple[object, ...], tuple[object, ...]]] = {}


@dataclass(slots=True, kw_only=True)
class StoredState(PriorState):
    """A session as it is stored: what decides how its next change is written.

    ``slow_columns``: what few reports change. ``recheck_at``: when it may have expired; stored as
    the earliest so far, because a later one would change an index at each refresh.
    ``announced_end``: what its last session.ended event says; None before the first.
    """

    slow_columns: tuple[object, ...]
    recheck_at: int
    end_events: int
    announced_end: tuple[object, ...] | None


@dataclass(slots=True)
class SessionChanges:
    """The rows that a batch writes.

    ``removed``: ids of open sessions that are written again, were closed, or were merged into
    another. ``opened`` and ``closed``: whole rows, by partition. ``refreshed``: rows of sessions
    that got only new counters and times. ``ended``: the events of sessions that the feed announces.
    ``merged``: as ``session_hour_queries.merge_pending`` takes them.
    """

    usage: UsageChanges
    removed: list[bytes] = field(default_factory=list)
    opened: list[bytes] = field(default_factory=list)
    closed: list[bytes] = field(default_factory=list)
    refreshed: list[bytes] = field(default_factory=list)
    ended: list[session_ended.Event] = field(default_factory=list)
    merged: list[MergedSession] = field(default_factory=list)
    activity: ThreadActivity = field(default_factory=ThreadActivity)

    def __bool__(self) -> bool:
        return bool(self.opened or self.closed or self.refreshed or self.removed)


def pack_changes(folds: Iterable[KeyFold], rules: Mapping[int, RealmRules]) -> SessionChanges:
    """Pack what the folds changed, and make that their stored state. ``rules``: by realm_id.

    Raises FoldFailed with the keys whose changes can't be packed.
    """
    changed = [fold for fold in folds if fold.changed]
    merged = [pair for fold in changed for pair in fold.merged]
    changes = SessionChanges(
        UsageChanges(merged),
        merged=[
            (
                pending.session_id,
                session.session_id,
                session.user_key,
                *stored_place(session),
            )
            for pending, session in merged
            if pending.prior is not None and pending.prior.single_hour is None
        ],
    )
    changes.removed.extend(pack_id(pending) for pending, _ in merged)
    failed: list[AllocationKey] = []
    cause: Exception | None = None
    for fold in changed:
        try:
            _pack_fold(changes, fold, rules)
        except Exception as error:  # noqa: BLE001  # a bug may raise anything
            failed.append(fold.key)
            cause = error
    if failed:
        raise FoldFailed(failed) from cause
    return changes


def _pack_fold(changes: SessionChanges, fold: KeyFold, rules: Mapping[int, RealmRules]) -> None:
    key, active = fold.key, fold.active
    for session in fold.changed:
        # A session without an address is on the server of the key's active session.
        address = session.server_address
        if address is None and active is not None:
            address = active.server_address
        changes.activity.add(
            key.database,
            key.allocation_id,
            address,
            session.last_seen_at,
            session.started_at if session.start_known and session.prior is None else None,
        )
        _pack_session(changes, key, session, rules[session.realm_id])
    fold.changed, fold.merged = NO_SESSIONS, NO_MERGES


def stored_state(
    session: SessionState,
    slow: tuple[object, ...],
    *,
    single_hour: int | None,
    recheck_at: int,
    end_events: int,
    announced_end: tuple[object, ...] | None,
) -> StoredState:
    """The stored state of a session that is stored as it is now."""
    return StoredState(
        active_until=session.active_until,
        ended=session.ended_at is not None,
        confirmed=session.confirmed,
        estimated=session.estimated,
        usage=tuple(session.usage),
        single_hour=single_hour,
        server_address=session.server_address,
        transport=session.transport,
        slow_columns=_shared(slow),
        recheck_at=recheck_at,
        end_events=end_events,
        announced_end=announced_end,
    )


def _shared(slow: tuple[object, ...]) -> tuple[object, ...]:
    """An equal tuple, if one is stored: most open sessions of a server have equal ones."""
    if len(_SLOW_COLUMNS) >= MAX_SLOW_COLUMNS:
        _SLOW_COLUMNS.clear()
    return _SLOW_COLUMNS.setdefault(slow, slow)


def end_of(session: SessionState) -> tuple[object, ...] | None:
    """What a session.ended event says of a session; None if it says nothing."""
    if session.ended_at is None or not session.confirmed:
        return None
    return (
        session.ended_at,
        session.end_cause,
        session.client_total_count > 0,
        session.estimated,
        session.disputed,
        *session.usage,
    )


def _pack_session(
    changes: SessionChanges, key: AllocationKey, session: SessionState, rules: RealmRules
) -> None:
    prior = session.prior
    assert prior is None or isinstance(prior, StoredState)
    single_hour = changes.usage.add_session(session, rules.calendar)
    session.hourly_usage = NO_HOURS
    recheck_at = session.expires_at + rules.grace_at(session.started_at)
    slow = slow_columns(session)
    if prior is not None:
        if not prior.ended:
            recheck_at = min(recheck_at, prior.recheck_at)
            if prior.slow_columns == slow and prior.single_hour == single_hour:
                changes.refreshed.append(pack_refresh(session, recheck_at))
                prior.active_until = session.last_seen_at
                prior.usage = tuple(session.usage)
                prior.recheck_at = recheck_at
                return
        changes.removed.append(pack_id(session))
    end_events, announced_end = (
        (0, None) if prior is None else (prior.end_events, prior.announced_end)
    )
    end = end_of(session)
    if end is not None and end != announced_end:
        end_events, announced_end = end_events + 1, end
        changes.ended.append(session_ended.pack_event(key, session))
    row = pack_session(key, session, recheck_at, end_events, single_hour)
    if session.phase is Phase.CLOSED:  # nothing changes it any more
        changes.closed.append(row)
        return
    changes.opened.append(row)
    session.prior = stored_state(
        session,
        slow,
        single_hour=single_hour,
        recheck_at=recheck_at,
        end_events=end_events,
        announced_end=announced_end,
    )
