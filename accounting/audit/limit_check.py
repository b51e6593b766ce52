"""Compares what limits have reached with the stored hours, and finds what is checked too late."""

from collections.abc import Iterator

from sqlalchemy import Connection

from accounting.audit.differences import Difference, DifferenceFactory
from accounting.db.schema.limits import REALM_KEY
from accounting.usage.limits import evaluation, limit_queries


def check_limits(
    connection: Connection,
    differences: DifferenceFactory,
    realm_id: int,
    bounds: tuple[int, int] | None = None,
    stage: evaluation.StageRealm = evaluation.stage_realm,
) -> Iterator[Difference]:
    """Compare the states of a realm's limits, and its users' next checks, with the stored hours.

    ``bounds``: only of buckets and hours that start within them. ``stage``: stages the usage, on a
    front that of its cells. Writes nothing but scratch tables,
    which are empty again afterwards.
    """
    if not limit_queries.limited_lengths(connection, [realm_id]):
        return
    with connection.begin_nested() as savepoint:
        stage(connection, differences.rules[realm_id], realm_id, None)
        states = limit_queries.find_wrong_states(connection)
        checks = limit_queries.find_late_checks(connection)
        savepoint.rollback()
    for state in states:
        if _is_within(bounds, state.starts_at):
            yield differences.difference(
                realm_id,
                state.starts_at,
                what="limit_states",
                kind=state.kind,
                user_key=None if state.user_key == REALM_KEY else state.user_key,
                column=f"{state.threshold} % of limit {state.limit_id}",
                booked="" if state.stored_usage is None else f"{state.stored_usage.normalize():f}",
                recomputed=f"{state.usage.normalize():f}",
            )
    for check in checks:
        if _is_within(bounds, check.starts_at):
            yield differences.difference(
                realm_id,
                check.starts_at,
                what="user_usage_hourly",
                kind="differs",
                user_key=check.user_key,
                column="next_check_score",
                booked=str(check.next_check_score),
                recomputed=f"at most {check.highest}",
            )


def _is_within(bounds: tuple[int, int] | None, time: int) -> bool:
    return bounds is None or bounds[0] <= time < bounds[1]
