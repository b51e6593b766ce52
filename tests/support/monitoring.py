"""Snapshots and metrics of books whose spools are in a service's data directory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

from prometheus_client.parser import text_string_to_metric_families

from accounting.capture.clock import wall_clock
from accounting.config import Settings
from accounting.ingest.source_lease import lease_holder
from accounting.ops.monitoring.metrics import render_metrics
from accounting.ops.monitoring.snapshot import Snapshot, SnapshotReader
from accounting.ops.registry import JOBS
from accounting.ops.scheduler import run_job
from accounting.reporting.cells import CellState
from accounting.usage.limits.limit_rules import set_limit
from accounting.webhooks.endpoints import add_endpoint
from tests.support.books import WRITER, Books, channel, status_payload, traffic_payload

Samples = dict[tuple[str, ...], float]


def settings_for(books: Books, **settings: object) -> Settings:
    """The settings of a service with these books; moves their spools into its data directory."""
    data_dir = books.directory
    if data_dir.name == "spool":
        data_dir = data_dir.parent
    else:
        books.directory = data_dir / "spool"
        books.directory.mkdir()
    return Settings(data_dir=data_dir, **settings)


@contextmanager
def snapshot_reader(
    books: Books, url: str | None = None, *, timeout_seconds: int = 60
) -> Iterator[SnapshotReader]:
    """A reader of the books' snapshots, with the service's role."""
    database_url = books.url(WRITER) if url is None else url
    settings = settings_for(books)
    with SnapshotReader(settings, lambda: database_url, timeout_seconds=timeout_seconds) as reader:
        yield reader


def read_snapshot(books: Books, url: str | None = None) -> Snapshot:
    """A new snapshot of the books."""
    with snapshot_reader(books, url) as reader:
        return reader.read()


def checkpoint_now(books: Books) -> None:
    """Write a checkpoint at the current time."""
    books.spool().checkpoint(wall_clock())


def set_clock_offset(books: Books, ahead_seconds: float, *, source: str = "default") -> None:
    """Let a source have a collector on a machine whose clock is so far ahead."""
    books.query(
        "INSERT INTO accounting.source_leases (source_id, holder, host, renewed_at, expires_at,"
        " clock_ahead_seconds) SELECT source_id, %s, 'here', now(), now() + '1 min', %s"
        " FROM accounting.sources WHERE source = %s RETURNING source_id",
        [lease_holder(books.spool(source).path), ahead_seconds, source],
    )


def fill_every_metric(books: Books) -> None:
    """Let these books have a value for every metric."""
    settings_for(books)
    books.start = datetime.now(UTC)
    books.receive(-2, channel("status"), status_payload("new"))
    books.receive(-1, channel("traffic"), traffic_payload(1, 1, 1, 1))
    books.receive(-1, channel("traffic", user="mallory", allocation=2), traffic_payload(1, 1, 1, 1))
    books.receive(-1, channel("traffic"), b"nonsense")
    checkpoint_now(books)
    books.run_jobs()
    books.spool().open_gap(books.micros_at(0), "disconnected")
    books.load()
    run_job(JOBS["settle"], books.engine)
    set_clock_offset(books, 0.0)
    set_limit(books.engine, "example.org", measure="bytes", per="day", amount=1)
    add_endpoint(books.engine, url="https://billing.example.org/")
    books.query(
        "INSERT INTO accounting.cells (cell_id, cell, url, revision, front_revision, database_id)"
        " VALUES (1, 'north', '', '', '', gen_random_uuid()) RETURNING cell_id"
    )


def with_cell(snapshot: Snapshot) -> Snapshot:
    """The snapshot with a cell that answers, as a front has it."""
    assert snapshot.database is not None
    cell = CellState(cell="north", sources=1, captured_lag_seconds=1, settled_lag_seconds=1)
    return replace(snapshot, database=replace(snapshot.database, cell_states=(cell,)))


def labels_of_metrics(snapshot: Snapshot) -> dict[str, set[str]]:
    """The names of the labels of each metric that has a sample."""
    return {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(render_metrics(with_cell(snapshot)).decode())
        for sample in family.samples
    }


def parse_metrics(page: str) -> Samples:
    """The samples of a page, by metric name and the labels' values in order of their names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def metrics_of(snapshot: Snapshot) -> Samples:
    """The metrics of a snapshot."""
    return parse_metrics(render_metrics(snapshot).decode())
