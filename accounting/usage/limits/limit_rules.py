"""Set and remove limits."""

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, Engine

from accounting.db.engine import lost_connections
from accounting.db.locks import lock
from accounting.domain.limits import THE_LIMIT, Direction, Measure, Per
from accounting.errors import UsageError
from accounting.identities.realm_queries import find_realm, read_rules
from accounting.identities.user_queries import find_user_key, unknown_user_error
from accounting.usage.limits import evaluation, limit_queries
from accounting.usage.limits.limit_queries import StoredLimit

MAX_WARNINGS: Final = 10
"""How many more thresholds a limit may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetLimit:
    """A limit that was set. ``before``: what it was, if it was set before.

    ``reached``, ``cleared``: how many events of each type its evaluation made at once.
    """

    limit_id: int
    before: StoredLimit | None = None
    is_changed: bool = True
    reached: int = 0
    cleared: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageOfLimits:
    """Where the users are, and the usage that limits are compared with.

    ``begin``: a transaction that reads it. ``find_user``: the key of a user of a realm by name;
    None if the realm has no such user.
    """

    begin: Callable[[Engine], AbstractContextManager[Connection]]
    stage_realm: evaluation.StageRealm
    find_user: Callable[[Connection, int, str], UUID | None]


OWN_USAGE: Final = UsageOfLimits(
    begin=Engine.begin, stage_realm=evaluation.stage_realm, find_user=find_user_key
)
"""Both in this database."""


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
    usage: UsageOfLimits = OWN_USAGE,
) -> SetLimit:
    """Set a limit of a realm, of one user or of each of its users, and evaluate it at once.

    Where the same is limited already, that limit is changed. It holds for the buckets that end
    later. ``warnings``: more percents of the amount at which there are events. ``usage``: on a
    front, that of its cells. Waits for a roll-up that runs. Raises UsageError for an unknown realm
    or user, and for too many warnings.
    """
    if len({*warnings} - {THE_LIMIT}) > MAX_WARNINGS:
        raise UsageError(f"a limit has at most {MAX_WARNINGS} more percents")
    with lost_connections(), usage.begin(engine) as connection:
        lock(connection, "rollup")
        realm_id = find_realm(connection, realm)
        user_key = None
        if user is not None:
            user_key = usage.find_user(connection, realm_id, user)
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
        before = limit_queries.find_limit(connection, values)
        is_changed = before is None or (before.amount, [*before.thresholds]) != (
            amount,
            values["thresholds"],
        )
        if before is None:
            limit_id = limit_queries.insert_limit(connection, values)
        else:
            limit_id = before.limit_id
            if is_changed:
                limit_queries.change_limit(connection, limit_id, values)
        changes = evaluation.evaluate_realm(
            connection,
            read_rules(connection, realm_id),
            realm_id,
            user_key=limit_queries.only_user(connection, limit_id),
            stage=usage.stage_realm,
        )
        return SetLimit(
            limit_id=limit_id,
            before=before,
            is_changed=is_changed,
            reached=changes.reached,
            cleared=changes.cleared,
        )


def remove_limit(engine: Engine, limit_id: int, *, usage: UsageOfLimits = OWN_USAGE) -> int:
    """Remove a limit, and what is known of its thresholds; its events stay in the feed.

    Clears what it has reached in the hour, day, month or period that runs now; returns how many
    events that made. ``usage``: as for :func:`set_limit`. Waits for a roll-up that runs. Raises
    UsageError for an unknown limit.
    """
    with lost_connections(), usage.begin(engine) as connection:
        lock(connection, "rollup")
        whose = limit_queries.find_whose(connection, limit_id)
        if whose is None:
            raise UsageError(f"there is no limit {limit_id}: `turn-accounting limit list`")
        return evaluation.evaluate_realm(
            connection,
            read_rules(connection, whose.realm_id),
            whose.realm_id,
            user_key=limit_queries.only_user(connection, limit_id),
            removed=limit_id,
            stage=usage.stage_realm,
        ).cleared
