"""Compares what the limits of a front have reached with the usage in its cells."""

from collections.abc import Iterator

from sqlalchemy import Engine

from accounting.audit.differences import Difference, DifferenceFactory
from accounting.audit.limit_check import check_limits
from accounting.db.locks import lock
from accounting.db.queries import Queries
from accounting.front.cells import reading_cells
from accounting.front.limits.evaluate_limits import evaluate_changes, stage_realm
from accounting.identities.realm_queries import all_rules, names_by_id

_QUERIES = Queries("accounting.front.limits")


def check_front_limits(engine: Engine, realm: str | None = None) -> Iterator[Difference]:
    """Compare the states of the limits of a front, or of one realm of it, with its cells.

    What changed since the job ``limits`` looked is no difference: it is evaluated first, and rolled
    back with the rest. Realms whose limits wait are left out. Raises ConnectionLost.
    """
    with (
        reading_cells(engine, statement_seconds=0) as connection,
        connection.begin_nested() as savepoint,
    ):
        lock(connection, "rollup")
        limited = connection.execute(_QUERIES.text("limited_realms")).all()
        if not limited:
            return
        _, waiting = evaluate_changes(connection)
        factory = DifferenceFactory(names_by_id(connection), all_rules(connection))
        differences = [
            difference
            for row in limited
            if realm in (None, row.realm) and row.realm not in waiting
            for difference in check_limits(connection, factory, row.realm_id, stage=stage_realm)
        ]
        savepoint.rollback()
    yield from differences
