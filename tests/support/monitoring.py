"""Books that are watched: their spool where the service looks for it, metrics as numbers."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client.parser import text_string_to_metric_families

from accounting.capture.clock import wall_clock
from accounting.config import Settings
from accounting.ops.monitoring.metrics import render_metrics
from accounting.ops.monitoring.snapshot import Snapshot, SnapshotReader
from tests.support.books import WRITER, Books

Samples = dict[tuple[str, ...], float]


def settings_for(books: Books, **chosen: object) -> Settings:
    """Settings of a service whose data directory has the books' spools."""
    data_dir = books.directory
    if data_dir.name == "spool":
        data_dir = data_dir.parent
    else:
        books.directory = data_dir / "spool"
        books.directory.mkdir()
    return Settings(data_dir=data_dir, **chosen)


@contextmanager
def snapshot_reader(books: Books, url: str | None = None) -> Iterator[SnapshotReader]:
    """A watcher of the books, as the service's role."""
    found = books.url(WRITER) if url is None else url
    with SnapshotReader(settings_for(books), lambda: found, timeout_seconds=2) as watcher:
        yield watcher


def read_snapshot(books: Books, url: str | None = None) -> Snapshot:
    """One look."""
    with snapshot_reader(books, url) as watcher:
        return watcher.read()


def checkpoint_now(books: Books) -> None:
    """Capture has come to this very moment."""
    books.spool().checkpoint(wall_clock())


def parse_metrics(page: str) -> Samples:
    """The samples of a page of metrics, by name and the labels' values in order of their names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def metrics_of(watch: Snapshot) -> Samples:
    """What a look says as metrics."""
    return parse_metrics(render_metrics(watch).decode())
