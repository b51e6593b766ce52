"""The endpoints: added, listed, removed, rotated, enabled and set back, for the command line.

A secret leaves the database twice: when it is made, to whoever made it, and to sign a request.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, Engine

from accounting.db.engine import lost_connections
from accounting.db.queries import Queries
from accounting.errors import UsageError
from accounting.identities.realm_queries import find_realm
from accounting.usage.counted_usage import start_metering, stop_metering
from accounting.webhooks.endpoint import Endpoint, shown_url
from accounting.webhooks.signing import new_secret

Row = Mapping[str, Any]
METERED_TYPE: Final = "usage.counted"
"""Events that the feed has only while an endpoint asks for them: one an hour and user."""
EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""Before any usage."""
_QUERIES: Final = Queries("accounting.webhooks")


def add_endpoint(
    engine: Engine,
    *,
    url: str,
    format: str = "standard",  # noqa: A002  # as the option
    types: Sequence[str] | None = None,
    realm: str | None = None,
    options: Mapping[str, Any] | None = None,
    api_key: str | None = None,
    allows_private: bool = False,
    batch_size: int = 1,
    parallel: int = 1,
    since: datetime | None = None,
    from_start: bool = False,
) -> tuple[int, str]:
    """Add an endpoint; returns its number and its secret, which nothing shows again.

    It gets the events that are numbered from now on; ``since``, ``from_start``: earlier ones too.
    ``types`` None: all. The first one that asks for the usage of users by name begins its events.
    Raises UsageError for an unknown realm, and LockHeld.
    """
    secret = new_secret()
    with lost_connections(), engine.begin() as connection:
        if METERED_TYPE in (types or ()):
            start_metering(connection, EARLIEST if from_start else since)
        number: int = connection.execute(
            _QUERIES.text("insert_webhook"),
            {
                "url": url,
                "format": format,
                "types": None if types is None else list(types),
                "realm_id": None if realm is None else find_realm(connection, realm),
                "options": json.dumps(options or {}),
                "allows_private": allows_private,
                "batch_size": batch_size,
                "parallel": parallel,
                "secret": secret,
                "api_key": api_key,
                "seq": 0 if from_start else _position(connection, since),
            },
        ).scalar_one()
    return number, secret


def list_endpoints(engine: Engine) -> list[Row]:
    """All endpoints by number, without their secrets and the queries of their URLs."""
    with lost_connections(), engine.connect() as connection:
        rows = connection.execute(_QUERIES.text("list_webhooks")).mappings()
        return [{**row, "url": shown_url(row["url"])} for row in rows]


def find_endpoint(engine: Engine, number: int) -> tuple[Endpoint, datetime]:
    """An endpoint with its secrets, and the database's time. Raises UsageError for an unknown."""
    with lost_connections(), engine.connect() as connection:
        result = connection.execute(_QUERIES.text("find_webhook"), {"number": number})
        row = result.mappings().one_or_none()
        if row is None:
            raise _unknown_endpoint(connection, number)
    return endpoint_of(dict(row)), row["now"]


def endpoint_of(row: Row) -> Endpoint:
    """The endpoint of a row that has its columns, and others."""
    return Endpoint(**{name: row[name] for name in Endpoint.__dataclass_fields__})


def remove_endpoint(engine: Engine, number: int) -> None:
    """Remove an endpoint, with its attempts and refusals. Raises UsageError for an unknown one.

    With the last one that asked for the usage of users its events end. Raises LockHeld.
    """
    with lost_connections(), engine.begin() as connection:
        types = _write(connection, "delete_webhook", number)
        wants = connection.execute(_QUERIES.text("wants_type"), {"type": METERED_TYPE})
        if METERED_TYPE in (types or ()) and not wants.scalar_one():
            stop_metering(connection)


def rotate_secret(engine: Engine, number: int, overlap_seconds: float) -> tuple[str, Any]:
    """Give an endpoint another secret; returns it, and until when the one before signs as well.

    Raises UsageError while an earlier overlap lasts, unless this one has none: only two secrets
    sign at a time.
    """
    secret = new_secret()
    with lost_connections(), engine.connect() as connection:
        query = _QUERIES.text("overlap_until")
        earlier = connection.execute(query, {"number": number}).scalar_one_or_none()
    if earlier is not None and overlap_seconds > 0:
        raise UsageError(
            f"the secret before the last one signs until {earlier:%Y-%m-%d %H:%M} UTC: rotate "
            "then, or with --overlap 0, which ends both at once"
        )
    until = _change(engine, "rotate_secret", number, secret=secret, overlap_seconds=overlap_seconds)
    return secret, until


def enable_endpoint(engine: Engine, number: int) -> bool:
    """Enable an endpoint, and forget that it failed; whether it was disabled."""
    return bool(_change(engine, "enable", number))


def replay_events(
    engine: Engine, number: int, *, after: int | None = None, since: datetime | None = None
) -> tuple[int, int]:
    """Deliver the events after a number, or since a time, again; also enables the endpoint.

    Returns that number, and that of the last event. Raises UsageError for a number beyond the end.
    """
    with lost_connections(), engine.begin() as connection:
        last_seq: int = connection.execute(_QUERIES.text("last_seq")).scalar_one()
        seq = _position(connection, since) if after is None else after
        if seq > last_seq:
            raise UsageError(f"--after {seq}: the feed ends at {last_seq}")
        values = {"number": number, "seq": seq}
        if connection.execute(_QUERIES.text("replay"), values).one_or_none() is None:
            raise _unknown_endpoint(connection, number)
    return seq, last_seq


def list_attempts(
    engine: Engine, number: int | None, *, failed: bool = False, limit: int | None = None
) -> list[Row]:
    """The requests of an endpoint, or of all, newest first; ``failed``: only those."""
    return _list(engine, "list_attempts", number, failed=failed, limit=limit)


def list_refusals(engine: Engine, number: int | None, limit: int | None = None) -> list[Row]:
    """The events that an endpoint, or any, will never take; newest first."""
    return _list(engine, "list_refusals", number, limit=limit)


def _list(engine: Engine, query: str, number: int | None, **values: Any) -> list[Row]:
    with lost_connections(), engine.connect() as connection:
        rows = connection.execute(_QUERIES.text(query), {"number": number, **values}).mappings()
        listed: list[Row] = [dict(row) for row in rows]
        if number is not None and not listed and number not in _numbers(connection):
            raise _unknown_endpoint(connection, number)
        return listed


def _change(engine: Engine, query: str, number: int, **values: Any) -> Any:
    with lost_connections(), engine.begin() as connection:
        return _write(connection, query, number, **values)


def _write(connection: Connection, query: str, number: int, **values: Any) -> Any:
    row = connection.execute(_QUERIES.text(query), {"number": number, **values}).one_or_none()
    if row is None:
        raise _unknown_endpoint(connection, number)
    return row[0]


def _position(connection: Connection, since: datetime | None) -> int:
    """The number before the first event since a time; that of the last event for None."""
    if since is None:
        return int(connection.execute(_QUERIES.text("last_seq")).scalar_one())
    return int(connection.execute(_QUERIES.text("seq_before"), {"at": since}).scalar_one())


def require_endpoint(connection: Connection, number: int) -> None:
    """Raise UsageError for an unknown endpoint."""
    if number not in _numbers(connection):
        raise _unknown_endpoint(connection, number)


def _numbers(connection: Connection) -> list[int]:
    rows = connection.execute(_QUERIES.text("list_webhooks"))
    return [row.number for row in rows]


def _unknown_endpoint(connection: Connection, number: int) -> UsageError:
    numbers = _numbers(connection)
    nearest = sorted(sorted(numbers, key=lambda known: abs(known - number))[:3])
    known = f"the nearest are {', '.join(map(str, nearest))}" if nearest else "there is none yet"
    return UsageError(f"there is no webhook {number}: {known}")
