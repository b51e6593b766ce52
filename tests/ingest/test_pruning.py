"""Pruning: the loader deletes loaded messages from the spool by the spool's own clock."""

import threading
from datetime import timedelta

from accounting.ingest.load_loop import run_loader
from accounting.ingest.loader import Loader
from tests.support.books import Books, channel, status_payload
from tests.support.servers import wait_until


def test_loaded_messages_are_pruned_although_nothing_more_is_published(books: Books) -> None:
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
