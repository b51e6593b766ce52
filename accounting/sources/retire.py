"""Take a source out of service, so that nothing waits for a machine that is gone."""

from sqlalchemy import Engine

from accounting.db.engine import lost_connections
from accounting.errors import unknown_name
from accounting.sources import source_queries


def retire_source(engine: Engine, name: str) -> None:
    """Retire a source. Raises UsageError for an unknown name."""
    with lost_connections(), engine.begin() as connection:
        if not source_queries.retire(connection, name):
            known = [source.source for source in source_queries.all_sources(connection)]
            raise unknown_name("source", name, known)
