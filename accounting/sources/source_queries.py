"""Rows of ``sources`` and ``epochs``: how far loading has come, and the guard against double loads.

A spool identifies its epochs by tokens. The database numbers them in the order of loading.
"""

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import BigInteger, Connection, func, literal_column, select, update
from sqlalchemy.dialects.postgresql import insert

from accounting.db.schema import epochs, former_source_names, front, other_sources, sources
from accounting.domain.calendar import from_micros, micros_or_none, time_or_none
from accounting.errors import ConfigurationError, SourceConflict, unknown_name


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRow:
    """How far a source is loaded. Times in microseconds; epoch 0 means before the first one."""

    source_id: int
    source: str
    epoch: int
    position: int
    captured_until: int | None
    loaded_until: int | None
    last_received_at: int | None
    replication_id: str | None
    stream_database: int | None
    loaded_by_host: str | None
    retired_at: int | None
    version: int
    """Differs after each change of the row, and where a backup was restored."""


_VERSION: Final = literal_column("sources.xmin::text::bigint", BigInteger).label("version")
"""The transaction that wrote the row."""
_COLUMNS: Final = (*sources.c, _VERSION)


def _source(row: Any) -> SourceRow:
    return SourceRow(
        source_id=row.source_id,
        source=row.source,
        epoch=row.epoch,
        position=row.position,
        captured_until=micros_or_none(row.captured_until),
        loaded_until=micros_or_none(row.loaded_until),
        last_received_at=micros_or_none(row.last_received_at),
        replication_id=row.replication_id,
        stream_database=row.stream_database,
        loaded_by_host=row.loaded_by_host,
        retired_at=micros_or_none(row.retired_at),
        version=row.version,
    )


def lock_source(connection: Connection, name: str, mode: str) -> SourceRow:
    """Lock the row of a source, inserting it if missing: its loaders run one at a time.

    Raises SourceConflict for the former name of a source that was renamed.
    """
    source = find_and_lock(connection, name)
    if source is None:
        add_source(connection, name, mode)
        source = find_and_lock(connection, name)
    assert source is not None, "nothing deletes sources"
    return source


def add_source(connection: Connection, name: str, mode: str) -> int:
    """The id of a source; inserts it if it is missing. Does not lock the row of another loader.

    Raises SourceConflict for the former name of a source that was renamed, and ConfigurationError
    for a name that a source of another cell has or had, and in a front.
    """
    if connection.execute(select(front.c.id)).first() is not None:
        raise ConfigurationError(
            "this database is a front, which has no sources: set ACCOUNTING_DATABASE_URL to that "
            "of a cell"
        )
    renamed = renamed_source(connection, name)
    if renamed is not None:
        raise SourceConflict(
            f"source '{name}' was renamed to '{renamed.source}': "
            f"set ACCOUNTING_SOURCE={renamed.source}",
            source_id=renamed.source_id,
        )
    if (cell := other_cell(connection, name)) is not None:
        raise ConfigurationError(
            f"cell '{cell}' has a source '{name}': sources of one front have different names, so "
            "set another ACCOUNTING_SOURCE"
        )
    connection.execute(insert(sources).values(source=name, mode=mode).on_conflict_do_nothing())
    source_id = find_source_id(connection, name)
    assert source_id is not None, "nothing deletes sources"
    return source_id


def other_cell(connection: Connection, name: str) -> str | None:
    """The other cell of this cell's front that has, or had, a source of this name."""
    query = select(other_sources.c.cell).where(other_sources.c.source == name)
    return connection.execute(query).scalar_one_or_none()


def find_source_id(connection: Connection, name: str) -> int | None:
    """The id of a source, if there is one. Locks nothing."""
    return connection.execute(
        select(sources.c.source_id).where(sources.c.source == name)
    ).scalar_one_or_none()


def find_and_lock(connection: Connection, name: str) -> SourceRow | None:
    """Lock the row of a source, if there is one."""
    query = select(*_COLUMNS).where(sources.c.source == name).with_for_update()
    row = connection.execute(query).one_or_none()
    return None if row is None else _source(row)


def lock_known_source(connection: Connection, name: str) -> SourceRow:
    """Lock the row of a source. Raises UsageError for an unknown name."""
    source = find_and_lock(connection, name)
    if source is None:
        raise unknown_name("source", name, [row.source for row in all_sources(connection)])
    return source


def lock_source_by_id(connection: Connection, source_id: int) -> SourceRow:
    """Lock the row of an existing source."""
    query = select(*_COLUMNS).where(sources.c.source_id == source_id).with_for_update()
    return _source(connection.execute(query).one())


def renamed_source(connection: Connection, former_name: str) -> SourceRow | None:
    """The source that had a name before it was renamed."""
    row = connection.execute(
        select(*_COLUMNS)
        .join(former_source_names, former_source_names.c.source_id == sources.c.source_id)
        .where(former_source_names.c.former_name == former_name)
    ).one_or_none()
    return None if row is None else _source(row)


def all_sources(connection: Connection) -> list[SourceRow]:
    """Every source, by id."""
    return [_source(row) for row in connection.execute(select(*_COLUMNS).order_by("source_id"))]


def read_source(connection: Connection, source_id: int) -> SourceRow:
    """The row of an existing source."""
    return _source(
        connection.execute(select(*_COLUMNS).where(sources.c.source_id == source_id)).one()
    )


def epochs_by_token(connection: Connection, source_id: int) -> dict[str, int]:
    """The numbers of a source's epochs, by token."""
    rows = connection.execute(
        select(epochs.c.token, epochs.c.epoch).where(epochs.c.source_id == source_id)
    )
    return dict(rows.all())


def add_epoch(
    connection: Connection, source_id: int, token: str, started_at: int, cause: str
) -> int:
    """Insert an epoch, numbered one above the source's last; returns the number."""
    number: int = connection.execute(
        select(func.coalesce(func.max(epochs.c.epoch), 0) + 1).where(
            epochs.c.source_id == source_id
        )
    ).scalar_one()
    connection.execute(
        insert(epochs).values(
            source_id=source_id,
            epoch=number,
            token=token,
            started_at=from_micros(started_at),
            cause=cause,
        )
    )
    return number


def advance(
    connection: Connection,
    expected: SourceRow,
    *,
    epoch: int,
    position: int,
    captured_until: int | None,
    loaded_until: int | None,
    last_received_at: int | None,
    mode: str | None,
    replication_id: str | None,
    stream_database: int | None,
    loaded_by_host: str,
) -> int | None:
    """Move a source's position, unless its row is no longer at the position of ``expected``.

    ``mode`` None: not known yet. Times never decrease. Returns the row's version. None: another
    loader moved it, and the caller must roll back.
    """
    version: int | None = connection.execute(
        update(sources)
        .where(
            sources.c.source_id == expected.source_id,
            sources.c.epoch == expected.epoch,
            sources.c.position == expected.position,
        )
        .values(
            mode=sources.c.mode if mode is None else mode,
            epoch=epoch,
            position=position,
            replication_id=replication_id,
            stream_database=stream_database,
            loaded_by_host=loaded_by_host,
            captured_until=func.greatest(sources.c.captured_until, time_or_none(captured_until)),
            loaded_until=func.greatest(sources.c.loaded_until, time_or_none(loaded_until)),
            last_received_at=func.greatest(
                sources.c.last_received_at, time_or_none(last_received_at)
            ),
        )
        .returning(_VERSION)
    ).scalar_one_or_none()
    return version


def retire(connection: Connection, source_id: int) -> None:
    """Set the time at which a source was retired, unless it is retired already."""
    connection.execute(
        update(sources)
        .where(sources.c.source_id == source_id)
        .values(
            retired_at=func.coalesce(sources.c.retired_at, func.accounting.database_now()),
            reopened_at=None,
        )
    )


def reopen(connection: Connection, source_id: int) -> bool:
    """Return a retired source to service; False for a source that is in service."""
    result = connection.execute(
        update(sources)
        .where(sources.c.source_id == source_id, sources.c.retired_at.is_not(None))
        .values(retired_at=None, reopened_at=func.accounting.database_now())
    )
    return result.rowcount == 1
