"""Rename a source: the name is a label of its row, so everything of it keeps its ids.

The views show the new name for all of the source's history. Texts that were written under the old
name keep it: cutoffs of statements, events and exports. So the old name stays reserved.
"""

from sqlalchemy import Connection, Engine, delete, select, update
from sqlalchemy.dialects.postgresql import insert

from accounting.db.engine import lost_connections
from accounting.db.locks import waiting_for_loaders
from accounting.db.schema import former_source_names, sources
from accounting.errors import UsageError
from accounting.sources import lease_queries, source_queries


def rename_source(engine: Engine, old_name: str, new_name: str) -> None:
    """Rename a source.

    Raises UsageError for an unknown source, for a new name that is or was another source's, and
    while a collector of the source runs, and LockHeld while its loader hangs.
    """
    with lost_connections(), engine.begin() as connection, waiting_for_loaders(connection):
        source = source_queries.lock_known_source(connection, old_name)
        if any(row.source == new_name for row in source_queries.all_sources(connection)):
            raise UsageError(f"source '{new_name}' exists already: two sources can't be one")
        former_owner = ids_by_former_name(connection).get(new_name, source.source_id)
        if former_owner != source.source_id:
            raise UsageError(
                f"'{new_name}' was the name of another source, and closed statements contain it: "
                "choose another name"
            )
        if (cell := source_queries.other_cell(connection, new_name)) is not None:
            raise UsageError(
                f"cell '{cell}' has, or had, a source '{new_name}': sources of one front have "
                "different names"
            )
        lease = lease_queries.valid_lease(connection, source.source_id)
        if lease is not None:
            raise UsageError(
                f"source '{old_name}' is collected by {lease.host} now: stop its collector first, "
                "and start it with the new name afterwards"
            )
        connection.execute(
            update(sources).where(sources.c.source_id == source.source_id).values(source=new_name)
        )
        connection.execute(
            delete(former_source_names).where(former_source_names.c.former_name == new_name)
        )
        connection.execute(
            insert(former_source_names).values(former_name=old_name, source_id=source.source_id)
        )


def ids_by_former_name(connection: Connection) -> dict[str, int]:
    """The ``source_id`` that each former name of a source belongs to."""
    rows = connection.execute(
        select(former_source_names.c.former_name, former_source_names.c.source_id)
    )
    return dict(rows.all())


def former_names(engine: Engine, name: str) -> list[str]:
    """The former names of a source, the last one first."""
    with lost_connections(), engine.connect() as connection:
        query = (
            select(former_source_names.c.former_name)
            .join(sources, sources.c.source_id == former_source_names.c.source_id)
            .where(sources.c.source == name)
            .order_by(former_source_names.c.renamed_at.desc())
        )
        return list(connection.execute(query).scalars())
