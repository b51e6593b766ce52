"""Count the messages that could not be parsed, and store the first ones of each hour.

Any client of Redis can publish such messages, and as many as it wants. So only a set number of each
source and hour is stored, cut to a length, until the job ``retain`` deletes them; all are counted.
"""

from collections import Counter
from collections.abc import Container, Sequence
from typing import Final, NamedTuple

from sqlalchemy import Connection, func, insert, select
from sqlalchemy.dialects.postgresql import insert as upsert

from accounting.db.schema import rejected_counts, rejected_messages
from accounting.domain.calendar import from_micros

PER_HOUR: Final = 100
"""How many messages of a source and hour are stored, unless the settings say otherwise."""
MAX_STORED_BYTES: Final = 1024
"""Of a channel, and of a payload. coturn's own are shorter."""
HOUR_MICROSECONDS: Final = 3_600_000_000


class RejectedMessage(NamedTuple):
    """A message that could not be parsed; ``received_at`` in microseconds."""

    epoch: int
    position: int
    received_at: int
    database: int
    channel: bytes
    payload: bytes
    reason: str


def add(
    connection: Connection,
    source_id: int,
    messages: Sequence[RejectedMessage],
    *,
    per_hour: int,
    unstorable: Container[int] = (),
) -> None:
    """Count rejected messages by hour and reason, and store those that their hour has room for.

    ``unstorable``: the indexes of those that are only counted.
    """
    if not messages:
        return
    hours = {_hour(message) for message in messages}
    stored = _count_stored(connection, source_id, hours)
    counts = Counter((_hour(message), message.reason) for message in messages)
    stored_counts = Counter[tuple[int, str]]()
    rows = []
    for index, message in enumerate(messages):
        hour = _hour(message)
        if stored[hour] < per_hour and index not in unstorable:
            stored[hour] += 1
            stored_counts[hour, message.reason] += 1
            rows.append(_row(source_id, message))
    if rows:
        connection.execute(insert(rejected_messages), rows)
    query = upsert(rejected_counts)
    table = rejected_counts.c
    connection.execute(
        query.on_conflict_do_update(
            constraint="rejected_counts_pkey",
            set_={
                "messages": table.messages + query.excluded.messages,
                "stored": table.stored + query.excluded.stored,
            },
        ),
        [
            {
                "source_id": source_id,
                "starts_at": from_micros(hour),
                "reason": reason,
                "messages": count,
                "stored": stored_counts[hour, reason],
            }
            for (hour, reason), count in sorted(counts.items())
        ],
    )


def _hour(message: RejectedMessage) -> int:
    return message.received_at - message.received_at % HOUR_MICROSECONDS


def _count_stored(connection: Connection, source_id: int, hours: set[int]) -> Counter[int]:
    """How many messages of each of those hours are stored."""
    counts = Counter[int]()
    for hour in hours:
        counts[hour] = connection.execute(
            select(func.coalesce(func.sum(rejected_counts.c.stored), 0)).where(
                rejected_counts.c.source_id == source_id,
                rejected_counts.c.starts_at == from_micros(hour),
            )
        ).scalar_one()
    return counts


def _row(source_id: int, message: RejectedMessage) -> dict[str, object]:
    return message._asdict() | {
        "source_id": source_id,
        "received_at": from_micros(message.received_at),
        "channel": message.channel[:MAX_STORED_BYTES],
        "payload": message.payload[:MAX_STORED_BYTES],
    }
