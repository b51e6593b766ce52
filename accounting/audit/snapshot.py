"""A snapshot of the books in which no loaded report waits for settling, the roll-up or adjustments.

Stored and recomputed books can be compared only there.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

from sqlalchemy import Connection, Engine, text

from accounting.billing.adjust import adjust
from accounting.db.engine import lost_connections
from accounting.db.locks import lock, try_lock
from accounting.db.queries import Queries
from accounting.errors import LockHeld, NotYet
from accounting.sessions.settle import settle
from accounting.sources import source_queries
from accounting.usage.rollup import rollup

_QUERIES: Final = Queries("accounting.audit")

MAX_ATTEMPTS: Final = 60


@contextmanager
def quiesced_snapshot(engine: Engine, *, hold_locks: bool = False) -> Iterator[Connection]:
    """Open a transaction on a snapshot of the books with nothing in flight.

    Settles, rolls up and adjusts what is loaded, and locks other schedulers out of that work while
    the snapshot is taken; with ``hold_locks`` until the transaction ends. The caller commits what
    it writes. Raises NotYet when the jobs never come to rest, LockHeld when one of them keeps its
    lock, and ConnectionLost.
    """
    for _ in range(MAX_ATTEMPTS):
        with suppress(LockHeld):  # waits for the holder below
            settle(engine)
        with lost_connections(), ExitStack() as stack:
            holding = stack.enter_context(engine.begin())
            # In the order in which closing a period takes them.
            for source in source_queries.all_sources(holding):
                lock(holding, f"settle.{source.source_id}", max_idle_seconds=0)
            with suppress(LockHeld):
                rollup(engine)
                adjust(engine)
            if hold_locks and not try_lock(holding, "rollup", max_idle_seconds=0):
                continue
            connection = stack.enter_context(
                engine.connect().execution_options(isolation_level="REPEATABLE READ")
            )
            # Takes no snapshot. After the snapshot, reports dropped in between would look lost.
            connection.execute(text("LOCK TABLE ONLY accounting.reports IN ACCESS SHARE MODE"))
            if connection.execute(_QUERIES.text("count_in_flight")).scalar_one():
                continue
            if not hold_locks:
                holding.rollback()
            yield connection
            return
    raise NotYet("settling and the roll-up do not come to rest: try again in a moment")
