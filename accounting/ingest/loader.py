"""Load messages from a spool into Postgres, in transactions that each move the source's position.

A transaction only commits if the source is still at the position where it started. A second
loader, a retry after a lost answer to COMMIT, or a replayed spool therefore count nothing twice.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Final

import structlog
from sqlalchemy import Connection, Engine

from accounting.capture.spool.records import Gap, SpoolState
from accounting.capture.spool.spool import Spool
from accounting.db.clock import CLOCK_TOLERANCE_SECONDS, database_now
from accounting.db.engine import lost_connections
from accounting.domain.calendar import from_micros, to_micros
from accounting.domain.client_addresses import ClientAddresses
from accounting.domain.realm_rules import RealmRule
from accounting.domain.server_identity import ServerIdentity
from accounting.domain.session_fold import AllocationKey, StatusKeySighting
from accounting.errors import DamagedChunk, SpoolLacksMessages
from accounting.identities.identity_resolver import MAX_REALMS, IdentityResolver
from accounting.ingest import key_sightings, rejected_messages, report_queries
from accounting.ingest.batch import (
    Batch,
    BatchEnd,
    StaleBatch,
    commit_batch,
    lock_for_loading,
    write_batch,
)
from accounting.ingest.load_position import RESTORED_SPOOL, LoadPosition, find_load_position
from accounting.ingest.refused_epochs import record_refused_epoch, refused_epoch
from accounting.ingest.row_encoder import (
    DAY_MICROSECONDS,
    DueSightings,
    Need,
    NewDay,
    NewRealm,
    RowEncoder,
    UnreadKeys,
)
from accounting.sessions.fold_failure import FoldFailed
from accounting.sessions.settle import gc_paused, settle_source
from accounting.sessions.settler import DUE_BATCH, Settler, take_care
from accounting.sources import gap_queries
from accounting.sources.source_queries import SourceRow
from accounting.sources.watermark_queries import Watermark

log = structlog.get_logger()

BATCH: Final = 25_000
"""The most messages that one transaction loads."""
AHEAD_BATCHES: Final = 50
"""How many batches in a row are prepared ahead; then one is loaded in turn."""
MEMORY_LIMIT: Final = 120_000
"""How many keys with open sessions stay in memory, at one and a half kilobytes each."""

CORRECTION_TIMEOUT_SECONDS: Final = 60.0
"""How long times that are unconfirmed or later than now wait for the collector's correction.

Or twice the lease, which has time for several comparisons of the clocks, if that is longer."""
GO_BACK_TIMEOUT_SECONDS: Final = 60.0
"""How long messages that the spool lacks are awaited from the backlog of Redis. Or four times the
lease, if that is shorter: the collector looks four times in one."""


class _UnsettledReports(Exception):
    """Raised where the source has reports that were loaded without being settled."""

    def __init__(self, source_id: int) -> None:
        super().__init__(source_id)
        self.source_id = source_id


def _latest(now: int) -> int:
    """The latest time that may be loaded now; microseconds."""
    return now + CLOCK_TOLERANCE_SECONDS * 1_000_000


@dataclass(slots=True)
class Loader:
    """Loads one spool, unless another collector has the lease of its source.

    ``default_rule``: the first rule of a realm that has none. With nothing to load, the loader
    checks the lease four times within ``lease_seconds``. ``rejected_per_hour``: how many rejected
    messages of each hour are stored; all are counted. ``client_addresses``: what is stored of them,
    where the rule of a realm is not stricter. What it caches of the database is valid
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
    client_addresses: ClientAddresses = ClientAddresses.KEEP
    _settler: Settler = field(init=False)
    _failed_keys: set[AllocationKey] = field(init=False, default_factory=set)
    _identities: IdentityResolver = field(init=False)
    _partitions: set[int] = field(init=False, default_factory=set)
    _epoch_numbers: Mapping[int, int] = field(init=False, default_factory=dict)
    _gaps: dict[int, Gap] = field(init=False, default_factory=dict)
    _end: BatchEnd = field(init=False, default=BatchEnd())
    _loaded_state: SpoolState | None = field(init=False, default=None)
    _expected_version: int | None = field(init=False, default=None)
    _last_sighting: int = field(init=False, default=0)
    _claimed: set[ServerIdentity] = field(init=False, default_factory=set)
    _checked_at: float = field(init=False, default=float("-inf"))
    _lost_spool_gap_open: bool = field(init=False, default=True)
    _held_back_since: float | None = field(init=False, default=None)
    _lacks_messages_since: float | None = field(init=False, default=None)

    @property
    def caught_up(self) -> bool:
        """Whether the last transaction loaded everything that was in the spool at its start."""
        return self._end.is_last

    def load_ahead(
        self,
        limit: int = BATCH,
        *,
        is_stopped: Callable[[], bool] = lambda: False,
        on_commit: Callable[[], object] = lambda: None,
    ) -> int:
        """As :meth:`load`; loads on if more is left, and prepares each batch while it commits one.

        Returns how many messages were loaded until something is to be done in turn, nothing is
        left, ``is_stopped()``, or after AHEAD_BATCHES. Calls ``on_commit`` after each batch.
        """
        loaded = self.load(limit)
        if loaded:
            on_commit()
            if not self.caught_up and not is_stopped():
                loaded += self._run_ahead(limit, is_stopped, on_commit)
        return loaded

    def load(self, limit: int = BATCH) -> int:
        """Load the next messages; returns how many, 0 when there are none.

        Raises :class:`ConnectionLost` when the connection to Postgres fails: the transaction is
        committed or rolled back as a whole. Raises :class:`LeaseHeld` when another collector has
        this source, and :class:`SourceConflict` when all that is left was captured from a Redis of
        another source.
        """
        while True:
            try:
                return self._load_in_turn(limit)
            except DamagedChunk as damage:
                # The transaction is rolled back; the next one has the gap, and then what follows.
                self.spool.replace_by_gap(damage)
            except FoldFailed as failure:
                take_care(self._failed_keys, failure)
            except _UnsettledReports as error:
                settle_source(self.engine, error.source_id, wait=True)

    def _load_in_turn(self, limit: int) -> int:
        """Load a batch in one transaction, under the locks, whatever it needs of the database."""
        state = self.spool.state()
        lease_check_due = time.monotonic() >= self._checked_at + self.lease_seconds / 4
        if state == self._loaded_state and not self._new_gaps() and not lease_check_due:
            return 0
        version, self._expected_version, self._loaded_state = self._expected_version, None, None
        with gc_paused(), lost_connections(), self.engine.begin() as connection:
            source = lock_for_loading(connection, self.spool, state)
            if source.version != version:
                self._clear_caches(source)
            # Read under the lock of the source, when no other loader works on the spool, and before
            # the messages, so that these include everything that the state counts as captured.
            now = to_micros(database_now(connection))
            state, latest = self._confirm_times(now)
            servers = {epoch.server for epoch in self.spool.epochs()}
            refused = refused_epoch(connection, self.spool, source, state, self._claimed)
            self._epoch_numbers, start = self._find_load_position(connection, source, now)
            end = state.captured_epoch, state.captured_position
            if refused is not None:
                end = min(end, (refused.epoch.number, 0))
            self._write_gaps(connection, source, latest)
            if self._settler.begin(connection).place != (source.epoch, source.position):
                raise _UnsettledReports(source.source_id)
            encoder = self._encoder(
                self._end._replace(place=start, received_at=source.last_received_at or 0),
                end,
                limit,
                latest,
            )
            if refused is not None and not encoder.has_more():
                if refused.epoch.number == state.captured_epoch:
                    raise refused.conflict
                record_refused_epoch(connection, self.spool, source, refused, latest)
            rows: list[bytes] = []
            sightings = self._encode_in_turn(connection, encoder, start, rows)
            batch = self._pack(connection, encoder, rows, state, sightings, is_own=refused is None)
            version = write_batch(
                connection, source, batch, rejected_per_hour=self.rejected_per_hour
            )
            self._close_lost_spool_gap(connection, source, state.captured_from, latest)
        self._note_committed(batch)
        self._expected_version = version
        if refused is None:
            self._claimed = servers
        elif batch.last is None:
            self.spool.discard_epoch(refused.epoch.number)
        is_drained = (
            batch.end.is_last and batch.last is None and batch.settled.due_count < DUE_BATCH
        )
        if is_drained and refused is None and state.newest_at <= latest:
            self._loaded_state = state
        return batch.message_count

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
        state, latest = self.spool.state(), _latest(now)
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

    def _clear_caches(self, source: SourceRow) -> None:
        """Forget the database's contents: another loader wrote to it, or a backup was restored."""
        self._settler = Settler(
            source.source_id, memory_limit=self.memory_limit, failed_keys=self._failed_keys
        )
        self._identities = IdentityResolver(self.default_rule, self.max_realms)
        self._partitions = set()
        self._gaps = {}
        self._claimed = set()
        self._lost_spool_gap_open = True
        self._last_sighting = 0

    def _run_ahead(
        self, limit: int, is_stopped: Callable[[], bool], on_commit: Callable[[], object]
    ) -> int:
        """Load batches, each prepared while the one before is committed; returns how many messages.

        The thread that commits uses neither the file of the spool nor what is in memory.
        """
        version, self._expected_version = self._expected_version, None
        loaded = 0
        try:
            with (
                gc_paused(),
                lost_connections(),
                self.engine.connect() as connection,
                ThreadPoolExecutor(1, "commit") as thread,
            ):
                batch = self._prepare_ahead(connection, self._end, limit)
                for left in reversed(range(AHEAD_BATCHES)):
                    if batch is None:
                        break
                    following = None
                    commit = thread.submit(self._commit, batch, version)
                    try:
                        if left and not is_stopped():
                            following = self._prepare_ahead(connection, batch.end, limit)
                    finally:
                        version = commit.result()
                        loaded += batch.message_count
                        self._note_committed(batch, following)
                    on_commit()
                    batch = following
        except (StaleBatch, DamagedChunk, FoldFailed) as error:
            log.info("loads again from the position of the database", reason=repr(error))
        else:
            # All that was prepared is committed. Otherwise what is in memory goes too far.
            self._expected_version = version
        return loaded

    def _commit(self, batch: Batch, version: int | None) -> int:
        return commit_batch(
            self.engine, self.spool, batch, version, rejected_per_hour=self.rejected_per_hour
        )

    def _prepare_ahead(self, connection: Connection, end: BatchEnd, limit: int) -> Batch | None:
        """The batch after ``end``, which may not be committed yet; None if none can be prepared.

        Only messages, of which the database needs no more than that they are written: whatever else
        there is to do is done in turn.
        """
        state = self.spool.state()
        if any(
            epoch.number not in self._epoch_numbers or epoch.server not in self._claimed
            for epoch in self.spool.epochs()
        ):
            return None
        with connection.begin():
            latest = _latest(to_micros(database_now(connection)))
            if state.unconfirmed_from is not None or state.newest_at > latest:
                return None
            if self._new_gaps(latest):
                return None
            until = state.captured_epoch, state.captured_position
            sighting = self.spool.next_sighting(self._last_sighting, end.place)
            if sighting is not None and sighting <= until:
                # It comes before what follows, and also before sessions expire.
                until, state = sighting, replace(state, captured_until=None)
            encoder = self._encoder(end, until, limit, latest)
            rows: list[bytes] = []
            self._encode(connection, encoder, rows)
            return None if encoder.last is None else self._pack(connection, encoder, rows, state)

    def _encoder(
        self, start: BatchEnd, end: tuple[int, int], limit: int, latest: int
    ) -> RowEncoder:
        return RowEncoder(
            spool=self.spool,
            source_id=self._settler.source_id,
            epoch_numbers=self._epoch_numbers,
            identities=self._identities,
            memory=self._settler.memory,
            rate_limit=replace(start.rate_limit),
            partitions=self._partitions,
            reached=start.place,
            end=max(start.place, end),
            limit=limit,
            received_at=start.received_at,
            latest=latest,
            client_addresses=self.client_addresses,
        )

    def _encode_in_turn(
        self,
        connection: Connection,
        encoder: RowEncoder,
        start: tuple[int, int],
        rows: list[bytes],
    ) -> Sequence[StatusKeySighting]:
        """Encode and fold a batch, and provide what it needs; returns the key sightings added.

        ``start``: where the batch begins. Without messages, the encoder may be at the end already.
        """
        added: list[StatusKeySighting] = []
        # Sightings before the start are loaded, or were discarded when another collector took over.
        sightings = [
            sighting
            for sighting in self.spool.sightings(self._last_sighting)
            if start <= (sighting.epoch, sighting.position)
        ]
        encoder.sightings = [found for found in sightings if found.seen_at <= encoder.latest]
        if held_back := [found for found in sightings if found.seen_at > encoder.latest]:
            encoder.end = min(encoder.end, (held_back[0].epoch, held_back[0].position))
        if not encoder.has_more() and not encoder.sightings:
            return added
        self._identities.begin(connection)
        # Also those that another source's loader added since settling began.
        self._settler.memory.add_rules(self._identities.rules)
        while need := self._encode(connection, encoder, rows):
            match need:
                case NewRealm(realm):
                    self._identities.add_realm(connection, realm)
                    self._settler.memory.add_rules(self._identities.rules)
                case NewDay(day):
                    date = from_micros(day * DAY_MICROSECONDS).date()
                    report_queries.ensure_partition(connection, date)
                    self._partitions.add(day)
                case DueSightings(due):
                    identified = key_sightings.identify(
                        connection, self._identities, due, self._epoch_numbers
                    )
                    due_added = key_sightings.add_sightings(
                        connection,
                        encoder.source_id,
                        identified,
                        (self._epoch_numbers[start[0]], start[1]),
                    )
                    self._settler.memory.add_rules(self._identities.rules)
                    self._settler.apply(connection, due_added)
                    added += due_added
        self._last_sighting = max(self._last_sighting, encoder.last_sighting)
        return added

    def _encode(
        self, connection: Connection, encoder: RowEncoder, rows: list[bytes]
    ) -> Need | None:
        """Encode and fold the next messages; returns what is needed first, unless none is left."""
        while True:
            rows += encoder.encoded_chunks()
            if not isinstance(encoder.needs, UnreadKeys):
                return encoder.needs
            self._settler.memory.require(connection, encoder.needs.realm_ids)

    def _pack(
        self,
        connection: Connection,
        encoder: RowEncoder,
        rows: Sequence[bytes],
        state: SpoolState,
        sightings: Sequence[StatusKeySighting] = (),
        *,
        is_own: bool = True,
    ) -> Batch:
        """Put what was encoded and folded into a batch.

        ``is_own``: the spool's checkpoints are the source's, not those of another one's Redis.
        """
        before, last = self._settler.watermark, encoder.last
        captured = state.captured_epoch, state.captured_position
        is_caught_up = encoder.reached >= captured
        captured_until = state.captured_until if is_own else None
        if captured_until is not None and captured_until > encoder.latest:
            captured_until = None
        database = state.stream_database
        if last is not None and not is_caught_up:
            database = last.origin.database
        # An offset only counts within the replication history that it was captured from.
        in_stream = state.resume_point is not None and encoder.reached[0] == state.captured_epoch
        last_received_at = None if last is None else last.received_at
        reached = Watermark(
            source_id=encoder.source_id,
            epoch=self._epoch_numbers[encoder.reached[0]],
            position=encoder.reached[1],
            received_at=before.received_at if last is None else last.received_at,
            settled_until=captured_until if is_caught_up and captured_until else last_received_at,
            last_sighting=sightings[-1][:3] if sightings else before.last_sighting,
        )
        return Batch(
            state=state,
            rows=rows,
            names=self._identities.take_names(),
            rejected=encoder.rejected,
            unstorable={
                index
                for index, message in enumerate(encoder.rejected)
                if self._identities.names_erased_user(message.channel, message.received_at)
            },
            settled=self._settler.finish(connection, reached),
            captured_until=captured_until,
            replication_id=state.replication_id if in_stream else None,
            stream_database=database if in_stream else None,
            message_count=encoder.message_count,
            last=last,
            end=BatchEnd(
                place=encoder.reached,
                is_last=is_caught_up or (not is_own and encoder.reached >= encoder.end),
                received_at=encoder.received_at,
                rate_limit=encoder.rate_limit,
            ),
        )

    def _note_committed(self, batch: Batch, following: Batch | None = None) -> None:
        """Note that a batch is committed; ``following``: what was prepared since."""
        self._settler.written(batch.settled, None if following is None else following.settled)
        self._end = batch.end
        self._checked_at = time.monotonic()
        if batch.last is not None:
            self.spool.mark_loaded(batch.last.origin.epoch, batch.last.position)

    def _write_gaps(self, connection: Connection, source: SourceRow, latest: int) -> None:
        epochs = {epoch.number: epoch for epoch in self.spool.epochs()}
        for gap in self._new_gaps(latest):
            self._gaps[gap.number] = gap
            epoch = epochs[gap.epoch]
            if epoch.cause == RESTORED_SPOOL and gap.to_at and gap.to_at <= epoch.started_at:
                continue  # the database has this gap under the epoch's former token
            gap_queries.upsert_gap(
                connection,
                source.source_id,
                epoch_token=epoch.token,
                gap_number=gap.number,
                after=(self._epoch_numbers[gap.epoch], gap.position),
                from_at=gap.from_at,
                to_at=gap.to_at,
                cause=gap.cause,
                detail=gap.detail,
            )

    def _close_lost_spool_gap(
        self, connection: Connection, source: SourceRow, captured_from: int | None, latest: int
    ) -> None:
        if self._lost_spool_gap_open and captured_from is not None and captured_from <= latest:
            first_epoch = self.spool.epochs()[0]
            gap_queries.close_lost_spool_gap(
                connection, source.source_id, first_epoch.token, captured_from
            )
            self._lost_spool_gap_open = False
