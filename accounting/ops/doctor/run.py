"""All probes and checks, in the order of an event's way: Redis, spool, Postgres, books, the page.

Starts no server and changes nothing.
"""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from accounting.config import Settings, environment_variable, mask_url
from accounting.db.engine import Engine, open_engine
from accounting.db.revisions import head_revision
from accounting.domain.client_addresses import ClientAddresses
from accounting.errors import AccountingError, NotAllowed
from accounting.ops.doctor.client_addresses import check_client_addresses
from accounting.ops.doctor.clock import check_clock, check_database_clock, measure_clock
from accounting.ops.doctor.findings import Finding, error
from accounting.ops.doctor.flow import check_flow
from accounting.ops.doctor.installation import check_installation
from accounting.ops.doctor.postgres_facts import (
    read_database_clock,
    read_postgres_facts,
    read_server_clock,
)
from accounting.ops.doctor.postgres_server import check_postgres
from accounting.ops.doctor.redis_probe import probe_redis
from accounting.ops.doctor.redis_server import Unreachable, check_redis
from accounting.ops.doctor.source_identity import check_identity
from accounting.ops.doctor.spool_file import check_spool, probe_spool
from accounting.ops.doctor.time_zones import check_time_zones
from accounting.ops.doctor.web_page import check_page
from accounting.ops.monitoring.health import clock_offsets
from accounting.ops.monitoring.snapshot import Snapshot, SnapshotReader

NO_UP_RUNS: Final = "and no `turn-accounting up` runs on this data directory"


def examine(
    settings: Settings, *, redis_url: str | None, database_url: str | None
) -> Iterator[Finding]:
    """Examine everything; yield findings as they come. A URL is None where no server runs."""
    with SnapshotReader(settings, lambda: database_url) as reader:
        snapshot = reader.read()
    if snapshot.database is None or not snapshot.database.is_front:  # a front captures nothing
        yield from _examine_redis(settings, redis_url, snapshot, database_url)
        yield from check_spool(snapshot, probe_spool(snapshot))
    yield from _examine_postgres(settings, database_url, snapshot)
    yield from check_flow(snapshot)
    yield from check_page(settings)


def _examine_redis(
    settings: Settings, url: str | None, snapshot: Snapshot, database_url: str | None
) -> Iterator[Finding]:
    if url is None:
        yield error(
            "redis",
            "reachable",
            f"{environment_variable('redis_url')} is not set, {NO_UP_RUNS}",
            "set it to the Redis that coturn publishes to, or run `turn-accounting up`",
        )
        return
    facts, clock_offset = probe_redis(url, mask_url(url))
    realms = snapshot.database.realms if snapshot.database is not None else ()
    live_sessions = sum(realm.live_sessions for realm in realms)
    has_events = snapshot.spool is not None and snapshot.spool.newest_at is not None
    yield from check_redis(
        facts, mode=settings.capture, live_sessions=live_sessions, has_events=has_events
    )
    if not isinstance(facts, Unreachable):
        yield check_clock("redis", clock_offset)
        if snapshot.database is not None and snapshot.database.is_at_head and database_url:
            yield from check_identity(database_url, settings.source, facts.identity)


def _examine_books(engine: Engine, settings: Settings, snapshot: Snapshot) -> Iterator[Finding]:
    """The checks that read this version's tables. The check of privileges reports missing ones."""
    with suppress(NotAllowed):
        yield from check_time_zones(engine, settings.time_zone)
    with suppress(NotAllowed):
        yield check_client_addresses(engine, ClientAddresses(settings.client_addresses))
    if snapshot.database is not None and snapshot.database.is_front:
        with suppress(NotAllowed):
            yield from check_installation(engine, snapshot.database)
    with suppress(NotAllowed):
        yield from check_database_clock(
            read_database_clock(engine), clock_offsets(snapshot).values()
        )


def _examine_postgres(settings: Settings, url: str | None, snapshot: Snapshot) -> Iterator[Finding]:
    if url is None:
        yield error(
            "postgres",
            "reachable",
            f"{environment_variable('database_url')} is not set, {NO_UP_RUNS}",
            "set it, or run `turn-accounting up` for an embedded one",
        )
        return
    engine = open_engine(url)
    try:
        facts = read_postgres_facts(engine, head=head_revision())
        clock_offset = measure_clock(lambda: read_server_clock(engine))
        is_at_head = facts.revision == head_revision()
        of_books = list(_examine_books(engine, settings, snapshot)) if is_at_head else []
    except AccountingError as failure:
        yield error(
            "postgres",
            "reachable",
            str(failure),
            f"check that it runs, {environment_variable('database_url')}, and pg_hba.conf",
        )
        return
    finally:
        engine.dispose()
    directory = facts.data_directory
    if settings.database_url is None:
        directory = str(settings.data_dir)
    free_bytes = None
    if directory is not None and Path(directory).exists():
        free_bytes = shutil.disk_usage(directory).free
    captures = snapshot.database is None or not snapshot.database.is_front
    yield from check_postgres(
        facts, head=head_revision(), disk_free_bytes=free_bytes, captures=captures
    )
    yield check_clock("postgres", clock_offset)
    yield from of_books
