"""The spool forgets what was loaded, by its clock: also where nobody publishes any more."""

import threading
from datetime import timedelta

from accounting.ingest.load_loop import run_loader
from accounting.ingest.loader import Loader
from tests.support.books import Books, channel, status_payload
from tests.support.servers import wait_until


def test_what_was_loaded_long_ago_goes_though_nothing_else_comes(books: Books) -> None:
    books.receive(0, channel("status"), status_payload("new"))
    books.advance_clock(3600)
    stop = threading.Event()
    loader = Loader(books.engine, books.spool(), books.rule)
    loading = threading.Thread(
        target=run_loader, args=(loader, stop), kwargs={"retention": timedelta(minutes=10)}
    )
    loading.start()
    try:
        wait_until(lambda: books.spool().state().pruned_position > 0)
    finally:
        stop.set()
        loading.join()
    assert len(books.rows("allocation_events")) == 1
