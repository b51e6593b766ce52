"""Captures what a source of a plan publishes, with a real server and a collector that is killed.

The messages get the times of the plan afterwards: a collector's own clock shows today.
"""

import random
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby, pairwise
from pathlib import Path
from typing import Final, NamedTuple

import redis

from accounting.capture.spool.file import spool_path
from accounting.capture.spool.spool import Spool
from tests.histories.plan import Published, SourcePlan
from tests.support.collectors import CollectorProcess, stored_messages
from tests.support.servers import RedisServer, wait_until

DEADLINE_SECONDS: Final = 60.0


class Place(NamedTuple):
    """Where a collector stored a message."""

    position: int
    database: int


def capture(
    plan: SourcePlan, server: RedisServer, data_dir: Path, chance: random.Random
) -> list[Place]:
    """Publish everything; returns the place of each message, which are those that were stored.

    In replication mode the collector is killed on the way, and resumes where it was.
    """
    parts = split(plan.published, chance.randint(1, 3) if plan.mode == "replication" else 1, chance)
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
    count = 0
    for number, part in enumerate(parts):
        with CollectorProcess(server.url, data_dir, capture=plan.mode) as collector:
            spool_file = spool_path(data_dir, "test")
            wait_until(spool_file.exists, DEADLINE_SECONDS)
            with Spool.open(spool_file, "test") as spool:
                before = spool.state().captured_until
                wait_until(
                    lambda: spool.state().captured_until != before,  # noqa: B023
                    DEADLINE_SECONDS,
                )
                publish(server, part)
                count += len(part)
                if number + 1 < len(parts):
                    collector.kill()  # with what it holds in memory
                else:
                    with suppress(AssertionError):
                        wait_until(
                            lambda: len(stored_messages(spool)) >= count,  # noqa: B023
                            DEADLINE_SECONDS,
                        )
                    output = collector.terminate()
                    stored = stored_messages(spool)
    shows_databases = plan.mode == "replication"
    expected = [
        (message.database if shows_databases else 0, message.channel, message.payload)
        for message in plan.published
    ]
    found = [(row.database, row.channel, row.payload) for row in stored]
    assert found == expected, (
        f"{plan.name}: {len(found)} messages are stored, {len(expected)} were published;"
        f" the collector: {output}"
    )
    assert {row.epoch for row in stored} == {1}
    return [Place(row.position, row.database) for row in stored]


def split(
    published: Sequence[Published], count: int, chance: random.Random
) -> list[Sequence[Published]]:
    cuts = sorted(chance.sample(range(1, len(published)), count - 1))
    bounds = [0, *cuts, len(published)]
    return [published[first:last] for first, last in pairwise(bounds)]


def publish(server: RedisServer, messages: Sequence[Published]) -> None:
    """As coturn does: a status is set or deleted as a key before it is published."""
    with (
        redis.Redis(port=server.port, single_connection_client=True) as client,
        client.pipeline(transaction=False) as pipeline,
    ):
        for database, group in groupby(messages, key=lambda message: message.database):
            pipeline.execute_command("SELECT", database)
            for message in group:
                if message.channel.endswith(b"/status"):
                    if message.payload == b"deleted":
                        pipeline.delete(message.channel)
                    else:
                        pipeline.set(message.channel, message.payload)
                pipeline.publish(message.channel, message.payload)
        pipeline.execute()
