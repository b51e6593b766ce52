"""A snapshot as metrics in the format of Prometheus.

Labels have sources, realms, jobs, causes and numbers of webhooks, never users. A metric that can't
be read is left out, so that no alert works on an old value; ``turn_accounting_database_up`` shows
that.
"""

from collections.abc import Iterable, Iterator
from math import inf
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from accounting.capture.spool.status import SpoolStatus
from accounting.ops.monitoring.health import SECOND, clock_offsets
from accounting.ops.monitoring.snapshot import Snapshot
from accounting.ops.monitoring.status_queries import DatabaseStatus

PREFIX: Final = "turn_accounting_"

Row = tuple[str | float | None, ...]
"""The values of the labels, then the sample; None leaves the row out."""


def render_metrics(snapshot: Snapshot) -> bytes:
    """The response to ``/metrics``."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(_SnapshotCollector(snapshot))
    return generate_latest(registry)


class _SnapshotCollector(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:  # the library's name
        database = self._snapshot.database
        is_up = database is not None and database.is_at_head
        yield _gauge(
            "database_up",
            "Whether the database answers and has the schema of this version; if not, only "
            "metrics of the spool are served.",
            [(int(is_up),)],
        )
        yield from _capture_metrics(self._snapshot)
        if database is not None and is_up:
            yield from _stage_metrics(database)
            yield from _message_metrics(database)
            yield from _realm_metrics(database)
            yield from _limit_metrics(database)
            yield from _job_metrics(database)
            yield from _webhook_metrics(database)
            yield from _cell_metrics(database)


def _gauge(name: str, text: str, rows: Iterable[Row], *labels: str) -> Metric:
    return _with_samples(GaugeMetricFamily(PREFIX + name, text, labels=labels), rows)


def _counter(name: str, text: str, rows: Iterable[Row], *labels: str) -> Metric:
    return _with_samples(CounterMetricFamily(PREFIX + name, text, labels=labels), rows)


def _with_samples(metric: GaugeMetricFamily | CounterMetricFamily, rows: Iterable[Row]) -> Metric:
    for *labels, value in rows:
        if value is not None:
            metric.add_metric([str(label) for label in labels], float(value))
    return metric


def _lag(seconds: float | None) -> float:
    """Infinity for a stage that never ran, so that an alert on lags fires."""
    return inf if seconds is None else seconds


def _capture_metrics(snapshot: Snapshot) -> Iterator[Metric]:
    """Capture, from this machine's spool; for other sources from the database."""
    lags: dict[str, float] = {}
    gaps: dict[str, int] = {}
    received: dict[str, float] = {}
    for source in snapshot.database.sources if snapshot.database is not None else ():
        lags[source.source] = _lag(source.captured_lag_seconds)
        gaps[source.source] = int(source.gap_from is not None)
        if source.last_received_at is not None:
            received[source.source] = source.last_received_at / SECOND
    spool = snapshot.spool
    if spool is not None and snapshot.active_host is None:
        captured_until = spool.state.captured_until
        lags[snapshot.source] = _lag(
            None if captured_until is None else (snapshot.taken_at - captured_until) / SECOND
        )
        gaps[snapshot.source] = int(spool.gap is not None)
        if spool.newest_at is not None:
            received[snapshot.source] = spool.newest_at / SECOND
    yield _gauge(
        "captured_lag_seconds",
        "Age of the last checkpoint: what was published before it is stored, or within a gap. "
        "About 1; +Inf before the first.",
        lags.items(),
        "source",
    )
    yield _gauge("capture_gap_open", "Whether capture is interrupted now.", gaps.items(), "source")
    yield _gauge(
        "last_received_timestamp_seconds",
        "When the last event was received.",
        received.items(),
        "source",
    )
    yield _gauge(
        "clock_offset_seconds",
        "How far the clock of the collector's machine is ahead of the database's; missing until "
        "they were compared.",
        clock_offsets(snapshot).items(),
        "source",
    )
    yield _gauge(
        "spool_up",
        "Whether this machine's spool can be read.",
        [(snapshot.source, int(snapshot.spool_error is None))],
        "source",
    )
    if spool is not None:
        yield from _spool_metrics(snapshot, spool)


def _spool_metrics(snapshot: Snapshot, spool: SpoolStatus) -> Iterator[Metric]:
    oldest_at = spool.backlog.oldest_at
    for name, text, value in (
        (
            "spool_unloaded_messages",
            "Messages not loaded yet, counted up to 200,000.",
            spool.backlog.messages,
        ),
        ("spool_unloaded_bytes", "Bytes of the messages not loaded yet.", spool.backlog.bytes),
        (
            "spool_oldest_unloaded_seconds",
            "Age of the oldest message not loaded yet; 0 without one.",
            0 if oldest_at is None else (snapshot.taken_at - oldest_at) / SECOND,
        ),
        ("spool_size_bytes", "Size of the spool on disk.", spool.size_bytes),
        ("spool_disk_free_bytes", "Free space on the spool's disk.", snapshot.disk_free_bytes),
    ):
        yield _gauge(name, text, [(snapshot.source, value)], "source")


def _stage_metrics(database: DatabaseStatus) -> Iterator[Metric]:
    yield _gauge(
        "loaded_lag_seconds",
        "Age of the time up to which everything is loaded into Postgres; +Inf before the first.",
        ((source.source, _lag(source.loaded_lag_seconds)) for source in database.sources),
        "source",
    )
    yield _gauge(
        "settled_lag_seconds",
        "Age of the time up to which everything is in the sessions; +Inf before the first.",
        ((source.source, _lag(source.settled_lag_seconds)) for source in database.sources),
        "source",
    )
    yield _gauge(
        "lease_held",
        "1 for the machine whose collector holds the lease.",
        ((source.source, source.host, 1) for source in database.sources if source.host is not None),
        "source",
        "host",
    )
    yield _gauge(
        "source_conflicts",
        "Collectors that were refused in the last day: a second name on this source's Redis, or a "
        "second Redis.",
        (
            (
                source.source,
                sum(
                    notice.is_error and notice.source == source.source
                    for notice in database.notices
                ),
            )
            for source in database.sources
        ),
        "source",
    )
    yield _gauge(
        "silent_relay_threads",
        "Relay threads of coturn without reports although one is overdue.",
        (
            (
                source.source,
                sum(thread.source == source.source for thread in database.silent_threads),
            )
            for source in database.sources
        ),
        "source",
    )
    yield _gauge(
        "set_aside_reports",
        "Reports that are in no session because of a bug, counted up to 10,000.",
        ((source, reports) for source, reports, _ in database.set_aside),
        "source",
    )
    yield _gauge(
        "touched_hours",
        "Usage deltas that wait for the roll-up, counted up to 100,000.",
        [(database.usage_deltas,)],
    )


def _message_metrics(database: DatabaseStatus) -> Iterator[Metric]:
    yield _counter("capture_gaps", "Capture gaps recorded.", database.gaps, "source", "cause")
    yield _counter(
        "loaded_reports",
        "Reports loaded.",
        (
            (count.source, count.total)
            for count in database.message_counts
            if count.outcome == "loaded"
        ),
        "source",
    )
    yield _counter(
        "rejected_messages",
        "Messages that could not be parsed.",
        (
            (count.source, count.reason, count.total)
            for count in database.message_counts
            if count.outcome == "rejected"
        ),
        "source",
        "reason",
    )


def _realm_metrics(database: DatabaseStatus) -> Iterator[Metric]:
    realms = database.realms
    yield _gauge(
        "live_sessions",
        "Sessions open now.",
        ((realm.realm, realm.live_sessions) for realm in realms),
        "realm",
    )
    yield _gauge(
        "day_used_bytes",
        "Bytes between clients and servers in the last 24 hours.",
        ((realm.realm, realm.used_bytes) for realm in realms),
        "realm",
    )
    yield _gauge(
        "day_unattributed_bytes",
        "Unattributed bytes of the last 24 hours.",
        ((realm.realm, realm.unattributed_bytes) for realm in realms),
        "realm",
    )
    yield _gauge(
        "day_unattributed_names",
        "Names under which unattributed bytes were reported in the last 24 hours.",
        ((realm.realm, realm.unattributed_names) for realm in realms),
        "realm",
    )
    yield _gauge(
        "hour_new_unattributed_names",
        "Names of unattributed bytes that were new in the hour until 11 minutes ago.",
        ((realm.realm, realm.new_unattributed_names) for realm in realms),
        "realm",
    )
    yield _gauge(
        "day_estimated_ratio",
        "Share of the last 24 hours' bytes that is estimated.",
        (
            (realm.realm, realm.estimated_bytes / realm.used_bytes if realm.used_bytes else 0)
            for realm in realms
        ),
        "realm",
    )


def _cell_metrics(database: DatabaseStatus) -> Iterator[Metric]:
    """Of a front, which has no sources of its own."""
    cells = database.cell_states
    answering = [cell for cell in cells if not cell.away]
    yield _gauge(
        "cell_up",
        "Of a front: whether the cell answers, and is the one that joined.",
        ((cell.cell, int(not cell.away)) for cell in cells),
        "cell",
    )
    for stage, lag in (("captured", "captured_lag_seconds"), ("settled", "settled_lag_seconds")):
        yield _gauge(
            f"cell_{lag}",
            f"Age of the time until which all sources in service of the cell are {stage}; +Inf "
            "before the first.",
            ((cell.cell, _lag(getattr(cell, lag))) for cell in answering if cell.sources),
            "cell",
        )
    yield _gauge(
        "cell_clock_offset_seconds",
        "How far the clock of the cell's database is ahead of the front's.",
        ((cell.cell, cell.clock_ahead_seconds) for cell in answering),
        "cell",
    )


def _limit_metrics(database: DatabaseStatus) -> Iterator[Metric]:
    limits = database.limits
    yield _gauge(
        "realm_limits_reached",
        "Limits of the realm as a whole of which this percent is reached in an hour, day, month "
        "or period that runs now: 100, and the --warn percents of its limits; only for realms with "
        "limits.",
        ((status.realm, status.threshold, status.realm_reached) for status in limits),
        "realm",
        "threshold",
    )
    yield _gauge(
        "user_limits_reached",
        "How often users have reached this percent of a limit in one that runs now, counted up to "
        "10,000.",
        ((status.realm, status.threshold, status.users_reached) for status in limits),
        "realm",
        "threshold",
    )


def _job_metrics(database: DatabaseStatus) -> Iterator[Metric]:
    jobs = database.jobs  # not labelled `job`, which Prometheus sets itself
    yield _counter("job_runs", "Runs of a job.", ((job.job, job.runs) for job in jobs), "name")
    yield _counter(
        "job_failures",
        "Runs of a job that failed.",
        ((job.job, job.failures) for job in jobs),
        "name",
    )
    yield _gauge(
        "job_last_success_timestamp_seconds",
        "When a job last succeeded.",
        (
            (job.job, None if job.last_succeeded_at is None else job.last_succeeded_at / SECOND)
            for job in jobs
        ),
        "name",
    )
    yield _gauge(
        "job_blocked_seconds",
        "For how long a job could not take its lock; 0 since it last ran.",
        ((job.job, job.blocked_seconds) for job in jobs),
        "name",
    )
    yield _gauge(
        "job_last_duration_seconds",
        "Duration of the last successful run.",
        ((job.job, job.last_seconds) for job in jobs),
        "name",
    )


def _webhook_metrics(database: DatabaseStatus) -> Iterator[Metric]:
    webhooks = database.webhooks
    yield _counter(
        "webhook_delivered_events",
        "Events that an endpoint took.",
        ((webhook.number, webhook.delivered_events) for webhook in webhooks),
        "webhook",
    )
    yield _gauge(
        "webhook_refused_events",
        "Events that an endpoint will never take, counted up to 10,000.",
        ((webhook.number, webhook.refused_events) for webhook in webhooks),
        "webhook",
    )
    yield _gauge(
        "webhook_events_behind",
        "Events that an endpoint is still to get, of the next 100,000 of the feed.",
        ((webhook.number, webhook.events_behind) for webhook in webhooks),
        "webhook",
    )
    yield _gauge(
        "webhook_failing_seconds",
        "For how long an endpoint has not taken the next event; 0 when it took the last one.",
        ((webhook.number, webhook.failing_seconds) for webhook in webhooks),
        "webhook",
    )
    yield _gauge(
        "webhook_disabled",
        "Whether an endpoint is disabled.",
        ((webhook.number, int(webhook.disabled_cause is not None)) for webhook in webhooks),
        "webhook",
    )
    yield _gauge(
        "cell_feed_failing_seconds",
        "For how long a front can't read the feed of a cell; 0 when it could the last time.",
        ((cell.cell, cell.failing_seconds) for cell in database.cells),
        "cell",
    )
    yield _gauge(
        "cell_feed_forwarded_seq",
        "Number in the feed of a cell up to which a front has forwarded it.",
        ((cell.cell, cell.forwarded_seq) for cell in database.cells),
        "cell",
    )
