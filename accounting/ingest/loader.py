"""Load messages from a spool into Postgres, in transactions that each move the source's position.

A transaction only commits if the source is still at the position where it started. A second
loader, a retry after a lost answer to COMMIT, or a replayed spool therefore count nothing twice.
"""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from sqlalchemy import Connection, Engine

from accounting.capture.spool.records import Gap, SpoolState
from accounting.capture.spool.spool import Spool
from accounting.db.binary_copy import binary_cursor
from accounting.db.clock import CLOCK_TOLERANCE_SECONDS, database_now
from accounting.db.engine import lost_connections, psycopg_connection
from accounting.db.locks import lock
from accounting.domain.calendar import from_micros, to_micros
from accounting.domain.rate_limit import RateLimit
from accounting.domain.realm_rules import RealmRule
from accounting.domain.server_identity import ServerIdentity
from accounting.domain.session_fold import AllocationKey, StatusKeySighting
from accounting.errors import ConnectionLost, DamagedChunk, SpoolLacksMessages
from accounting.identities.identity_resolver import MAX_REALMS, IdentityResolver
from accounting.ingest import (
    key_sightings,
    message_counts,
    rejected_messages,
    report_queries,
)
from accounting.ingest.load_position import RESTORED_SPOOL, LoadPosition, find_load_position
from accounting.ingest.message_counts import CounterKey
from accounting.ingest.refused_epochs import record_refused_epoch, refused_epoch
from accounting.ingest.row_encoder import (
    DAY_MICROSECONDS,
    DueSightings,
    NewDay,
    NewRealm,
    RowEncoder,
    UnreadKeys,
)
from accounting.ingest.source_lease import check_lease, this_host
from accounting.sessions.fold_failure import FoldFailed
from accounting.sessions.settle import gc_paused, settle_source
from accounting.sessions.settler import DUE_BATCH, Settler, take_care
from accounting.sources import gap_queries, source_queries
from accounting.sources.retire import reopen_if_retired
from accounting.sources.source_queries import SourceRow
from accounting.sources.watermark_queries import Watermark

BATCH: Final = 50_000
"""The most messages that one transaction loads."""
MEMORY_LIMIT: Final = 80_000
"""How many keys with open sessions stay in memory, at two kilobytes each."""

CORRECTION_TIMEOUT_SECONDS: Final = 60.0
"""How long times that are unconfirmed or later than now wait for the collector's correction.

Or twice the lease, which has time for several comparisons of the clocks, if that is longer."""


GO_BACK_TIMEOUT_SECONDS: Final = 60.0
"""How long messages that the spool lacks are awaited from the backlog of Redis. Or four times the
lease, if that is shorter: the collector looks four times in one."""


class _SourceAdded(Exception):
    """Raised where another loader added the source: its lock was not taken in the common order."""


class _UnsettledReports(Exception):
    """Raised where the source has reports that were loaded without being settled."""

    def __init__(self, source_id: int) -> None:
        super().__init__(source_id)
        self.source_id = source_id


@dataclass(slots=True)
class Loader:
    """Loads one spool, unless another collector has the lease of its source.

    ``default_rule``: the first rule of a realm that has none. With nothing to load, the loader
    checks the lease four times within ``lease_seconds``. ``rejected_per_hour``: how many rejected
    messages of each hour are stored; all are counted. What it caches of the database is valid
    while the row of the source is the one that this loader wrote last, ``_expected_version``. Its
    position is not enough: a backup of the same one may lack gaps, and have sessions that expired.
    """

    engine: Engine
    spool: Spool
    default_rule: RealmRule
    lease_seconds: float = 15.0
    rejected_per_hour: int = rejected_messages.PER_HOUR
    max_realms: int = MAX_REALMS
    memory_limit: int = MEMORY_LIMIT
    _settler: Settler | None = field(init=False, default=None)
    _failed_keys: set[AllocationKey] = field(init=False, default_factory=set)
    _identities: IdentityResolver = field(init=False)
    _partitions: set[int] = field(init=False, default_factory=set)
    _gaps: dict[int, Gap] = field(init=False, default_factory=dict)
    _caught_up: bool = field(init=False, default=False)
    _loaded_state: SpoolState | None = field(init=False, default=None)
    _expected_version: int | None = field(init=False, default=None)
    _last_sighting: int = field(init=False, default=0)
    _claimed: set[ServerIdentity] = field(init=False, default_factory=set)
    _checked_at: float = field(init=False, default=float("-inf"))
    _lost_spool_gap_open: bool = field(init=False, default=True)
    _rate_limit: RateLimit = field(init=False, default_factory=RateLimit)
    _held_back_since: float | None = field(init=False, default=None)
    _lacks_messages_since: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._settler = None
        self._identities = IdentityResolver(self.default_rule, self.max_realms)

    @property
    def caught_up(self) -> bool:
        """Whether the last transaction loaded everything that was in the spool at its start."""
        return self._caught_up

    def load(self, limit: int = BATCH) -> int:
        """Load the next messages; returns how many, 0 when there are none.

        Raises :class:`ConnectionLost` when the connection to Postgres fails: the transaction is
        committed or rolled back as a whole. Raises :class:`LeaseHeld` when another collector has
        this source, and :class:`SourceConflict` when all that is left was captured from a Redis of
        another source.
        """
        while True:
            try:
                return self._load(limit)
            except DamagedChunk as damage:
                # The transaction is rolled back; the next one has the gap, and then what follows.
                self.spool.replace_by_gap(damage)
            except _SourceAdded:
                continue
            except FoldFailed as failure:
                take_care(self._failed_keys, failure)
            except _UnsettledReports as error:
                settle_source(self.engine, error.source_id, wait=True)

    def _load(self, limit: int) -> int:
        state = self.spool.state()
        lease_check_due = time.monotonic() >= self._checked_at + self.lease_seconds / 4
        if state == self._loaded_state and not self._new_gaps() and not lease_check_due:
            return 0
        with gc_paused(), lost_connections(), self.engine.begin() as connection:
            source = self._lock_source(connection, state)
            settler = self._settler or Settler(
                source.source_id, memory_limit=self.memory_limit, failed_keys=self._failed_keys
            )
            settler.lock(connection)
            watermark = settler.begin(connection)
            if (watermark.epoch, watermark.position) != (source.epoch, source.position):
                raise _UnsettledReports(source.source_id)
            # Read under the lock of the source, when no other loader works on the spool, and before
            # the messages, so that these include everything that the state counts as captured.
            now = to_micros(database_now(connection))
            state, latest = self._confirm_times(now)
            gaps = self._new_gaps(latest)
            refused = refused_epoch(connection, self.spool, source, state, self._claimed)
            epoch_numbers, start = self._find_load_position(connection, source, now)
            end = state.captured_epoch, state.captured_position
            if refused is not None:
                end = min(end, (refused.epoch.number, 0))
            self._write_gaps(connection, source, epoch_numbers, gaps)
            encoder = RowEncoder(
                spool=self.spool,
                source_id=source.source_id,
                epoch_numbers=epoch_numbers,
                identities=self._identities,
                memory=settler.open(connection),
                rate_limit=replace(self._rate_limit),
                partitions=set(self._partitions),
                reached=start,
                end=max(start, end),
                limit=limit,
                received_at=source.last_received_at or 0,
                latest=latest,
            )
            if refused is not None and not encoder.has_more():
                if refused.epoch.number == state.captured_epoch:
                    raise refused.conflict
                record_refused_epoch(connection, self.spool, source, refused, latest)
            added = self._write(connection, encoder, settler, start)
            reached, version = self._advance_source(
                connection, source, encoder, state, is_own=refused is None
            )
            due = settler.finish(
                connection,
                watermark,
                replace(reached, last_sighting=added[-1][:3] if added else watermark.last_sighting),
            )
            if state.captured_from is not None and state.captured_from <= latest:
                self._close_lost_spool_gap(connection, source, state.captured_from)
        settler.committed()
        self._settler = settler
        if refused is None:
            self._claimed = {epoch.server for epoch in self.spool.epochs()}
        elif encoder.last is None:
            self.spool.discard_epoch(refused.epoch.number)
        self._expected_version = version
        self._rate_limit = encoder.rate_limit
        self._caught_up = encoder.reached >= encoder.end
        self._checked_at = time.monotonic()
        self._last_sighting = max(self._last_sighting, encoder.last_sighting)
        self._identities.committed()
        self._gaps.update({gap.number: gap for gap in gaps})
        self._lost_spool_gap_open &= state.captured_from is None or state.captured_from > latest
        self._partitions = encoder.partitions
        if encoder.last is None:
            is_idle = state.newest_at <= latest and refused is None and due < DUE_BATCH
            self._loaded_state = state if is_idle else None
            return 0
        self.spool.mark_loaded(encoder.last.origin.epoch, encoder.last.position)
        return encoder.message_count

    def _lock_source(self, connection: Connection, state: SpoolState) -> SourceRow:
        """Lock settling and the source, while this collector has the lease."""
        source_id = source_queries.find_source_id(connection, state.source)
        if source_id is not None:
            # Before the source, in the order of all that takes both locks.
            lock(connection, f"settle.{source_id}")
        elif not source_queries.add_source(connection, state.source, state.mode or "subscribe"):
            raise _SourceAdded
        source = source_queries.lock_known_source(connection, state.source)
        check_lease(connection, source, self.spool)
        if source.version != self._expected_version:
            self._clear_caches()
        return source

    def _find_load_position(
        self, connection: Connection, source: SourceRow, now: int
    ) -> LoadPosition:
        since = self._lacks_messages_since or time.monotonic()
        waited_seconds = time.monotonic() - since
        waits = waited_seconds < min(GO_BACK_TIMEOUT_SECONDS, 4 * self.lease_seconds)
        try:
            found = find_load_position(connection, self.spool, source, now, waits=waits)
        except SpoolLacksMessages:
            self._lacks_messages_since = since
            raise
        self._lacks_messages_since = None
        return found

    def _confirm_times(self, now: int) -> tuple[SpoolState, int]:
        """The spool's state, and the latest time that may be loaded now. Times in microseconds.

        Times that are not confirmed, or later than the database's now, wait for the collector. What
        it doesn't correct in time becomes an estimate, at the latest now.
        """
        state, latest = self.spool.state(), now + CLOCK_TOLERANCE_SECONDS * 1_000_000
        if state.unconfirmed_from is None and state.newest_at <= latest:
            self._held_back_since = None
            return state, latest
        if self._held_back_since is None:
            self._held_back_since = time.monotonic()
        waited_seconds = time.monotonic() - self._held_back_since
        timeout_seconds = max(CORRECTION_TIMEOUT_SECONDS, 2 * self.lease_seconds)
        confirmed_until = latest if state.unconfirmed_from is None else state.unconfirmed_from
        if waited_seconds < timeout_seconds:
            return state, min(latest, confirmed_until)
        self.spool.shift_times(0, after=min(now, confirmed_until), latest=now)
        return self.spool.state(), latest

    def _new_gaps(self, latest: int | None = None) -> list[Gap]:
        """The spool's gaps that changed since they were written to the database.

        Without those that begin after ``latest``; one that ends later is still open.
        """
        gaps = self.spool.gaps()
        if latest is not None:
            gaps = [
                replace(gap, to_at=None) if gap.to_at and gap.to_at > latest else gap
                for gap in gaps
                if gap.from_at <= latest
            ]
        return [gap for gap in gaps if self._gaps.get(gap.number) != gap]

    def _clear_caches(self) -> None:
        """Forget the database's contents: another loader wrote to it, or a backup was restored."""
        self._settler = None
        self._identities = IdentityResolver(self.default_rule, self.max_realms)
        self._partitions = set()
        self._gaps = {}
        self._claimed = set()
        self._lost_spool_gap_open = True
        self._last_sighting = 0

    def _advance_source(
        self,
        connection: Connection,
        source: SourceRow,
        encoder: RowEncoder,
        state: SpoolState,
        *,
        is_own: bool,
    ) -> tuple[Watermark, int]:
        """Move the source to the reached position.

        Returns the position as the database numbers it, and the version of the source's row.
        ``is_own``: the spool's checkpoints are the source's, not those of another one's Redis.
        Raises :class:`ConnectionLost` when another loader moved the source.
        """
        last_received_at = None if encoder.last is None else encoder.last.received_at
        caught_up = encoder.reached >= (state.captured_epoch, state.captured_position)
        captured_until = state.captured_until
        if not is_own or (captured_until is not None and captured_until > encoder.latest):
            captured_until = None
        database = state.stream_database
        if encoder.last is not None and not caught_up:
            database = encoder.last.origin.database
        # An offset only counts within the replication history that it was captured from.
        in_stream = state.resume_point is not None and encoder.reached[0] == state.captured_epoch
        epoch, position = encoder.epoch_numbers[encoder.reached[0]], encoder.reached[1]
        loaded_until = captured_until if caught_up and captured_until else last_received_at
        version = source_queries.advance(
            connection,
            source,
            epoch=epoch,
            position=position,
            captured_until=captured_until,
            loaded_until=loaded_until,
            last_received_at=last_received_at,
            mode=state.mode or "subscribe",
            replication_id=state.replication_id if in_stream else None,
            stream_database=database if in_stream else None,
            loaded_by_host=this_host(),
        )
        if version is None:
            raise ConnectionLost(
                f"source {source.source} moved while loading: another loader is at work"
            )
        reopen_if_retired(connection, source, last_received_at)
        reached = Watermark(
            source_id=source.source_id,
            epoch=epoch,
            position=position,
            received_at=source.last_received_at if last_received_at is None else last_received_at,
            settled_until=loaded_until,
        )
        return reached, version

    def _write(
        self,
        connection: Connection,
        encoder: RowEncoder,
        settler: Settler,
        start: tuple[int, int],
    ) -> list[StatusKeySighting]:
        """Insert messages and key sightings, and fold them; returns the sightings."""
        sightings = self.spool.sightings(self._last_sighting)
        if not encoder.has_more() and not sightings:
            return []
        self._identities.begin(connection)
        # Sightings before the start are loaded, or were discarded when another collector took over.
        encoder.sightings = [
            sighting
            for sighting in sightings
            if start <= (sighting.epoch, sighting.position) and sighting.seen_at <= encoder.latest
        ]
        first = encoder.epoch_numbers[start[0]], start[1]
        added: list[StatusKeySighting] = []
        loaded = 0
        while True:
            with binary_cursor(psycopg_connection(connection)) as cursor:
                # Postgres reads rows while the next ones are encoded.
                loaded += report_queries.copy_reports(cursor, encoder.encoded_chunks())
            match encoder.needs:
                case None:
                    break
                case NewRealm(realm):
                    self._identities.add_realm(connection, realm)
                    encoder.memory.add_rules(self._identities.rules)
                case NewDay(day):
                    date = from_micros(day * DAY_MICROSECONDS).date()
                    report_queries.ensure_partition(connection, date)
                    encoder.partitions.add(day)
                case UnreadKeys(realm_ids):
                    encoder.memory.require(connection, realm_ids)
                case DueSightings(due):
                    identified = key_sightings.identify(
                        connection, self._identities, due, encoder.epoch_numbers
                    )
                    encoder.memory.add_rules(self._identities.rules)
                    due_added = key_sightings.add_sightings(
                        connection, encoder.source_id, identified, first
                    )
                    settler.apply(connection, due_added)
                    added += due_added
        self._identities.write(connection)
        rejected_messages.add(
            connection,
            encoder.source_id,
            encoder.rejected,
            per_hour=self.rejected_per_hour,
            may_be_stored=lambda message: (
                not self._identities.names_erased_user(message.channel, message.received_at)
            ),
        )
        counts = Counter(CounterKey("rejected", message.reason) for message in encoder.rejected)
        counts[CounterKey("loaded")] = loaded
        message_counts.add(connection, encoder.source_id, counts)
        return added

    def _write_gaps(
        self,
        connection: Connection,
        source: SourceRow,
        epoch_numbers: Mapping[int, int],
        gaps: list[Gap],
    ) -> None:
        epochs = {epoch.number: epoch for epoch in self.spool.epochs()}
        for gap in gaps:
            epoch = epochs[gap.epoch]
            if epoch.cause == RESTORED_SPOOL and gap.to_at and gap.to_at <= epoch.started_at:
                continue  # the database has this gap under the epoch's former token
            gap_queries.upsert_gap(
                connection,
                source.source_id,
                epoch_token=epoch.token,
                gap_number=gap.number,
                after=(epoch_numbers[gap.epoch], gap.position),
                from_at=gap.from_at,
                to_at=gap.to_at,
                cause=gap.cause,
                detail=gap.detail,
            )

    def _close_lost_spool_gap(
        self, connection: Connection, source: SourceRow, captured_from: int
    ) -> None:
        if self._lost_spool_gap_open:
            first_epoch = self.spool.epochs()[0]
            gap_queries.close_lost_spool_gap(
                connection, source.source_id, first_epoch.token, captured_from
            )
