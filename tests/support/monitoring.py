"""Snapshots and metrics of books whose spools are in a service's data directory."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client.parser import text_string_to_metric_families

from accounting.capture.clock import wall_clock
from accounting.config import Settings
from accounting.ingest.source_lease import lease_holder
from accounting.ops.monitoring.metrics import render_metrics
from accounting.ops.monitoring.snapshot import Snapshot, SnapshotReader
from tests.support.books import WRITER, Books

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
def snapshot_reader(books: Books, url: str | None = None) -> Iterator[SnapshotReader]:
    """A reader of the books' snapshots, with the service's role."""
    database_url = books.url(WRITER) if url is None else url
    with SnapshotReader(settings_for(books), lambda: database_url, timeout_seconds=2) as reader:
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
