"""Retiring a source: said once, so that nothing waits for a machine that is gone."""

from sqlalchemy import Engine

from accounting.db.engine import lost_connections
from accounting.errors import unknown_name
from accounting.sources import source_queries


def retire_source(engine: Engine, name: str) -> None:
    """Mark a source as gone. Raises UsageError for one that nobody knows."""
    with lost_connections(), engine.begin() as connection:
        if not source_queries.retire(connection, name):
            known = [row.source for row in source_queries.all_sources(connection)]
            raise unknown_name("source", name, known)
