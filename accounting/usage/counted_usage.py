"""``usage.counted``: the hours of users as events of the feed, for engines that meter usage.

While metering is on, each hour of a user is one event when it is folded, with its sum. Each later
change is an event with the signed difference, in the transaction that changes the hour, until its
period is closed. Closing folds the hours of a period first. So the events of a closed period add
up to its statement, and what comes later is an adjustment.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, func, select, update
from sqlalchemy.dialects.postgresql import insert

from accounting.db.clock import database_now
from accounting.db.engine import prefer_index_scans
from accounting.db.locks import lock
from accounting.db.queries import Queries
from accounting.db.schema import fold_watermarks, metering, usage_corrections
from accounting.domain.calendar import from_micros, to_micros
from accounting.errors import UsageError
from accounting.usage import rollup_queries

_QUERIES: Final = Queries("accounting.usage")


def counted_from(connection: Connection) -> datetime | None:
    """From which hour on the feed has the usage of users; None while metering is off."""
    return connection.execute(select(metering.c.counted_from)).scalar()


def start_metering(connection: Connection, since: datetime | None = None) -> datetime:
    """Let the feed have the usage of all hours from ``since`` on; returns from where on it has it.

    ``since`` None: the current hour of UTC. Where metering is on already, only an earlier time
    moves it. Hours that are folded already get their events at once, with their present sums. A
    closed period gets them as a whole, with its statement as their sum, or, where ``since`` cuts
    it, not at all. Takes the lock of the roll-up until the transaction ends; raises LockHeld, and
    UsageError for a time before metering was turned off last.
    """
    lock(connection, "rollup")
    row = connection.execute(select(metering)).one_or_none()
    counted: datetime | None = None if row is None else row.counted_from
    not_before: datetime | None = None if row is None else row.not_before
    if since is None:
        since = database_now(connection).replace(minute=0, second=0, microsecond=0)
        since = max(since, not_before or since)
    if counted is not None and counted <= since:
        return counted
    if not_before is not None and since < not_before:
        raise UsageError(
            f"the feed had usage up to {not_before:%Y-%m-%d %H:%M:%SZ} before metering was turned "
            "off: it can begin again from there on"
        )
    connection.execute(
        insert(metering)
        .values(counted_from=since)
        .on_conflict_do_update(index_elements=["only_row"], set_={"counted_from": since})
    )
    end = None if counted is None else to_micros(counted)
    folds = rollup_queries.read_fold_watermarks(connection)
    spans = {
        realm_id: (to_micros(since), until if end is None else min(until, end))
        for realm_id, until in folds.items()
    }
    write_hours(connection, spans, back_fills=True)
    return since


def stop_metering(connection: Connection) -> None:
    """Write no more usage to the feed. Takes the lock of the roll-up; raises LockHeld.

    It can begin again with the first hour that is not folded yet, so that none is missing.
    """
    lock(connection, "rollup")
    last_fold = select(func.max(fold_watermarks.c.folded_until)).scalar_subquery()
    connection.execute(
        update(metering)
        .where(metering.c.counted_from.is_not(None))
        .values(
            counted_from=None,
            not_before=func.greatest(metering.c.counted_from, last_fold),
        )
    )
    connection.execute(usage_corrections.delete())


def write_hours(
    connection: Connection, spans: Mapping[int, tuple[int, int]], *, back_fills: bool = False
) -> None:
    """Write the hours of realms that begin within ``spans``, in microseconds, to the feed.

    Writes nothing while metering is off. Their usage is in ``user_usage_hourly``. Not those of
    closed periods; ``back_fills``: also those, where a span contains the whole period.
    """
    first = counted_from(connection) if spans else None
    if first is None:
        return
    since = to_micros(first)
    wanted = {
        realm_id: (max(begin, since), end)
        for realm_id, (begin, end) in spans.items()
        if end > since
    }
    if not wanted:
        return
    parameters = {
        "realms": list(wanted),
        "sinces": [from_micros(begin) for begin, _ in wanted.values()],
        "untils": [from_micros(end) for _, end in wanted.values()],
    }
    with prefer_index_scans(connection):
        connection.execute(
            _QUERIES.text("write_counted_hours"), {**parameters, "back_fills": back_fills}
        )
        if back_fills:
            connection.execute(_QUERIES.text("write_statement_differences"), parameters)


def write_corrections(connection: Connection, folded: Mapping[int, int]) -> None:
    """Write the staged deltas of hours that were folded before, and are corrections, to the feed.

    ``folded``: the fold watermarks of realms before the deltas were added, in microseconds. The
    deltas are in ``staged_deltas``, and were added. Writes nothing while metering is off.
    """
    since = counted_from(connection) if folded else None
    if since is None:
        return
    connection.execute(_QUERIES.text("create_staged_corrections"))
    with prefer_index_scans(connection):
        staged = connection.execute(
            _QUERIES.text("stage_corrections"),
            {
                "counted_from": since,
                "realms": list(folded),
                "untils": [from_micros(until) for until in folded.values()],
            },
        )
        if staged.rowcount:
            connection.execute(_QUERIES.text("number_corrections"))
            connection.execute(_QUERIES.text("write_corrections"))


def forget_corrections(connection: Connection, realm_id: int, ends_at: datetime) -> None:
    """Delete the counts of corrections of a period that closes: it gets no more of them."""
    connection.execute(
        usage_corrections.delete().where(
            usage_corrections.c.realm_id == realm_id, usage_corrections.c.starts_at < ends_at
        )
    )
