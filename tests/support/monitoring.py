"""Books that are watched: their spool where the service looks for it, metrics as numbers."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client.parser import text_string_to_metric_families

from accounting.capture.clock import wall_clock
from accounting.config import Settings
from accounting.ops.monitoring.metrics import expose
from accounting.ops.monitoring.snapshot import Watch, Watcher
from tests.support.books import WRITER, Books

Numbers = dict[tuple[str, ...], float]


def settings_of(books: Books, **chosen: object) -> Settings:
    """Settings of a service whose data directory has the books' spools."""
    data_dir = books.directory
    if data_dir.name == "spool":
        data_dir = data_dir.parent
    else:
        books.directory = data_dir / "spool"
        books.directory.mkdir()
    return Settings(data_dir=data_dir, **chosen)


@contextmanager
def watching(books: Books, url: str | None = None) -> Iterator[Watcher]:
    """A watcher of the books, as the service's role."""
    found = books.url(WRITER) if url is None else url
    with Watcher(settings_of(books), lambda: found, patience_seconds=2) as watcher:
        yield watcher


def look(books: Books, url: str | None = None) -> Watch:
    """One look."""
    with watching(books, url) as watcher:
        return watcher.look()


def tick(books: Books) -> None:
    """Capture has come to this very moment."""
    books.spool().checkpoint(wall_clock())


def numbers_in(page: str) -> Numbers:
    """The samples of a page of metrics, by name and the labels' values in order of their names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def numbers(watch: Watch) -> Numbers:
    """What a look says as metrics."""
    return numbers_in(expose(watch).decode())
