"""The examination: every probe made, every judgement asked for, in the order of the journey.

Owns what is looked at when something is missing. Starts no server and changes nothing.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from accounting.config import Settings, mask_url, variable
from accounting.db.engine import open_engine
from accounting.db.migrations import head
from accounting.errors import AccountingError
from accounting.ops.doctor.clock import judge_clock, read_clock
from accounting.ops.doctor.findings import Finding, error
from accounting.ops.doctor.flow import judge_flow
from accounting.ops.doctor.postgres_facts import examine_postgres, read_now
from accounting.ops.doctor.postgres_server import judge_postgres
from accounting.ops.doctor.redis_probe import probe_redis
from accounting.ops.doctor.redis_server import judge_redis
from accounting.ops.doctor.spool_file import judge_spool, probe_spool
from accounting.ops.monitoring.snapshot import Watch, Watcher

NONE_RUNS: Final = "and no `turn-accounting up` runs on this data directory"


def examine(
    settings: Settings, *, redis_url: str | None, database_url: str | None
) -> Iterator[Finding]:
    """Look at everything; findings come as they are found. The URLs: None where nothing runs."""
    with Watcher(settings, lambda: database_url) as watcher:
        watch = watcher.look()
    yield from _examine_redis(settings, redis_url, watch)
    yield from judge_spool(watch, probe_spool(watch))
    yield from _examine_postgres(settings, database_url)
    yield from judge_flow(watch)


def _examine_redis(settings: Settings, url: str | None, watch: Watch) -> Iterator[Finding]:
    if url is None:
        yield error(
            "redis",
            "reachable",
            f"{variable('redis_url')} is not set, {NONE_RUNS}",
            "set it to the Redis that coturn publishes to, or run `turn-accounting up`",
        )
        return
    facts, clock = probe_redis(url, mask_url(url))
    realms = watch.books.realms if watch.books is not None else ()
    live = sum(realm.live_sessions for realm in realms)
    found = list(judge_redis(facts, mode=settings.capture, live_sessions=live))
    yield from found
    if len(found) > 1:  # it is reachable
        yield judge_clock("redis", clock)


def _examine_postgres(settings: Settings, url: str | None) -> Iterator[Finding]:
    if url is None:
        yield error(
            "postgres",
            "reachable",
            f"{variable('database_url')} is not set, {NONE_RUNS}",
            "set it, or run `turn-accounting up` for an embedded one",
        )
        return
    engine = open_engine(url)
    try:
        facts = examine_postgres(engine, head=head())
        clock = read_clock(lambda: read_now(engine))
    except AccountingError as lost:
        yield error(
            "postgres",
            "reachable",
            str(lost),
            f"look whether it runs, and at {variable('database_url')} and pg_hba.conf",
        )
        return
    finally:
        engine.dispose()
    free = None
    directory = facts.data_directory
    if settings.database_url is None:
        directory = str(settings.data_dir)
    if directory is not None and Path(directory).exists():
        free = shutil.disk_usage(directory).free
    yield from judge_postgres(facts, head=head(), disk_free_bytes=free)
    yield judge_clock("postgres", clock)
