"""SQL of the delivery: the positions of the endpoints, and the leases under which they move."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID, uuid4

from sqlalchemy import Engine

from accounting.db.engine import lost_connections
from accounting.db.queries import Queries
from accounting.feed.outbox import enqueue_event
from accounting.feed.reader import FeedEvent
from accounting.webhooks.attempts import Attempt, insert_attempt
from accounting.webhooks.endpoint import Endpoint
from accounting.webhooks.endpoints import endpoint_of
from accounting.webhooks.message import Refusal
from accounting.webhooks.refusals import insert_refusals
from accounting.webhooks.retries import MAX_RETRY_SECONDS

LEASE_SECONDS: Final = 60.0
"""Longer than a request takes; after a kill another process goes on when it is over."""
CLOCK_MARGIN_SECONDS: Final = 600.0
"""So much later than the latest that can be set now: only then the database's clock was set back.
A smaller step back takes no lease away from a process that delivers."""
SCANNED_EVENTS: Final = 10_000
"""So many events are looked through at once for those that an endpoint asks for."""
READ_EVENTS: Final = 500
"""So many are read at once."""

_QUERIES: Final = Queries("accounting.webhooks")


class LeaseLost(Exception):
    """Another process may deliver to this endpoint, or it was removed, or set back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedEndpoint:
    """An endpoint under a lease, with its position at that time. ``now``: of the database."""

    endpoint: Endpoint
    lease: UUID
    version: int
    seq: int
    seqs_ahead: Sequence[int]
    failures: int
    in_doubt_since: datetime | None
    is_restored: bool
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Events that an endpoint asks for: all of those up to ``last_seq``."""

    events: Sequence[FeedEvent]
    last_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step of a position. ``counts_failure``: it failed, and the first time in this round.

    ``failure``: of this program, without an attempt. ``delivered``: how many events were taken.
    ``retry_seconds``: the pause after a failure. ``ends_doubt``: it is known that nothing was taken
    by the request.
    """

    seq: int
    seqs_ahead: Collection[int]
    attempt: Attempt | None = None
    failure: str | None = None
    refusals: Sequence[Refusal] = ()
    delivered: int = 0
    counts_failure: bool = False
    retry_seconds: float = 0.0
    ends_doubt: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenStep:
    """The row after a step."""

    version: int
    failures: int
    failing_since: datetime | None
    now: datetime


def take_due(engine: Engine, limit: int) -> list[LeasedEndpoint]:
    """Take a lease on at most so many endpoints that have something to do."""
    lease = uuid4()
    with lost_connections(), engine.begin() as connection:
        rows = connection.execute(
            _QUERIES.text("take_due"),
            {
                "limit": limit,
                "lease": lease,
                "lease_seconds": LEASE_SECONDS,
                "latest_attempt": MAX_RETRY_SECONDS + CLOCK_MARGIN_SECONDS,
                "latest_lease": LEASE_SECONDS + CLOCK_MARGIN_SECONDS,
            },
        ).mappings()
        return [
            LeasedEndpoint(
                endpoint=endpoint_of(dict(row)),
                lease=lease,
                **{
                    name: row[name]
                    for name in LeasedEndpoint.__dataclass_fields__
                    if name not in ("endpoint", "lease")
                },
            )
            for row in rows
        ]


def release(engine: Engine, leased: LeasedEndpoint) -> None:
    """End a lease, unless it is another's by now."""
    with lost_connections(), engine.begin() as connection:
        connection.execute(_QUERIES.text("release"), _key(leased))


def end_wait(engine: Engine, leased: LeasedEndpoint) -> None:
    """Say that this delivery, whose lease was taken away, sends no more."""
    with lost_connections(), engine.begin() as connection:
        connection.execute(_QUERIES.text("end_wait"), {"number": leased.endpoint.number})


def read_page(
    engine: Engine, leased: LeasedEndpoint, after: int, seqs_ahead: Collection[int]
) -> Page | None:
    """The next events after a number; None at the feed's end."""
    with lost_connections(), engine.connect() as connection:
        rows = connection.execute(
            _QUERIES.text("read_events"),
            {
                "after": after,
                "scanned": SCANNED_EVENTS,
                "limit": READ_EVENTS,
                "number": leased.endpoint.number,
                "seqs_ahead": sorted(seqs_ahead),
            },
        ).all()
    events = [FeedEvent._make(row[:6]) for row in rows if row.seq is not None]
    last_seq = events[-1].seq if len(events) == READ_EVENTS else int(rows[0].last_seq)
    return Page(events=events, last_seq=last_seq) if last_seq > after else None


def write_step(engine: Engine, leased: LeasedEndpoint, move: Step) -> WrittenStep:
    """Write a step and what led to it, and prolong the lease. Raises LeaseLost."""
    attempt = move.attempt
    failure = move.failure if attempt is None else attempt.failure
    with lost_connections(), engine.begin() as connection:
        row = connection.execute(
            _QUERIES.text("write_step"),
            {
                **_key(leased),
                "seq": move.seq,
                "seqs_ahead": sorted(move.seqs_ahead),
                "lease_seconds": LEASE_SECONDS,
                "failure": failure,
                "counts_failure": move.counts_failure,
                "retry_seconds": move.retry_seconds,
                "delivered": move.delivered,
                "ends_doubt": move.ends_doubt,
            },
        ).one_or_none()
        if row is None:
            raise LeaseLost
        if attempt is not None:
            insert_attempt(connection, leased.endpoint.number, attempt, move.seq, row.history)
        insert_refusals(connection, leased.endpoint.number, move.refusals, row.now)
    return WrittenStep(
        version=row.version,
        failures=row.failures,
        failing_since=row.failing_since,
        now=row.now,
    )


def begin_doubt(engine: Engine, leased: LeasedEndpoint) -> None:
    """Record that a request is sent now, of which no answer may be known. Raises LeaseLost."""
    with lost_connections(), engine.begin() as connection:
        values = {**_key(leased), "lease_seconds": LEASE_SECONDS}
        if not connection.execute(_QUERIES.text("begin_doubt"), values).rowcount:
            raise LeaseLost


DisableCause = Literal["failing", "gone", "restored", "in_doubt"]


def disable(engine: Engine, leased: LeasedEndpoint, cause: DisableCause, reason: str) -> None:
    """Disable an endpoint and say so in the feed, in one transaction. Raises LeaseLost.

    The feed has the ``cause`` only: the reason may quote an answer, and other endpoints read it.
    """
    number = leased.endpoint.number
    with lost_connections(), engine.begin() as connection:
        row = connection.execute(
            _QUERIES.text("disable"), {**_key(leased), "cause": cause, "reason": reason}
        ).one_or_none()
        if row is None:
            raise LeaseLost
        disabled_at = row.disabled_at.isoformat()
        payload = {
            "webhook": number,
            "format": row.format,
            "cause": cause,
            "seq": row.seq,
            "failing_since": row.failing_since and row.failing_since.isoformat(),
            "disabled_at": disabled_at,
        }
        enqueue_event(connection, "webhook.disabled", None, payload, f"{number}\n{disabled_at}")


def last_common_position(engine: Engine, leased: LeasedEndpoint) -> int:
    """After a restore: the last position whose events the feed still has."""
    with lost_connections(), engine.connect() as connection:
        values = {"number": leased.endpoint.number}
        return int(connection.execute(_QUERIES.text("last_common_position"), values).scalar_one())


def _key(leased: LeasedEndpoint) -> Mapping[str, Any]:
    return {"number": leased.endpoint.number, "lease": leased.lease}
