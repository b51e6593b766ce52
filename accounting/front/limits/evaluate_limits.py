"""The limits of a front: what users and realms use in all cells together.

They are set on the front, and evaluated by its job ``limits``; states and events are those of
:mod:`accounting.usage.limits`, with usage that is read from the cells. A user who reaches an amount
over N cells has at least an Nth of it in one of them: so each cell is asked for those users, and
only their sums are read. Of all buckets that contain an hour which a cell changed since the last
time, however old it is.

A cell that does not answer ends an evaluation before it changes anything.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, Engine

from accounting.db.locks import lock
from accounting.db.queries import Queries
from accounting.db.schema.limits import REALM_KEY
from accounting.domain.calendar import BucketLength, from_micros, to_micros
from accounting.domain.realm_rules import RealmRules
from accounting.errors import AccountingError
from accounting.front.cells import reading_cells
from accounting.identities import bucket_queries
from accounting.identities.realm_queries import all_rules, names_by_id
from accounting.identities.user_queries import compute_user_key, find_user_key
from accounting.usage.limits import evaluation, limit_queries
from accounting.usage.limits.evaluation import Limited
from accounting.usage.limits.limit_rules import UsageOfLimits

_QUERIES: Final = Queries("accounting.front.limits")


def evaluate_limits(engine: Engine) -> int:
    """Evaluate the limits for what changed in the cells; returns how many events that made.

    Raises ConnectionLost where a cell does not answer, and AccountingError for realms whose rules
    differ between the front and a cell: their limits wait, the others are evaluated.
    """
    with reading_cells(engine) as connection:
        lock(connection, "rollup")
        if not connection.execute(_QUERIES.text("has_limits")).scalar_one():
            return 0
        changes, waiting = evaluate_changes(connection)
    if waiting:
        raise _other_rules(waiting)
    return changes


def evaluate_changes(connection: Connection) -> tuple[int, dict[str, str]]:
    """As :func:`evaluate_limits`, in the caller's transaction, which has the lock ``rollup``.

    Returns the number of events, and the realms whose limits wait, with the cell that has other
    rules.
    """
    limited_realms = {
        realm: realm_id for realm_id, realm in connection.execute(_QUERIES.text("limited_realms"))
    }
    names = {realm_id: realm for realm, realm_id in limited_realms.items()}
    # Before all else: it begins the transaction in each cell, with the snapshot of all later reads.
    last_changes = connection.execute(_QUERIES.text("last_changes")).all()
    hours: dict[int, set[int]] = {}
    whole = set(connection.execute(_QUERIES.text("waiting_limits")).scalars())
    if connection.execute(_QUERIES.text("has_other_cells")).scalar_one():
        whole = set(names)
    whole &= set(names)
    for realm, starts_at in connection.execute(_QUERIES.text("changed_hours")):
        if realm in limited_realms:
            hours.setdefault(limited_realms[realm], set()).add(to_micros(starts_at))
    due = whole | hours.keys()
    waiting = _other_calendars(connection, [names[realm_id] for realm_id in due])
    due -= {limited_realms[realm] for realm in waiting}
    changes = 0
    if due:
        rules = all_rules(connection)
        limited = evaluation.prepare(connection, due)
        for realm_id in due & whole:
            of_realm = [length for length in limited.lengths if length.realm_id == realm_id]
            since = evaluation.limited_since(Limited(of_realm, {}), rules[realm_id])
            hours[realm_id] = _hours_since(connection, names[realm_id], since)
        _stage(
            connection,
            limited,
            rules,
            [(realm_id, hour) for realm_id in due for hour in hours.get(realm_id, ())],
            whole=due & whole,
        )
        changes = sum(evaluation.change_states(connection, limited))
        connection.execute(_QUERIES.text("clear_staged_limits"))
    connection.execute(
        _QUERIES.text("let_limits_wait"), {"realm_ids": [limited_realms[name] for name in waiting]}
    )
    connection.execute(
        _QUERIES.text("store_last_changes"),
        {
            "cell_ids": [row.cell_id for row in last_changes],
            "joined": [row.joined_at for row in last_changes],
            "changed": [row.changed_until for row in last_changes],
        },
    )
    return changes, waiting


def stage_realm(
    connection: Connection, rules: RealmRules, realm_id: int, user_key: UUID | None = None
) -> Limited:
    """As :func:`accounting.usage.limits.evaluation.stage_realm`, of the usage in the cells.

    Raises AccountingError if a cell has other rules of the realm.
    """
    realm = names_by_id(connection)[realm_id]
    if waiting := _other_calendars(connection, [realm]):
        raise _other_rules(waiting)
    limited = evaluation.prepare(connection, [realm_id])
    hours: Iterable[int] = ()
    if limited.lengths:
        hours = _hours_since(connection, realm, evaluation.limited_since(limited, rules))
    _stage(
        connection,
        limited,
        {realm_id: rules},
        [(realm_id, hour) for hour in hours],
        whole=[realm_id] if limited.lengths else [],
        user_key=user_key,
    )
    return limited


def find_user(connection: Connection, realm_id: int, user_id: str) -> UUID | None:
    """The key of a user whom a cell knows; stores the name."""
    key = compute_user_key(connection, realm_id, user_id)
    _add_names(connection, [key])
    return find_user_key(connection, realm_id, user_id)


USAGE_OF_CELLS: Final = UsageOfLimits(
    begin=reading_cells, stage_realm=stage_realm, find_user=find_user
)
"""For the limits of a front."""


def _other_calendars(connection: Connection, realms: Collection[str]) -> dict[str, str]:
    """A cell that would put usage into other buckets than the front, for each realm with one."""
    if not realms:
        return {}
    rows = connection.execute(_QUERIES.text("other_calendars"), {"realms": list(realms)})
    return {row.realm: row.cell for row in rows}


def _other_rules(waiting: Mapping[str, str]) -> AccountingError:
    [realm, cell] = next(iter(waiting.items()))
    more = f" (and those of {len(waiting) - 1} more)" if len(waiting) > 1 else ""
    return AccountingError(
        f"the limits of realm '{realm}'{more} wait: cell '{cell}' has other rules of the realm "
        "than the front"
    )


def _hours_since(connection: Connection, realm: str, since: int) -> set[int]:
    rows = connection.execute(
        _QUERIES.text("hours_of_cells"), {"realm": realm, "since": from_micros(since)}
    )
    return {to_micros(starts_at) for (starts_at,) in rows}


def _stage(
    connection: Connection,
    limited: Limited,
    rules: Mapping[int, RealmRules],
    hours: Collection[tuple[int, int]],
    *,
    whole: Collection[int],
    user_key: UUID | None = None,
) -> None:
    """Stage the usage of the buckets of limits that contain these hours.

    ``whole``: the realms of which these are all hours, so that a state without usage is wrong.
    """
    bucket_queries.insert_buckets(
        connection,
        (
            (realm_id, length, rules[realm_id].calendar.bucket(length, hour))
            for realm_id, hour in hours
            for length in BucketLength
        ),
    )
    limit_queries.stage_buckets(
        connection,
        evaluation.buckets_of(limited, rules, hours),
        dict.fromkeys({length.realm_id for length in limited.lengths}, 0),
    )
    if user_key is None:
        for bucket in connection.execute(_QUERIES.text("staged_limit_buckets")).mappings().all():
            connection.execute(_QUERIES.text("stage_candidates"), dict(bucket))
        connection.execute(_QUERIES.text("stage_reached_states"), {"realm_key": REALM_KEY})
    else:
        connection.execute(_QUERIES.text("stage_one_user"), {"user_key": user_key})
    limit_queries.stage_checks(connection)
    for realm_id in whole:
        limit_queries.stage_lost_states(connection, realm_id, user_key)
    connection.execute(_QUERIES.text("create_staged_cell_usage"))
    sums = connection.execute(_QUERIES.text("staged_sums"), {"realm_key": REALM_KEY}).mappings()
    for bucket in sums.all():
        name = "sum_realm" if bucket["is_of_realm"] else "sum_users"
        connection.execute(_QUERIES.text(name), {**bucket, "realm_key": REALM_KEY})
    connection.execute(_QUERIES.text("count_staged_sums"))
    reaching = connection.execute(_QUERIES.text("users_of_limits")).scalars().all()
    if reaching:
        _add_names(connection, reaching)


def _add_names(connection: Connection, user_keys: Sequence[UUID]) -> None:
    connection.execute(_QUERIES.text("add_users_of_cells"), {"user_keys": list(user_keys)})
