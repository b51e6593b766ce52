"""Set and remove limits."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Engine

from accounting.db.engine import lost_connections
from accounting.db.locks import lock
from accounting.domain.limits import Direction, Measure, Per
from accounting.errors import UsageError
from accounting.identities.realm_queries import find_realm, read_rules
from accounting.identities.user_queries import find_user_key, unknown_user_error
from accounting.usage.limits import evaluation, limit_queries

THE_LIMIT: Final = 100
"""The threshold that is the limit itself, in percent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetLimit:
    """A limit that was set. ``events``: how many its evaluation made at once."""

    limit_id: int
    is_changed: bool
    events: int


def set_limit(
    engine: Engine,
    realm: str,
    *,
    user: str | None = None,
    every_user: bool = False,
    measure: Measure,
    direction: Direction = "both",
    per: Per,
    amount: int,
    warnings: Collection[int] = (),
) -> SetLimit:
    """Set a limit of a realm, of one user or of each of its users, and evaluate it at once.

    Where the same is limited already, that limit is changed. It holds for the buckets that end
    later. ``warnings``: more percents of the amount at which there are events. Waits for a roll-up
    that runs. Raises UsageError for an unknown realm or user.
    """
    with lost_connections(), engine.begin() as connection:
        lock(connection, "rollup")
        realm_id = find_realm(connection, realm)
        user_key = None
        if user is not None:
            user_key = find_user_key(connection, realm_id, user)
            if user_key is None:
                raise unknown_user_error(connection, realm, user)
        values = {
            "realm_id": realm_id,
            "whom": "user" if user is not None else "every_user" if every_user else "realm",
            "user_key": user_key,
            "measure": measure,
            "direction": direction,
            "per": per,
            "amount": amount,
            "thresholds": sorted({*warnings, THE_LIMIT}),
        }
        limit_id, is_changed = limit_queries.put_limit(connection, values)
        rules = read_rules(connection, realm_id)
        events = evaluation.evaluate_realm(connection, rules, realm_id)
        return SetLimit(limit_id=limit_id, is_changed=is_changed, events=events)


def remove_limit(engine: Engine, limit_id: int) -> None:
    """Remove a limit, and what is known of its thresholds; its events stay in the feed.

    Waits for a roll-up that runs. Raises UsageError for an unknown limit.
    """
    with lost_connections(), engine.begin() as connection:
        lock(connection, "rollup")
        if not limit_queries.delete_limit(connection, limit_id):
            raise UsageError(f"there is no limit {limit_id}: `turn-accounting limit list`")
