"""Metrics: what was seen, in the words of Prometheus.

Owns the names of the metrics. Labels name sources, realms, jobs and causes, never users. What could
not be seen is left out, so that no stale number looks alive; `turn_accounting_database_up` says so.
"""

from collections.abc import Iterable, Iterator
from math import inf

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from accounting.ops.monitoring.health import SECOND
from accounting.ops.monitoring.snapshot import Snapshot
from accounting.ops.monitoring.status_queries import DatabaseStatus

PREFIX = "turn_accounting_"


def render_metrics(watch: Snapshot) -> bytes:
    """The page of `/metrics`."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(_SnapshotCollector(watch))
    return generate_latest(registry)


class _SnapshotCollector(Collector):
    def __init__(self, watch: Snapshot) -> None:
        self._watch = watch

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        watch = self._watch
        yield _gauge(
            "database_up", "Whether the database answers and has this schema."
        ).with_samples((int(watch.database is not None and watch.database.is_at_head),))
        yield from _capture(watch)
        if watch.database is not None and watch.database.is_at_head:
            yield from _stages(watch.database)
            yield from _counts(watch.database)
            yield from _realms(watch.database)
            yield from _jobs(watch.database)


class _Family:
    """A metric with its samples given as rows: the labels' values, then the number."""

    def __init__(self, metric: GaugeMetricFamily | CounterMetricFamily) -> None:
        self._metric = metric

    def with_samples(self, *rows: tuple[str | float | None, ...]) -> Metric:
        for *labels, value in rows:
            if value is not None:
                self._metric.add_metric([str(label) for label in labels], float(value))
        return self._metric


def _gauge(name: str, text: str, *labels: str) -> _Family:
    return _Family(GaugeMetricFamily(PREFIX + name, text, labels=labels))


def _counter(name: str, text: str, *labels: str) -> _Family:
    return _Family(CounterMetricFamily(PREFIX + name, text, labels=labels))


def _lag(seconds: float | None) -> float:
    """Infinite for what was never done, so that an alert on lags sees it too."""
    return inf if seconds is None else seconds


def _capture(watch: Snapshot) -> Iterator[Metric]:
    """What the spool of this machine tells, and of other sources the database."""
    lags: dict[str, float] = {}
    gaps: dict[str, int] = {}
    received: dict[str, float | None] = {}
    for one in watch.database.sources if watch.database is not None else ():
        lags[one.source] = _lag(one.captured_lag_seconds)
        gaps[one.source] = int(one.gap_from is not None)
        if one.last_received_at is not None:
            received[one.source] = one.last_received_at / SECOND
    spool = watch.spool
    if spool is not None and watch.active_host is None:
        until = spool.state.captured_until
        lags[watch.source] = _lag(None if until is None else (watch.taken_at - until) / SECOND)
        gaps[watch.source] = int(spool.gap is not None)
        if spool.newest_at is not None:
            received[watch.source] = spool.newest_at / SECOND
    yield _gauge(
        "captured_lag_seconds",
        "How long ago the moment is until which everything published is stored, or within a gap.",
        "source",
    ).with_samples(*lags.items())
    yield _gauge("capture_gap_open", "Whether nothing is captured now.", "source").with_samples(
        *gaps.items()
    )
    yield _gauge(
        "last_received_timestamp_seconds", "When the last event came.", "source"
    ).with_samples(*received.items())
    yield _gauge("spool_up", "Whether this machine's spool can be read.", "source").with_samples(
        (watch.source, int(watch.spool_error is None))
    )
    if spool is None:
        return
    oldest = spool.backlog.oldest_at
    for name, text, value in (
        (
            "spool_unloaded_messages",
            "Messages that wait to be loaded, counted up to 200,000.",
            spool.backlog.messages,
        ),
        ("spool_unloaded_bytes", "Bytes of the messages counted so.", spool.backlog.bytes),
        (
            "spool_oldest_unloaded_seconds",
            "Age of the first message that waits to be loaded; 0 when none does.",
            0 if oldest is None else (watch.taken_at - oldest) / SECOND,
        ),
        ("spool_size_bytes", "What the spool takes on disk.", spool.size_bytes),
        ("spool_disk_free_bytes", "What is free on the spool's disk.", watch.disk_free_bytes),
    ):
        yield _gauge(name, text, "source").with_samples((watch.source, value))


def _stages(books: DatabaseStatus) -> Iterator[Metric]:
    yield _gauge(
        "loaded_lag_seconds",
        "How long ago the moment is until which everything captured is loaded.",
        "source",
    ).with_samples(*((one.source, _lag(one.loaded_lag_seconds)) for one in books.sources))
    yield _gauge(
        "settled_lag_seconds",
        "How long ago the moment is until which everything loaded is in the sessions.",
        "source",
    ).with_samples(*((one.source, _lag(one.settled_lag_seconds)) for one in books.sources))
    yield _gauge(
        "lease_held", "Whether a collector holds the source; its machine is the label.",
        "source", "host",
    ).with_samples(
        *((one.source, one.host, 1) for one in books.sources if one.host is not None)
    )  # fmt: skip
    yield _gauge(
        "silent_relay_threads",
        "Relay threads of coturn that were not heard although allocations of theirs ran out.",
        "source",
    ).with_samples(
        *(
            (one.source, sum(each.source == one.source for each in books.silent_threads))
            for one in books.sources
        )
    )
    yield _gauge(
        "touched_hours", "Usage deltas that wait for the roll-up, counted up to 100,000."
    ).with_samples((books.usage_deltas,))


def _counts(books: DatabaseStatus) -> Iterator[Metric]:
    yield _counter("capture_gaps", "Capture gaps recorded.", "source", "cause").with_samples(
        *books.gaps
    )
    yield _counter("loaded_reports", "Reports loaded.", "source").with_samples(
        *(
            (source, total)
            for source, counted, _, total in books.message_counts
            if counted == "loaded"
        )
    )
    yield _counter(
        "rejected_messages", "Messages that were no event.", "source", "reason"
    ).with_samples(
        *(
            (source, detail, total)
            for source, counted, detail, total in books.message_counts
            if counted == "rejected"
        )
    )


def _realms(books: DatabaseStatus) -> Iterator[Metric]:
    yield _gauge("live_sessions", "Sessions that live now.", "realm").with_samples(
        *((one.realm, one.live_sessions) for one in books.realms)
    )
    yield _gauge(
        "day_used_bytes", "Bytes between clients and servers in the last 24 hours.", "realm"
    ).with_samples(*((one.realm, one.used_bytes) for one in books.realms))
    yield _gauge(
        "day_unattributed_bytes", "Bytes of the last 24 hours that are nobody's.", "realm"
    ).with_samples(*((one.realm, one.unattributed_bytes) for one in books.realms))
    yield _gauge(
        "day_estimated_ratio", "Share of the last 24 hours' bytes that is estimated.", "realm"
    ).with_samples(
        *(
            (one.realm, one.estimated_bytes / one.used_bytes if one.used_bytes else 0)
            for one in books.realms
        )
    )


def _jobs(books: DatabaseStatus) -> Iterator[Metric]:
    yield _counter("job_runs", "Runs of a job.", "job").with_samples(
        *((one.job, one.runs) for one in books.jobs)
    )
    yield _counter("job_failures", "Runs of a job that failed.", "job").with_samples(
        *((one.job, one.failures) for one in books.jobs)
    )
    yield _gauge(
        "job_last_success_timestamp_seconds", "When a job last succeeded.", "job"
    ).with_samples(
        *(
            (one.job, None if one.last_succeeded_at is None else one.last_succeeded_at / SECOND)
            for one in books.jobs
        )
    )
    yield _gauge("job_last_duration_seconds", "How long that took.", "job").with_samples(
        *((one.job, one.last_seconds) for one in books.jobs)
    )
