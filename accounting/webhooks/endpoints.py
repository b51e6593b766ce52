"""The endpoints: added, listed, removed, rotated, enabled and set back, for the command line.

A secret leaves the database twice: when it is made, to the one who made it, and to sign a request.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Engine

from accounting.db.clock import database_now
from accounting.db.engine import lost_connections
from accounting.db.queries import Queries
from accounting.errors import UsageError
from accounting.identities.realm_queries import find_realm
from accounting.webhooks.customers import write_customers
from accounting.webhooks.endpoint import Endpoint, shown_url
from accounting.webhooks.endpoint_numbers import read_format, unknown_endpoint
from accounting.webhooks.formats import repeat_seconds
from accounting.webhooks.formats.options import METERING_TYPES, FormatName
from accounting.webhooks.signing import new_secret

Row = Mapping[str, Any]
_QUERIES: Final = Queries("accounting.webhooks")


def add_endpoint(
    engine: Engine,
    *,
    url: str,
    format: str = "standard",  # noqa: A002  # as the option
    types: Sequence[str] | None = None,
    realm: str | None = None,
    options: Mapping[str, Any] | None = None,
    customers: Iterable[str] | None = None,
    api_key: str | None = None,
    allows_private: bool = False,
    batch_size: int = 1,
    parallel: int = 1,
    since: datetime | None = None,
    from_start: bool = False,
) -> tuple[int, str]:
    """Add an endpoint; returns its number and its secret, which nothing shows again.

    It gets the events that are numbered from now on; ``since``, ``from_start``: earlier ones too.
    ``types`` None: all that its format takes. An engine that meters usage counts the hours that
    begin from then on, and needs customers: a template in its options, or the lines of a file.
    Raises UsageError for an unknown realm, and for what the format does not take.
    """
    name = FormatName(format)
    if name.is_metering:
        types = METERING_TYPES if types is None else types
        if not set(types) <= set(METERING_TYPES):
            raise UsageError(f"--types: {name} gets {' and '.join(METERING_TYPES)} only")
        if customers is None and "customer" not in (options or {}):
            raise UsageError(
                f"expected --customer TEMPLATE, --customers FILE or both: whom {name} bills; usage "
                "of a user without a customer would be refused"
            )
    elif customers is not None:
        raise UsageError(f"--customers: {name} bills nobody")
    secret = new_secret()
    with lost_connections(), engine.begin() as connection:
        if since is not None and not name.is_metering and since > database_now(connection):
            raise UsageError(f"--since {since:%Y-%m-%d %H:%M} UTC is later than now")
        counted_from = None
        if name.is_metering and not from_start:
            counted_from = database_now(connection) if since is None else since
        number: int = connection.execute(
            _QUERIES.text("insert_webhook"),
            {
                "url": url,
                "format": name,
                "types": None if types is None else list(types),
                "realm_id": None if realm is None else find_realm(connection, realm),
                "options": json.dumps(options or {}),
                "allows_private": allows_private,
                "batch_size": batch_size,
                "parallel": parallel,
                "secret": secret,
                "api_key": api_key,
                "seq": 0 if from_start else _position(connection, since),
                "counted_from": counted_from,
            },
        ).scalar_one()
        if customers is not None:
            write_customers(connection, number, customers)
    return number, secret


class CountedSpan(NamedTuple):
    """What an engine counts. ``since`` None: all. ``cut_periods``: (realm, period) that it cuts."""

    since: datetime | None
    cut_periods: Sequence[tuple[str, str]]


def read_counted_span(engine: Engine, number: int) -> CountedSpan:
    """From when on an engine counts, and of which periods it counts a part only."""
    with lost_connections(), engine.connect() as connection:
        values = {"number": number}
        since = connection.execute(_QUERIES.text("counted_from"), values).scalar_one()
        rows = connection.execute(_QUERIES.text("cut_periods"), values)
        return CountedSpan(since, [(row.realm, f"{row.period}") for row in rows])


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
            raise unknown_endpoint(connection, number)
    return endpoint_of(dict(row)), row["now"]


def endpoint_of(row: Row) -> Endpoint:
    """The endpoint of a row that has its columns, and others."""
    return Endpoint(**{name: row[name] for name in Endpoint.__dataclass_fields__})


def remove_endpoint(engine: Engine, number: int) -> None:
    """Remove an endpoint, with its attempts and refusals. Raises UsageError for an unknown one."""
    _change(engine, "delete_webhook", number)


def rotate_secret(engine: Engine, number: int, overlap_seconds: float) -> tuple[str, Any]:
    """Give an endpoint another secret; returns it, and until when the one before signs as well.

    Raises UsageError while an earlier overlap lasts, unless this one has none: only two secrets
    sign at a time.
    """
    secret = new_secret()
    with lost_connections(), engine.connect() as connection:
        name = read_format(connection, number)
        if FormatName(name).is_metering:
            raise UsageError(
                f"webhook {number} has no secret, as its format is {name}: expected --key-file"
            )
        query = _QUERIES.text("overlap_until")
        earlier = connection.execute(query, {"number": number}).scalar_one_or_none()
    if earlier is not None and overlap_seconds > 0:
        raise UsageError(
            f"the secret before the last one signs until {earlier:%Y-%m-%d %H:%M} UTC: rotate "
            "then, or with --overlap 0, which ends both at once"
        )
    values = {"secret": secret, "overlap_seconds": overlap_seconds}
    return secret, _change(engine, "rotate_secret", number, **values).previous_until


def set_api_key(engine: Engine, number: int, api_key: str) -> None:
    """Give an engine's endpoint another API key. Raises UsageError for one that has none."""
    with lost_connections(), engine.begin() as connection:
        name = read_format(connection, number)
        if not FormatName(name).is_metering:
            raise UsageError(
                f"--key-file: webhook {number} has no API key, as its format is {name}"
            )
        _change_row(connection, "set_api_key", number, api_key=api_key)


def enable_endpoint(engine: Engine, number: int) -> str:
    """Enable an endpoint, and try it at once; returns its state of before.

    Raises UsageError for one that would count an event twice.
    """
    before = _change(engine, "enable", number)
    if before.disabled_cause in ("in_doubt", "restored"):
        raise UsageError(
            f"webhook {number} may have counted its next event already: `webhook list` says what "
            f"to compare there, then `turn-accounting webhook replay {number} --after SEQ` goes on"
        )
    return str(before.state)


def replay_events(
    engine: Engine,
    number: int,
    *,
    after: int | None = None,
    since: datetime | None = None,
    again: bool = False,
) -> tuple[int, int]:
    """Deliver the events after a number, or since a time, again; also enables the endpoint.

    Returns that number, and that of the last event. ``again``: also what an engine may have counted
    and forgotten, so that it counts that again. Raises UsageError for such events otherwise, and
    for a number beyond the end.
    """
    with lost_connections(), engine.begin() as connection:
        last_seq: int = connection.execute(_QUERIES.text("last_seq")).scalar_one()
        if since is not None and since > database_now(connection):
            raise UsageError(f"--since {since:%Y-%m-%d %H:%M} UTC is later than now")
        seq = _position(connection, since) if after is None else after
        if seq > last_seq:
            raise UsageError(f"--after {seq}: the feed ends at {last_seq}")
        if not again:
            _require_remembered(connection, number, seq)
        _change_row(connection, "replay", number, seq=seq)
    return seq, last_seq


def _require_remembered(connection: Connection, number: int, seq: int) -> None:
    name = FormatName(read_format(connection, number))
    if (seconds := repeat_seconds(name)) is None:
        return
    values = {"number": number, "seq": seq, "seconds": seconds}
    if last := connection.execute(_QUERIES.text("last_forgotten_event"), values).scalar():
        raise UsageError(
            f"webhook {number} got events up to {last} that are older than {seconds / 3600:.0f} "
            f"hours, after which {name} counts a repeated event again: expected --after {last} or "
            "later, or --again if it has none of them"
        )


def _change(engine: Engine, query: str, number: int, **values: Any) -> Any:
    with lost_connections(), engine.begin() as connection:
        return _change_row(connection, query, number, **values)


def _change_row(connection: Connection, query: str, number: int, **values: Any) -> Any:
    row = connection.execute(_QUERIES.text(query), {"number": number, **values}).one_or_none()
    if row is None:
        raise unknown_endpoint(connection, number)
    return row


def _position(connection: Connection, since: datetime | None) -> int:
    """The number before the first event since a time; that of the last event for None."""
    if since is None:
        return int(connection.execute(_QUERIES.text("last_seq")).scalar_one())
    return int(connection.execute(_QUERIES.text("seq_before"), {"at": since}).scalar_one())
