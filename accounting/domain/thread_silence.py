"""Silent relay threads of coturn: threads without any report although one is overdue.

Each relay thread has its own connection to Redis. When Redis stalls, one of these connections can
stay dead for good while the others go on (docs/coturn.md#silent-connection). The rule:

- By the end of an allocation's lifetime coturn publishes `refreshed`, or `deleted` if the client
  did not refresh. Nothing else is certain: clients refresh as late as a minute before the end, and
  interims come every 4096 packets only. So when a session expires, a report of its relay thread is
  overdue.
- A thread is silent if it has published nothing since before that report was due. If it has, a
  message was lost, but the connection works.
- A report that was due within a capture gap is not overdue. If the session's refresh may have been
  lost in an earlier gap, two such sessions are needed instead of one.
- After a restart of coturn, sessions of the former process do not count. A restart shows in the
  ids, which start again: a `new` has an id below the highest one, which came more than
  ID_ORDER_SECONDS before. (Within that time ids are not in order: coturn numbers a client when it
  connects, and gives it 60 seconds to allocate.)
- A thread is no longer silent after MAX_ALARM_SECONDS: that coturn was removed.

Times are whole microseconds since the Unix epoch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Final, NamedTuple

from accounting.domain.session_fold import SECOND

IDS_PER_THREAD: Final = 10**15
"""An allocation id is its relay thread times this, plus a number that rises
(docs/coturn.md#ids-restart)."""
ID_ORDER_SECONDS: Final = 90
DELETED_DELAY_SECONDS: Final = 5
"""How long after the end of a lifetime coturn may publish `deleted`."""
MAX_ALARM_SECONDS: Final = 86_400


class RelayThread(NamedTuple):
    """A relay thread of one coturn. ``server``: its address without the port, '' before 4.6."""

    database: int
    server: str
    thread: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadStatus:
    """The status of a relay thread.

    ``highest_id``: of the ``new`` received at ``highest_at``, within one run of coturn.
    ``restarted_at``: the first ``new`` after the last restart of its coturn. ``missed_count``:
    sessions that expired since its last report; the first report was due at ``overdue_since``.
    ``not_explained_by_gap``: a capture gap can't explain at least one of them.
    """

    last_report_at: int
    highest_id: int = 0
    highest_at: int | None = None
    restarted_at: int | None = None
    missed_count: int = 0
    not_explained_by_gap: bool = False
    overdue_since: int | None = None

    def is_silent(self, now: int) -> bool:
        """Whether to raise an alarm at ``now``, up to which everything is settled."""
        if self.overdue_since is None or now - self.overdue_since > MAX_ALARM_SECONDS * SECOND:
            return False
        return self.not_explained_by_gap or self.missed_count > 1


class ExpiredSession(NamedTuple):
    """What a session that expired says of its relay thread.

    ``server_address``: ``ip:port`` if known.
    """

    database: int
    allocation_id: int
    server_address: str | None
    last_seen_at: int
    expires_at: int
    confirmed: bool


class ThreadActivity:
    """What the sessions with new reports of one batch say of their relay threads.

    A thread is (database, number, its server's ``ip:port`` if known), as sessions have them.
    ``last_reports``: the time of each thread's last report. ``started``: when each session began
    whose ``new`` is among the reports, with its allocation id and its thread.
    """

    def __init__(self) -> None:
        self.last_reports: dict[tuple[int, int, str | None], int] = {}
        self.started: list[tuple[int, int, tuple[int, int, str | None]]] = []

    def add(
        self,
        database: int,
        allocation_id: int,
        server_address: str | None,
        last_seen_at: int,
        started_at: int | None,
    ) -> None:
        """Add a session. ``started_at``: if it began with a ``new`` among the reports."""
        thread = database, allocation_id // IDS_PER_THREAD, server_address
        if self.last_reports.get(thread, 0) < last_seen_at:
            self.last_reports[thread] = last_seen_at
        if started_at is not None:
            self.started.append((started_at, allocation_id, thread))


ThreadStatuses = Mapping[RelayThread, ThreadStatus]


def relay_thread(database: int, number: int, server_address: str | None) -> RelayThread:
    """A relay thread of the server that listens at ``ip:port``."""
    server = (server_address or "").rpartition(":")[0]
    return RelayThread(database, server, number)


def record_activity(
    statuses: ThreadStatuses, activity: ThreadActivity
) -> dict[RelayThread, ThreadStatus]:
    """The statuses that change when sessions have new reports."""
    changed: dict[RelayThread, ThreadStatus] = {}
    for located, at in activity.last_reports.items():
        thread = relay_thread(*located)
        status = changed.get(thread) or statuses.get(thread)
        if status is None:
            changed[thread] = ThreadStatus(last_report_at=at)
        elif at > status.last_report_at:
            changed[thread] = replace(
                status,
                last_report_at=at,
                missed_count=0,
                not_explained_by_gap=False,
                overdue_since=None,
            )
    for at, allocation_id, located in sorted(activity.started, key=itemgetter(0, 1)):
        thread = relay_thread(*located)
        status = changed.get(thread) or statuses[thread]
        if status.highest_at is None or allocation_id > status.highest_id:
            changed[thread] = replace(status, highest_id=allocation_id, highest_at=at)
        elif at - status.highest_at > ID_ORDER_SECONDS * SECOND:
            status = replace(status, highest_id=allocation_id, highest_at=at, restarted_at=at)
            changed[thread] = status
            changed |= _clear_overdue({**statuses, **changed}, thread)
    return changed


def _clear_overdue(
    statuses: ThreadStatuses, restarted: RelayThread
) -> dict[RelayThread, ThreadStatus]:
    """The changed statuses of all threads of a restarted server: nothing of theirs is overdue."""
    return {
        thread: replace(status, missed_count=0, not_explained_by_gap=False, overdue_since=None)
        for thread, status in statuses.items()
        if thread[:2] == restarted[:2] and status.overdue_since is not None
    }


def record_expiry(
    statuses: ThreadStatuses, expired: Iterable[ExpiredSession], gaps: Sequence[tuple[int, int]]
) -> dict[RelayThread, ThreadStatus]:
    """The statuses that change when these sessions have expired.

    ``gaps``: (from, to) of the source's capture gaps.
    """
    changed: dict[RelayThread, ThreadStatus] = {}
    restarted: dict[tuple[int, str], int] = {}
    for thread, earlier in statuses.items():
        if earlier.restarted_at is not None:
            server = thread[:2]
            restarted[server] = max(restarted.get(server, 0), earlier.restarted_at)
    for session in expired:
        number = session.allocation_id // IDS_PER_THREAD
        thread = relay_thread(session.database, number, session.server_address)
        status = changed.get(thread) or statuses.get(thread)
        due_at = session.expires_at
        if (
            status is None
            or not session.confirmed
            or status.last_report_at >= due_at
            or session.last_seen_at < restarted.get(thread[:2], 0)
            or any(f - DELETED_DELAY_SECONDS * SECOND <= due_at <= t for f, t in gaps)
        ):
            continue
        explained = any(f < due_at and t > session.last_seen_at for f, t in gaps)
        changed[thread] = replace(
            status,
            missed_count=status.missed_count + 1,
            not_explained_by_gap=status.not_explained_by_gap or not explained,
            overdue_since=due_at
            if status.overdue_since is None
            else min(status.overdue_since, due_at),
        )
    return changed
