"""Load: from the spool into the reports, each message once.

The rows and the source's position move in one transaction, guarded by the position it is expected
to stand at: a second loader, a retry after a lost COMMIT answer or a replayed spool counts nothing
twice. Where to load on is ``resume``'s decision, what a message says is
``domain.coturn_messages``'s.
"""

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Final

import structlog
from sqlalchemy import Connection, Engine

from accounting.capture.spool.pruning import prune
from accounting.capture.spool.records import Gap, RawKeySighting, SpoolState
from accounting.capture.spool.spool import Spool
from accounting.db.binary_copy import binary_cursor
from accounting.db.engine import lost_connections, psycopg_connection
from accounting.db.migrations import require_head
from accounting.domain.calendar import from_micros
from accounting.domain.coturn_messages import parse_channel_prefix, parse_status_key
from accounting.domain.rate_limit import RateLimit
from accounting.domain.realm_rules import RealmRule
from accounting.domain.session_fold import StatusKeySighting
from accounting.errors import ConnectionLost, LeaseHeld
from accounting.identities.names import Identities, Identity
from accounting.ingest import message_counts, report_queries
from accounting.ingest.load_position import OLDER_SPOOL, resume
from accounting.ingest.message_counts import CounterKey
from accounting.ingest.row_encoder import DAY, Rows
from accounting.ingest.source_lease import check_lease, this_host
from accounting.sessions.key_sighting_queries import add_sightings
from accounting.sources import source_queries
from accounting.sources.source_queries import SourceRow
from accounting.waiting import Backoff

log = structlog.get_logger()

BATCH: Final = 100_000
"""Messages in one transaction at the most."""
IDLE_SECONDS: Final = 0.1
PATIENCE_SECONDS: Final = 0.25
"""Once all is loaded: a transaction by itself costs as much as a thousand messages."""
MIN_RETRY_SECONDS: Final = 0.2
MAX_RETRY_SECONDS: Final = 10.0
PRUNE_SECONDS: Final = 60
DRAIN_SECONDS: Final = 20.0
"""How long a loader that should end goes on with what is left."""


@dataclass(slots=True)
class Loader:
    """Loads one spool, unless another collector has the lease of its source.

    ``default_rule``: for realms not set up. ``lease_seconds``: how long a lease lasts; with nothing
    to load it looks oftener than that whether another collector has it.
    """

    engine: Engine
    spool: Spool
    default_rule: RealmRule
    lease_seconds: float = 15.0
    _identities: Identities = field(init=False)
    _partitions: set[int] = field(init=False, default_factory=set)
    _gaps: dict[int, Gap] = field(init=False, default_factory=dict)
    _at_end: bool = field(init=False, default=False)
    _idle: SpoolState | None = field(init=False, default=None)
    _left: tuple[int, int] | None = field(init=False, default=None)
    _sighted: int = field(init=False, default=0)
    _looked_at: float = field(init=False, default=float("-inf"))
    _first_gap_open: bool = field(init=False, default=True)
    _allowance: RateLimit = field(init=False, default_factory=RateLimit)

    def __post_init__(self) -> None:
        self._identities = Identities(self.default_rule)

    @property
    def is_at_end(self) -> bool:
        """Whether the last transaction left nothing of what was there when it began."""
        return self._at_end

    def load(self, limit: int = BATCH) -> int:
        """Load the next messages; returns how many, 0 when there are none.

        Raises :class:`ConnectionLost` when Postgres is away: nothing is changed then, or all.
        And :class:`LeaseHeld` when another collector has this source.
        """
        state = self.spool.state()
        look_after = self._looked_at + self.lease_seconds / 4
        if state == self._idle and not self._new_gaps() and time.monotonic() < look_after:
            return 0
        with lost_connections(), self.engine.begin() as connection:
            source = source_queries.open_source(connection, state.source, state.mode or "subscribe")
            check_lease(connection, source, self.spool)
            if (source.epoch, source.position) != self._left:
                self._forget()
            # Now that no other loader is at work. And the state before the messages, so that they
            # hold at least what it says.
            state = self.spool.state()
            gaps = self._new_gaps()
            numbers, start = resume(connection, self.spool, source)
            rows = Rows(
                spool=self.spool,
                source_id=source.source_id,
                numbers=numbers,
                identities=self._identities,
                allowance=replace(self._allowance),
                partitions=set(self._partitions),
                place=start,
                end=max(start, (state.captured_epoch, state.captured_position)),
                limit=limit,
                received_at=source.last_received_at or 0,
            )
            sighted = self._write(connection, rows, start)
            left = self._move(connection, source, rows, state)
            self._write_gaps(connection, source, numbers, gaps, state)
        self._left, self._allowance = left, rows.allowance
        self._at_end = rows.place >= rows.end
        self._looked_at = time.monotonic()
        self._sighted = sighted
        self._identities.committed()
        self._gaps.update({gap.number: gap for gap in gaps})
        self._first_gap_open &= state.captured_from is None
        self._partitions = rows.partitions
        if rows.last is None:
            self._idle = state
            return 0
        self.spool.mark_loaded(rows.last.origin.epoch, rows.last.position)
        return rows.count

    def _new_gaps(self) -> list[Gap]:
        """The spool's gaps that are not in the database as they are now."""
        return [gap for gap in self.spool.gaps() if self._gaps.get(gap.number) != gap]

    def _forget(self) -> None:
        """Another loader was at work, or the database was set back to a backup.

        What this one knows of its rows may be wrong.
        """
        self._identities = Identities(self.default_rule)
        self._partitions = set()
        self._gaps = {}
        self._first_gap_open = True
        self._sighted = 0

    def _move(
        self,
        connection: Connection,
        source: SourceRow,
        rows: Rows,
        state: SpoolState,
    ) -> tuple[int, int]:
        """Move the source to what is reached, and return that as the database has it.

        Raises :class:`ConnectionLost` when somebody else moved it: nothing may be written then.
        """
        last = None if rows.last is None else rows.last.received_at
        at_end = rows.place >= (state.captured_epoch, state.captured_position)
        database = state.stream_database
        if rows.last is not None and not at_end:
            database = rows.last.origin.database
        # An offset counts the bytes of its own history: in another one it is a wrong place.
        in_stream = state.resume_point is not None and rows.place[0] == state.captured_epoch
        left = rows.numbers[rows.place[0]], rows.place[1]
        moved = source_queries.advance(
            connection,
            source,
            epoch=left[0],
            position=left[1],
            captured_until=state.captured_until,
            loaded_until=state.captured_until if at_end else last,
            last_received_at=last,
            mode=state.mode or "subscribe",
            replication_id=state.replication_id if in_stream else None,
            stream_database=database if in_stream else None,
            loaded_by_host=this_host(),
        )
        if not moved:
            raise ConnectionLost(
                f"source {source.source} moved while loading: another loader is at work"
            )
        return left

    def _write(self, connection: Connection, rows: Rows, start: tuple[int, int]) -> int:
        """Append messages and key sightings to the books; returns the last sighting's number."""
        sightings = self.spool.sightings(self._sighted)
        if not rows.has_more() and not sightings:
            return self._sighted
        self._identities.begin(connection)
        loaded = self._copy(connection, rows)
        # What lies before the start is loaded, or was discarded when another went on there.
        sightings = [one for one in sightings if start <= (one.epoch, one.position) <= rows.place]
        seen = self._identify(connection, sightings, rows.numbers)
        self._identities.write(connection)
        kept = [
            one
            for one in rows.rejected
            if not self._identities.names_erased(one.channel, one.received_at)
        ]
        report_queries.reject(connection, rows.source_id, kept)
        add_sightings(connection, rows.source_id, seen, (rows.numbers[start[0]], start[1]))
        counts = Counter(CounterKey("rejected", one.reason) for one in rows.rejected)
        counts[CounterKey("loaded")] = loaded
        message_counts.add(connection, rows.source_id, counts)
        return sightings[-1].number if sightings else self._sighted

    def _copy(self, connection: Connection, rows: Rows) -> int:
        """Append reports; returns how many. Postgres takes them in while further ones are made."""
        loaded = 0
        while rows.has_more():
            with binary_cursor(psycopg_connection(connection)) as cursor:
                loaded += report_queries.copy_reports(cursor, rows.pieces())
            match rows.missing:
                case bytes(realm):
                    self._identities.add_realm(connection, realm)
                case int(day):
                    report_queries.ensure_partition(connection, from_micros(day * DAY).date())
                    rows.partitions.add(day)
        return loaded

    def _identify(
        self,
        connection: Connection,
        sightings: Sequence[RawKeySighting],
        numbers: Mapping[int, int],
    ) -> list[StatusKeySighting]:
        seen: list[StatusKeySighting] = []
        for one in sightings:
            found = parse_status_key(one.key)
            if found is None:
                continue
            channel_prefix, allocation_id = found
            realm, username = parse_channel_prefix(channel_prefix)
            if not self._identities.has_realm(realm):
                self._identities.add_realm(connection, realm)
            known, _ = self._identities.known_at(one.seen_at)
            identity = known.get(channel_prefix) or self._identities.resolve(
                channel_prefix, realm, username, one.seen_at
            )
            seen.append(
                StatusKeySighting(
                    epoch=numbers[one.epoch],
                    position=one.position,
                    sighting=0,  # numbered by add_sightings
                    database=one.database,
                    **Identity.unpacked(identity)._asdict(),
                    allocation_id=allocation_id,
                    scan_started_at=one.scan_started_at,
                    seen_at=one.seen_at,
                    idle_seconds=one.idle_seconds,
                )
            )
        return seen

    def _write_gaps(
        self,
        connection: Connection,
        source: SourceRow,
        numbers: Mapping[int, int],
        gaps: list[Gap],
        state: SpoolState,
    ) -> None:
        epochs = {epoch.number: epoch for epoch in self.spool.epochs()}
        for gap in gaps:
            epoch = epochs[gap.epoch]
            if epoch.cause == OLDER_SPOOL and gap.to_at and gap.to_at <= epoch.started_at:
                continue  # the database has it under the epoch's former token
            source_queries.put_gap(
                connection,
                source.source_id,
                token=epoch.token,
                gap=gap.number,
                after=(numbers[gap.epoch], gap.position),
                from_at=gap.from_at,
                to_at=gap.to_at,
                cause=gap.cause,
                detail=gap.detail,
            )
        if self._first_gap_open and state.captured_from is not None:
            source_queries.close_first_gap(
                connection,
                source.source_id,
                next(iter(epochs.values())).token,
                state.captured_from,
            )


def run_loader(loader: Loader, stop: threading.Event, *, retention: timedelta) -> None:
    """Load until ``stop`` is set, then what is left, for DRAIN_SECONDS at most.

    Postgres away, or another collector's turn: tries again for ever, with backoff and jitter; the
    spool holds what comes.
    """
    backoff = Backoff(MIN_RETRY_SECONDS, MAX_RETRY_SECONDS)
    ready = False
    pruned_at = 0
    deadline = float("inf")
    while time.monotonic() <= deadline:
        try:
            if not ready:
                require_head(loader.engine)
                ready = True
            loaded = loader.load()
        except (ConnectionLost, LeaseHeld) as error:
            if stop.is_set():
                log.warning("what is left stays in the spool", reason=str(error))
                return
            pause_seconds = backoff.next_pause()
            log.warning(
                "can't load now, trying again",
                reason=str(error),
                retry_seconds=round(pause_seconds, 1),
            )
            stop.wait(pause_seconds)
            continue
        if backoff.has_failed:
            log.info("loading goes on")
            backoff.reset()
        if stop.is_set():
            if not loaded:
                return
            deadline = min(deadline, time.monotonic() + DRAIN_SECONDS)
        elif not loaded:
            pruned_at = _prune(loader.spool, pruned_at, retention)
            stop.wait(IDLE_SECONDS)
        elif loader.is_at_end:
            stop.wait(PATIENCE_SECONDS)
    log.warning("what is left stays in the spool", reason="there is too much of it")


def _prune(spool: Spool, pruned_at: int, retention: timedelta) -> int:
    """Delete what was loaded long ago, about once a minute; returns when that was done last."""
    state = spool.state()
    # Also by the ticks: where nobody publishes any more, names must not stay for ever.
    newest = max(state.last_received_at, state.captured_until or 0)
    if newest - pruned_at <= PRUNE_SECONDS * 1_000_000:
        return pruned_at
    prune(spool, newest - retention // timedelta(microseconds=1))
    return newest
