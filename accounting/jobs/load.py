"""Load: from the spool into the reports, each message once.

The rows and the source's position move in one transaction, guarded by the position it is expected
to stand at: a second loader, a retry after a lost COMMIT answer or a replayed spool counts nothing
twice. Owns how a spool's epochs become the database's; parses with ``model.wire`` and judges
nothing.
"""

import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Final

import structlog
from sqlalchemy import Connection, Engine

from accounting.capture.records import Epoch, Gap, SpooledMessage, SpoolState
from accounting.capture.spool import Spool
from accounting.errors import ConnectionLost
from accounting.model.buckets import moment
from accounting.model.realms import RealmRule
from accounting.model.wire import WireError, parse
from accounting.store import reports, sources
from accounting.store.binary import binary_cursor
from accounting.store.database import lost_connections, psycopg_connection
from accounting.store.identities import Identities
from accounting.store.migrations import require_head
from accounting.store.sources import SourceRow

log = structlog.get_logger()

BATCH: Final = 20_000
"""Messages in one transaction at the most."""
OLDER_SPOOL: Final = "spool_older"
LOST_GAP: Final = 0
"""The gap that a lost spool left, under the new one's first epoch; the spool's own begin at 1."""
PRUNED_GAP: Final = -1
IDLE_SECONDS: Final = 0.1
LONGEST_BACKOFF_SECONDS: Final = 10.0
PRUNE_SECONDS: Final = 60
DRAIN_SECONDS: Final = 20.0
"""How long a loader that should end goes on with what is left."""


@dataclass(slots=True)
class Loader:
    """Loads one spool. ``default_rule``: for realms not set up; ``mode``: how it captures."""

    engine: Engine
    spool: Spool
    mode: str
    default_rule: RealmRule
    _identities: Identities = field(init=False)
    _partitions: set[date] = field(init=False, default_factory=set)
    _gaps: dict[int, Gap] = field(init=False, default_factory=dict)
    _idle: SpoolState | None = field(init=False, default=None)
    _left: tuple[int, int] | None = field(init=False, default=None)
    _first_gap_open: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        self._identities = Identities(self.default_rule)

    def load(self, limit: int = BATCH) -> int:
        """Load the next messages; returns how many, 0 when there are none.

        Raises :class:`ConnectionLost` when Postgres is away: nothing is changed then, or all.
        """
        state = self.spool.state()
        if state == self._idle and not self._new_gaps():
            return 0
        with lost_connections(), self.engine.begin() as connection:
            source = sources.open_source(connection, state.source, self.mode)
            if (source.epoch, source.position) != self._left:
                self._forget()
            # Now that no other loader is at work. And the state before the messages, so that they
            # hold at least what it says.
            state = self.spool.state()
            gaps = self._new_gaps()
            numbers, start = self._resume(connection, source)
            messages = self.spool.read(*start, limit)
            reached = self._write(connection, source, numbers, start, messages, state)
            self._write_gaps(connection, source, numbers, gaps, state)
        self._left = reached
        self._identities.committed()
        self._gaps.update({gap.gap: gap for gap in gaps})
        self._first_gap_open &= state.captured_from is None
        if not messages:
            self._idle = state
            return 0
        self._partitions |= {moment(one.received_at).date() for one in messages}
        self.spool.mark_loaded(messages[-1].epoch, messages[-1].position)
        return len(messages)

    def _new_gaps(self) -> list[Gap]:
        """The spool's gaps that are not in the database as they are now."""
        return [gap for gap in self.spool.gaps() if self._gaps.get(gap.gap) != gap]

    def _forget(self) -> None:
        """Another loader was at work, or the database was set back to a backup.

        What this one knows of its rows may be wrong.
        """
        self._identities = Identities(self.default_rule)
        self._partitions = set()
        self._gaps = {}
        self._first_gap_open = True

    def _resume(
        self, connection: Connection, source: SourceRow
    ) -> tuple[dict[int, int], tuple[int, int]]:
        """Where to read on: the database's position in terms of this spool.

        Returns the database's number of each of the spool's epochs, and the spool's (epoch,
        position) up to which everything is loaded.
        """
        epochs = self.spool.epochs()
        known = sources.epoch_tokens(connection, source.source_id)
        here = next((epoch for epoch in epochs if known.get(epoch.token) == source.epoch), None)
        if here is not None and not self._is_another(here, source):
            start = here.epoch, source.position
        elif not source.epoch:
            start = epochs[0].epoch, 0
        elif older := self._older(epochs, known, here, source):
            # One source's receipt times never fall: what is not younger is in the books.
            start = older, self.spool.position_at(older, source.last_received_at or 0)
            epochs = self.spool.epochs()
        else:
            self._lost_spool(connection, source, epochs[0])
            start = epochs[0].epoch, 0
        numbers: dict[int, int] = {}
        for epoch in epochs:
            numbers[epoch.epoch] = known.get(epoch.token) or sources.add_epoch(
                connection, source.source_id, epoch.token, epoch.began_at, epoch.cause
            )
        self._note_pruned(connection, source, epochs, start)
        return numbers, start

    def _is_another(self, epoch: Epoch, source: SourceRow) -> bool:
        """Whether the spool's epoch lacks what the database has of it, or has other messages there.

        It was set back from a copy then, and went on with other messages at the same positions.
        """
        state = self.spool.state()
        last = (
            state.captured_position
            if epoch.epoch == state.captured_epoch
            else self.spool.last_position(epoch.epoch)
        )
        if last is not None and last < source.position:
            return True
        received_at = self.spool.received_at(epoch.epoch, source.position)
        return received_at is not None and received_at > (source.last_received_at or 0)

    def _older(
        self,
        epochs: Sequence[Epoch],
        known: Mapping[str, int],
        here: Epoch | None,
        source: SourceRow,
    ) -> int | None:
        """The epoch of a spool that was set back from a copy; None for a new spool.

        What its positions stood for in the database was other messages, so that epoch goes on
        under another token.
        """
        relabelled = [
            epoch.epoch
            for epoch in epochs
            if epoch.cause == OLDER_SPOOL and epoch.token not in known
        ]
        if relabelled:  # by a loader that was killed before it came to the database
            return relabelled[0]
        last = here or next((one for one in reversed(epochs) if one.token in known), None)
        if last is None:
            return None
        log.error("the spool is older than the database", source=source.source)
        self.spool.relabel(last.epoch, OLDER_SPOOL, source.captured_until or last.began_at)
        return last.epoch

    def _lost_spool(self, connection: Connection, source: SourceRow, epoch: Epoch) -> None:
        """A new spool for a source that was captured before: what lies between is a gap."""
        log.error("a new spool for a known source, a gap is recorded", source=source.source)
        # What was captured after that and not loaded is lost with the spool.
        from_at = source.loaded_until or source.last_received_at or epoch.began_at
        sources.put_gap(
            connection,
            source.source_id,
            token=epoch.token,
            gap=LOST_GAP,
            after=(source.epoch, source.position),
            from_at=min(from_at, epoch.began_at),
            to_at=None,
            cause="spool_lost",
            detail="the collector began with an empty spool",
        )
        self._first_gap_open = True

    def _note_pruned(
        self,
        connection: Connection,
        source: SourceRow,
        epochs: Sequence[Epoch],
        start: tuple[int, int],
    ) -> None:
        """Record as a gap what the database lacks and the spool has deleted.

        Only what is loaded is deleted: so the database was set back, to a backup that is older
        than the spool's retention, or is another one.
        """
        state = self.spool.state()
        if start >= (state.pruned_epoch, state.pruned_position):
            return
        log.error("the spool is pruned beyond the database's position", source=source.source)
        to_at = state.pruned_received_at + 1
        from_at = source.loaded_until or source.last_received_at or epochs[0].began_at
        sources.put_gap(
            connection,
            source.source_id,
            token=next(one.token for one in epochs if one.epoch == state.pruned_epoch),
            gap=PRUNED_GAP,
            after=(source.epoch, source.position),
            from_at=min(from_at, to_at),
            to_at=to_at,
            cause="spool_pruned",
            detail="the database was set back further than the spool reaches",
        )

    def _write(
        self,
        connection: Connection,
        source: SourceRow,
        numbers: dict[int, int],
        start: tuple[int, int],
        messages: list[SpooledMessage],
        state: SpoolState,
    ) -> tuple[int, int]:
        """Write messages and the position that is reached with them; returns that."""
        reached = messages[-1][:2] if messages else start
        last = messages[-1].received_at if messages else None
        at_end = reached >= (state.captured_epoch, state.captured_position)
        epoch, position = numbers[reached[0]], reached[1]
        moved = sources.advance(
            connection,
            source,
            epoch=epoch,
            position=position,
            captured_until=state.captured_until,
            loaded_until=state.captured_until if at_end else last,
            last_received_at=last,
            mode=self.mode,
        )
        if not moved:
            raise ConnectionLost(
                f"source {source.source} moved while loading: another loader is at work"
            )
        placed, rejected = self._parse(connection, messages, numbers, source.last_received_at or 0)
        self._identities.write(connection)
        for day in sorted({moment(one.received_at).date() for one in placed} - self._partitions):
            reports.ensure_partition(connection, day)
        if placed:
            with binary_cursor(psycopg_connection(connection)) as cursor:
                reports.copy_reports(cursor, source.source_id, placed)
        reports.reject(connection, source.source_id, rejected)
        return epoch, position

    def _parse(
        self,
        connection: Connection,
        messages: list[SpooledMessage],
        numbers: dict[int, int],
        last: int,
    ) -> tuple[list[reports.Placed], list[reports.Rejected]]:
        identities = self._identities
        if messages:
            identities.begin(connection)
        placed: list[reports.Placed] = []
        rejected: list[reports.Rejected] = []
        for epoch, position, received_at, estimated, database, channel, payload in messages:
            # One source's times never fall, also where another machine's clock goes on.
            last = max(last, received_at)
            number = numbers[epoch]
            try:
                event = parse(channel, payload)
            except WireError as error:
                rejected.append(
                    reports.Rejected(number, position, last, database, channel, payload, str(error))
                )
                continue
            identity = identities.resolve(connection, event.realm, event.username, last)
            placed.append(
                reports.Placed(number, position, last, estimated, database, identity, event)
            )
        return placed, rejected

    def _write_gaps(
        self,
        connection: Connection,
        source: SourceRow,
        numbers: Mapping[int, int],
        gaps: list[Gap],
        state: SpoolState,
    ) -> None:
        epochs = {epoch.epoch: epoch for epoch in self.spool.epochs()}
        for gap in gaps:
            epoch = epochs[gap.epoch]
            if epoch.cause == OLDER_SPOOL and gap.to_at and gap.to_at <= epoch.began_at:
                continue  # the database has it under the epoch's former token
            sources.put_gap(
                connection,
                source.source_id,
                token=epoch.token,
                gap=gap.gap,
                after=(numbers[gap.epoch], gap.position),
                from_at=gap.from_at,
                to_at=gap.to_at,
                cause=gap.cause,
                detail=gap.detail,
            )
        if self._first_gap_open and state.captured_from is not None:
            sources.close_first_gap(
                connection,
                source.source_id,
                next(iter(epochs.values())).token,
                state.captured_from,
            )


def run_loader(loader: Loader, stop: threading.Event, *, retention: timedelta) -> None:
    """Load until ``stop`` is set, then what is left, for DRAIN_SECONDS at most.

    Postgres away: tries again for ever, with backoff and jitter; the spool holds what comes.
    """
    backoff = IDLE_SECONDS
    ready = False
    wait = stop.wait
    pruned_at = 0
    deadline = float("inf")
    while True:
        if stop.is_set():
            deadline = min(deadline, time.monotonic() + DRAIN_SECONDS)
            if time.monotonic() > deadline:
                log.warning("what is left stays in the spool", reason="there is too much of it")
                return
        try:
            if not ready:
                require_head(loader.engine)
                ready = True
            loaded = loader.load()
            if backoff > IDLE_SECONDS:
                log.info("Postgres is back, loading goes on")
            backoff = IDLE_SECONDS
        except ConnectionLost as error:
            if stop.is_set():
                log.warning("what is left stays in the spool", reason=str(error))
                return
            backoff = min(backoff * 2, LONGEST_BACKOFF_SECONDS)
            log.warning("can't load now, trying again", reason=str(error), seconds=backoff)
            wait(backoff * random.uniform(0.5, 1.0))  # noqa: S311
            continue
        if loaded:
            continue
        if stop.is_set():
            return
        newest = loader.spool.state().last_received_at
        if newest - pruned_at > PRUNE_SECONDS * 1_000_000:
            loader.spool.prune(newest - retention // timedelta(microseconds=1))
            pruned_at = newest
        wait(IDLE_SECONDS)
