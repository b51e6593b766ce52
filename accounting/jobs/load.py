"""Load: from the spool into the reports, each message once.

The rows and the source's position move in one transaction, guarded by the position it is expected
to stand at: a second loader, a retry after a lost COMMIT answer or a replayed spool counts nothing
twice. Owns how a spool's epochs become the database's; parses with ``model.wire`` and judges
nothing.
"""

import random
import threading
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
IDLE_SECONDS: Final = 0.1
LONGEST_BACKOFF_SECONDS: Final = 10.0
PRUNE_SECONDS: Final = 60


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
    _first_gap_open: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        self._identities = Identities(self.default_rule)

    def load(self, limit: int = BATCH) -> int:
        """Load the next messages; returns how many, 0 when there are none.

        Raises :class:`ConnectionLost` when Postgres is away: nothing is changed then, or all.
        """
        # The state first: the messages read after it hold at least what it says.
        state = self.spool.state()
        gaps = [gap for gap in self.spool.gaps() if self._gaps.get(gap.gap) != gap]
        if state == self._idle and not gaps:
            return 0
        with lost_connections(), self.engine.begin() as connection:
            source = sources.open_source(connection, state.source, self.mode)
            numbers, start = self._resume(connection, source, state)
            messages = self.spool.read(*start, limit)
            self._write(connection, source, numbers, start, messages, state)
            self._write_gaps(connection, source, gaps, state)
        self._identities.committed()
        self._gaps.update({gap.gap: gap for gap in gaps})
        self._first_gap_open &= state.captured_until is None
        if not messages:
            self._idle = state
            return 0
        self._partitions |= {moment(one.received_at).date() for one in messages}
        self.spool.mark_loaded(messages[-1].epoch, messages[-1].position)
        return len(messages)

    def _resume(
        self, connection: Connection, source: SourceRow, state: SpoolState
    ) -> tuple[dict[int, int], tuple[int, int]]:
        """Where to read on: the database's position in terms of this spool.

        Returns the database's number of each of the spool's epochs, and the spool's (epoch,
        position) up to which everything is loaded.
        """
        epochs = self.spool.epochs()
        known = sources.epoch_tokens(connection, source.source_id)
        reached = known.get(epochs[-1].token, 0), state.captured_position
        if (0, 0) < reached < (source.epoch, source.position) and reached[0]:
            # Set back from a copy, or overtaken by another collector: what its positions stood
            # for in the database was other messages, so it goes on under another token.
            log.error("the spool is older than the database", source=source.source)
            self.spool.relabel(epochs[-1].epoch, OLDER_SPOOL)
            epochs = self.spool.epochs()
        start = 0, 0
        numbers: dict[int, int] = {}
        for epoch in epochs:
            number = known.get(epoch.token)
            if number is None:
                number = sources.add_epoch(
                    connection, source.source_id, epoch.token, epoch.began_at, epoch.cause
                )
                if epoch.cause == OLDER_SPOOL:
                    # One source's receipt times never fall: what is not younger is in the books.
                    start = (
                        epoch.epoch,
                        self.spool.position_at(epoch.epoch, source.last_received_at or 0),
                    )
                elif epoch.cause == "first" and source.epoch:
                    self._lost_spool(connection, source, epoch)
            if number == source.epoch:
                start = epoch.epoch, source.position
            numbers[epoch.epoch] = number
        return numbers, start

    def _lost_spool(self, connection: Connection, source: SourceRow, epoch: Epoch) -> None:
        """A new spool for a source that was captured before: what lies between is a gap."""
        log.error("a new spool for a known source, a gap is recorded", source=source.source)
        from_at = source.captured_until or source.last_received_at or epoch.began_at
        sources.put_gap(
            connection,
            source.source_id,
            token=epoch.token,
            gap=0,
            from_at=min(from_at, epoch.began_at),
            to_at=None,
            cause="spool_lost",
            detail="the collector began with an empty spool",
        )
        self._first_gap_open = True

    def _write(
        self,
        connection: Connection,
        source: SourceRow,
        numbers: dict[int, int],
        start: tuple[int, int],
        messages: list[SpooledMessage],
        state: SpoolState,
    ) -> None:
        reached = messages[-1][:2] if messages else start
        last = messages[-1].received_at if messages else None
        at_end = reached >= (state.captured_epoch, state.captured_position)
        moved = sources.advance(
            connection,
            source,
            epoch=numbers.get(reached[0], source.epoch),
            position=reached[1],
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
        self, connection: Connection, source: SourceRow, gaps: list[Gap], state: SpoolState
    ) -> None:
        tokens = {epoch.epoch: epoch.token for epoch in self.spool.epochs()}
        for gap in gaps:
            sources.put_gap(
                connection,
                source.source_id,
                token=tokens[gap.epoch],
                gap=gap.gap,
                from_at=gap.from_at,
                to_at=gap.to_at,
                cause=gap.cause,
                detail=gap.detail,
            )
        if self._first_gap_open and state.captured_until is not None:
            sources.close_first_gap(
                connection, source.source_id, next(iter(tokens.values())), state.captured_until
            )


def run_loader(loader: Loader, stop: threading.Event, *, retention: timedelta) -> None:
    """Load until ``stop`` is set, then what is left.

    Postgres away: tries again for ever, with backoff and jitter; the spool holds what comes.
    """
    backoff = IDLE_SECONDS
    ready = False
    wait = stop.wait
    pruned_at = 0
    while True:
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
