"""Silence: relay threads of coturn from which nothing is heard although they owe a word.

Each relay thread of coturn has its own connection to Redis, and one that a stalled Redis cut off
can stay silent for good while the others go on (docs/coturn.md#silent-connection). The rule:

- By the end of its lifetime coturn must say something of an allocation: `refreshed`, or `deleted`
  when nobody refreshed it. Nothing else is sure: clients refresh as late as a minute before the
  end, and traffic is reported every 4096 packets only. So a life that ran out without a word (it
  *ended as expired*) is one that its relay thread owed a word.
- The thread is silent when nothing at all was heard of it since before that word was due. Heard of
  since, it lost a word, not its voice.
- A word that was due within a capture gap is owed by nobody. One whose refresh may have fallen
  into a gap before is a weak sign: it takes two such lives, where else one is enough.
- A coturn that was started again owes nothing for the lives of the process before. That is seen by
  the numbers, which begin anew: a `new` with a number not above another that came more than
  ORDER_SECONDS before. (Within that time numbers are no order: coturn numbers a client when it
  connects, and gives it 60 seconds to allocate.)
- Nothing is said of a thread any more after FORGOTTEN_SECONDS: that coturn was taken away.

Owns the rule. Knows no table and no clock. Times are whole microseconds since the Unix epoch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from accounting.domain.session_fold import SECOND, SessionState

NUMBERS_PER_THREAD: Final = 10**15
"""An allocation id is its relay thread times this, plus a number that rises
(docs/coturn.md#ids-restart)."""
ORDER_SECONDS: Final = 90
LATENESS_SECONDS: Final = 5
"""How long after a lifetime's end its `deleted` may come."""
FORGOTTEN_SECONDS: Final = 86_400


class RelayThread(NamedTuple):
    """A relay thread of one coturn. ``server``: its address without the port, '' before 4.6."""

    database: int
    server: str
    thread: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadStatus:
    """What is known of a relay thread.

    ``highest_id``: of the ``new`` that came at ``highest_at``, within one run of coturn.
    ``restarted_at``: when its coturn was last seen to have started. ``unheard``: lives that ran out
    without a word since it was last heard at ``heard_at``; the first word was due at
    ``overdue_since``; ``certain`` when no gap can explain it.
    """

    last_report_at: int
    highest_id: int = 0
    highest_at: int | None = None
    restarted_at: int | None = None
    missed_count: int = 0
    not_explained_by_gap: bool = False
    overdue_since: int | None = None

    def is_silent(self, now: int) -> bool:
        """Whether its silence is worth an alarm at ``now``, the time until which all is settled."""
        if self.overdue_since is None or now - self.overdue_since > FORGOTTEN_SECONDS * SECOND:
            return False
        return self.not_explained_by_gap or self.missed_count > 1


LocatedSession = tuple[int, int, str | None, SessionState]
"""A life and where it is: database, allocation id, the server's ``ip:port`` if known."""

ThreadStatuses = Mapping[RelayThread, ThreadStatus]


def relay_thread(database: int, allocation_id: int, server_address: str | None) -> RelayThread:
    """The relay thread of an allocation on the server that listens at ``ip:port``."""
    server = (server_address or "").rpartition(":")[0]
    return RelayThread(database, server, allocation_id // NUMBERS_PER_THREAD)


def record_activity(
    statuses: ThreadStatuses, sessions: Iterable[LocatedSession]
) -> dict[RelayThread, ThreadStatus]:
    """What is known of the relay threads after these lives were heard of: those that changed."""
    last_reports: dict[tuple[int, int, str | None], int] = {}
    begun: list[tuple[int, int, RelayThread]] = []
    for database, allocation_id, address, session in sessions:
        place = database, allocation_id // NUMBERS_PER_THREAD, address
        if last_reports.get(place, 0) < session.last_seen_at:
            last_reports[place] = session.last_seen_at
        if session.start_known and session.prior is None:
            thread = relay_thread(database, allocation_id, address)
            begun.append((session.started_at, allocation_id, thread))
    changed: dict[RelayThread, ThreadStatus] = {}
    for (database, number, address), at in last_reports.items():
        thread = relay_thread(database, number * NUMBERS_PER_THREAD, address)
        voice = changed.get(thread) or statuses.get(thread)
        if voice is None:
            changed[thread] = ThreadStatus(last_report_at=at)
        elif at > voice.last_report_at:
            changed[thread] = replace(
                voice,
                last_report_at=at,
                missed_count=0,
                not_explained_by_gap=False,
                overdue_since=None,
            )
    begun.sort()
    for at, allocation_id, thread in begun:
        voice = changed.get(thread) or statuses[thread]
        if voice.highest_at is None or allocation_id > voice.highest_id:
            changed[thread] = replace(voice, highest_id=allocation_id, highest_at=at)
        elif at - voice.highest_at > ORDER_SECONDS * SECOND:
            voice = replace(voice, highest_id=allocation_id, highest_at=at, restarted_at=at)
            changed[thread] = voice
            changed |= _clear_overdue({**statuses, **changed}, thread)
    return changed


def _clear_overdue(
    statuses: ThreadStatuses, restarted: RelayThread
) -> dict[RelayThread, ThreadStatus]:
    """All threads of a server that was started again owe nothing any more."""
    return {
        thread: replace(voice, missed_count=0, not_explained_by_gap=False, overdue_since=None)
        for thread, voice in statuses.items()
        if thread[:2] == restarted[:2] and voice.overdue_since is not None
    }


def record_expiry(
    statuses: ThreadStatuses, expired: Iterable[LocatedSession], gaps: Sequence[tuple[int, int]]
) -> dict[RelayThread, ThreadStatus]:
    """What is known after these lives ended as expired: the voices that changed.

    ``gaps``: (from, to) of the source's capture gaps.
    """
    changed: dict[RelayThread, ThreadStatus] = {}
    started: dict[tuple[int, str], int] = {}
    for thread, known in statuses.items():
        if known.restarted_at is not None:
            server = thread[:2]
            started[server] = max(started.get(server, 0), known.restarted_at)
    for database, allocation_id, address, session in expired:
        thread = relay_thread(database, allocation_id, address)
        voice = changed.get(thread) or statuses.get(thread)
        due_at = session.expires_at
        if (
            voice is None
            or not session.confirmed
            or voice.last_report_at >= due_at
            or session.last_seen_at < started.get(thread[:2], 0)
            or any(f - LATENESS_SECONDS * SECOND <= due_at <= t for f, t in gaps)
        ):
            continue
        explained = any(f < due_at and t > session.last_seen_at for f, t in gaps)
        changed[thread] = replace(
            voice,
            missed_count=voice.missed_count + 1,
            not_explained_by_gap=voice.not_explained_by_gap or not explained,
            overdue_since=due_at
            if voice.overdue_since is None
            else min(voice.overdue_since, due_at),
        )
    return changed
