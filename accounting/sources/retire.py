"""Retiring a source: said once, so that nothing waits for a machine that is gone."""

from sqlalchemy import Engine

from accounting.db.engine import lost_connections
from accounting.errors import UsageError
from accounting.sources import source_queries


def retire_source(engine: Engine, name: str) -> None:
    """Mark a source as gone. Raises UsageError for one that nobody knows."""
    with lost_connections(), engine.begin() as connection:
        if not source_queries.retire(connection, name):
            known = ", ".join(f"'{one.source}'" for one in source_queries.all_sources(connection))
            raise UsageError(f"no source '{name}' is known: known are {known or 'none yet'}")
