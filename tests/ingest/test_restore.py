"""A spool or a database that is not what it was: lost, copied back, or shared by two loaders.

Each message is counted once or lies within a gap that says so.
"""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from accounting.capture.spool.pruning import prune
from tests.support.books import Books, channel, status_payload, traffic_payload


def hear(books: Books, *numbers: int, user: str = "alice") -> None:
    """Receive interims whose received bytes are their numbers, a second apart."""
    for number in numbers:
        books.receive(number, channel("traffic", user=user), traffic_payload(1, number, 0, 0))


def loaded(books: Books) -> list[int]:
    """The numbers in the reports, in order of epoch and position."""
    rows = books.rows("traffic_reports", "received_bytes", order="epoch, position")
    return [row["received_bytes"] for row in rows]


def gaps(books: Books) -> list[tuple[str, int, int | None]]:
    """(cause, from, to) of the gaps, in seconds of the books, in order of time."""
    rows = books.rows("capture_gaps", order="from_at, cause")

    def seconds(at: Any) -> int | None:
        return None if at is None else round((at - books.start).total_seconds())

    return [(row["cause"], seconds(row["from_at"]) or 0, seconds(row["to_at"])) for row in rows]


class Disk:
    """The spool's files of a test's books: taken away, copied, put back."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self.path = books.spool().path

    def let_go(self) -> None:
        """End collector and loader: the books open their spool anew when they next use it."""
        self.books.spool().close()
        self.books._spools.clear()
        self.books._loaders.clear()

    def copy(self, to: Path) -> Path:
        self.let_go()
        shutil.copy(self.path, to)
        return to

    def put_back(self, copy: Path) -> None:
        self.let_go()
        shutil.copy(copy, self.path)

    def lose(self) -> None:
        self.let_go()
        for path in self.path.parent.glob(f"{self.path.name}*"):
            path.unlink()


def restart_collector(books: Books, at: float) -> None:
    """What a collector does at its start: the time since its last tick is a gap, ended now."""
    spool = books.spool()
    until = spool.state().captured_until
    if until is not None:
        if spool.current_gap() is None:
            spool.open_gap(until, "collector_restarted")
        gap = spool.current_gap()
        assert gap is not None
        spool.close_gap(gap.number, books.micros_at(at))
    spool.checkpoint(books.micros_at(at))


def test_a_lost_spool_is_a_new_epoch_and_a_gap_with_both_its_ends(books: Books) -> None:
    hear(books, 1, 2)
    books.advance_clock(3)
    books.load()
    Disk(books).lose()
    books.spool()
    books.load()
    assert gaps(books) == [("spool_lost", 3, None)]
    restart_collector(books, 10)
    hear(books, 11, 12)
    books.advance_clock(13)
    books.load()
    assert loaded(books) == [1, 2, 11, 12]
    assert gaps(books) == [("spool_lost", 3, 10)]
    (source,) = books.rows("sources")
    assert (source["epoch"], source["position"]) == (2, 2)


def test_a_spool_lost_twice_is_two_gaps(books: Books) -> None:
    disk = Disk(books)
    for start in (0, 10, 20):
        restart_collector(books, start)
        hear(books, start + 1)
        books.advance_clock(start + 2)
        books.load()
        disk.lose()
    assert loaded(books) == [1, 11, 21]
    assert gaps(books) == [("spool_lost", 2, 10), ("spool_lost", 12, 20)]


def test_what_a_lost_spool_held_that_was_not_loaded_is_within_the_gap(books: Books) -> None:
    hear(books, 1, 2)
    books.advance_clock(3)
    books.load()
    hear(books, 4, 5, 6)
    books.advance_clock(7)
    # The disk goes before the rest of a backlog is loaded.
    assert books._loaders["default"].load(1) == 1
    Disk(books).lose()
    restart_collector(books, 20)
    books.load()
    assert gaps(books) == [("spool_lost", 4, 20)]


def test_a_lost_spool_that_is_found_again_counts_nothing_twice(
    books: Books, tmp_path: Path
) -> None:
    disk = Disk(books)
    hear(books, 1, 2)
    books.advance_clock(3)
    books.load()
    copy = disk.copy(tmp_path / "copy")
    disk.lose()
    books.spool()
    books.load()
    restart_collector(books, 10)
    hear(books, 11)
    books.advance_clock(12)
    books.load()
    disk.put_back(copy)
    restart_collector(books, 20)
    hear(books, 21)
    books.advance_clock(22)
    books.load()
    assert loaded(books) == [1, 2, 11, 21]
    assert gaps(books) == [("collector_restarted", 3, 20), ("spool_lost", 3, 10)]


def test_a_spool_set_back_to_a_copy_is_a_new_epoch_and_nothing_counts_twice(
    books: Books, tmp_path: Path
) -> None:
    disk = Disk(books)
    hear(books, 1, 2)
    books.advance_clock(3)
    books.load()
    copy = disk.copy(tmp_path / "copy")
    hear(books, 4, 5, 6)
    books.advance_clock(7)
    books.load()
    disk.put_back(copy)
    restart_collector(books, 10)
    hear(books, 11)
    books.advance_clock(12)
    books.load()
    hear(books, 13, 14, 15, 16)
    books.load()
    assert loaded(books) == [1, 2, 4, 5, 6, 11, 13, 14, 15, 16]
    assert gaps(books) == [("collector_restarted", 3, 10)]
    (source,) = books.rows("sources")
    assert (source["epoch"], source["position"]) == (2, 7)
    books.load()
    assert len(loaded(books)) == 10


def test_a_copy_of_the_spool_that_ran_ahead_before_it_was_loaded_is_found_out(
    books: Books, tmp_path: Path
) -> None:
    """Its positions have passed those in the database, so that they look like the next ones."""
    disk = Disk(books)
    hear(books, 1, 2)
    books.advance_clock(3)
    books.load()
    copy = disk.copy(tmp_path / "copy")
    hear(books, 4, 5)
    books.advance_clock(6)
    books.load()
    disk.put_back(copy)
    restart_collector(books, 10)
    hear(books, 11, 12, 13, 14)
    books.advance_clock(15)
    books.load()
    assert loaded(books) == [1, 2, 4, 5, 11, 12, 13, 14]


def test_a_copy_of_the_spool_from_before_the_last_epoch_counts_nothing_twice(
    books: Books, tmp_path: Path
) -> None:
    disk = Disk(books)
    hear(books, 1, 2)
    books.advance_clock(3)
    books.load()
    copy = disk.copy(tmp_path / "copy")
    books.spool().start_epoch("redis_restarted")
    hear(books, 4, 5)
    books.advance_clock(6)
    books.load()
    disk.put_back(copy)
    hear(books, 11)
    books.spool().start_epoch("redis_restarted")
    hear(books, 12, 13)
    books.advance_clock(14)
    books.load()
    assert loaded(books) == [1, 2, 4, 5, 11, 12, 13]
    (source,) = books.rows("sources")
    assert (source["epoch"], source["position"]) == (4, 2)


def test_a_loader_killed_while_it_gives_a_copy_its_new_token_goes_on_with_it(
    books: Books, tmp_path: Path
) -> None:
    disk = Disk(books)
    hear(books, 1, 2)
    books.advance_clock(3)
    books.load()
    copy = disk.copy(tmp_path / "copy")
    hear(books, 4)
    books.load()
    disk.put_back(copy)
    hear(books, 11, 12)
    books.spool().replace_token(1, "spool_older", books.micros_at(4))
    books.load()
    assert loaded(books) == [1, 2, 4, 11, 12]
    (source,) = books.rows("sources")
    assert (source["epoch"], source["position"]) == (2, 4)


def test_a_copy_of_the_spool_records_no_gap_a_second_time(books: Books, tmp_path: Path) -> None:
    disk = Disk(books)
    hear(books, 1)
    books.advance_clock(2)
    restart_collector(books, 5)
    books.load()
    copy = disk.copy(tmp_path / "copy")
    hear(books, 6)
    books.advance_clock(7)
    restart_collector(books, 8)
    books.load()
    disk.put_back(copy)
    restart_collector(books, 10)
    books.load()
    hear(books, 11)
    books.advance_clock(12)
    books.load()
    assert loaded(books) == [1, 6, 11]
    assert gaps(books) == [
        ("collector_restarted", 2, 5),
        ("collector_restarted", 5, 10),
        ("collector_restarted", 7, 8),
    ]


@pytest.mark.parametrize("loader_goes_on", [False, True])
def test_a_database_set_back_is_loaded_again_from_the_spool(
    books: Books, loader_goes_on: bool
) -> None:
    books.receive(0, channel("status"), status_payload("new"))
    hear(books, 1, 2)
    restart_collector(books, 3)
    books.run_jobs()
    make_copy(books)
    books.receive(4, channel("status", user="bob"), status_payload("new"))
    hear(books, 5, 6, user="bob")
    restart_collector(books, 7)
    hear(books, 8)
    books.advance_clock(9)
    books.run_jobs()
    before = everything(books)
    if not loader_goes_on:
        Disk(books).let_go()
        books.spool()
    set_back(books)
    assert loaded(books) == [1, 2]
    books.run_jobs()
    hear(books, 10)
    books.run_jobs()
    assert loaded(books) == [1, 2, 5, 6, 8, 10]
    after = everything(books)
    assert [row["username"] for row in after["sessions"]] == ["alice", "bob"]
    assert after["capture_gaps"] == before["capture_gaps"]
    assert len(after["capture_gaps"]) == 1
    books.assert_conserved()


def test_messages_that_a_database_set_back_would_need_but_are_pruned_are_a_gap(
    books: Books,
) -> None:
    hear(books, 1, 2)
    books.advance_clock(3)
    books.run_jobs()
    make_copy(books)
    hear(books, 4, 5, 6, 7)
    books.advance_clock(8)
    books.run_jobs()
    assert prune(books.spool(), books.micros_at(6)) == 4
    set_back(books)
    Disk(books).let_go()
    books.load()
    hear(books, 9)
    books.advance_clock(10)
    books.load()
    assert loaded(books) == [1, 2, 6, 7, 9]
    assert gaps(books) == [("spool_pruned", 3, 5)]


def everything(books: Books) -> dict[str, list[dict[str, Any]]]:
    views = ("sessions", "user_usage_hourly", "realm_usage_monthly", "capture_gaps")
    return {view: books.rows(view) for view in views}


def make_copy(books: Books) -> None:
    """Keep the database as it is now: a backup."""
    books.disconnect()
    with psycopg.connect(books.server.url(), autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {books.name}_copy TEMPLATE {books.name} STRATEGY file_copy"
        )


def set_back(books: Books) -> None:
    """Put the backup in the place of the database; connections to it are cut."""
    with psycopg.connect(books.server.url(), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {books.name} WITH (FORCE)")
        connection.execute(f"ALTER DATABASE {books.name}_copy RENAME TO {books.name}")


def test_two_loaders_on_one_spool_load_nothing_twice_and_lose_nothing(books: Books) -> None:
    """They race from the first message on, while more are captured."""
    messages = 3_000
    spool = books.spool()
    counts: list[int] = []

    def run() -> None:
        alike = Books(books.server, books.name, books.directory)
        while sum(counts) < messages:
            counts.append(alike.load(limit=37))
        alike.close()

    with ThreadPoolExecutor(3) as executor:
        running = [executor.submit(run) for _ in range(3)]
        for first in range(0, messages, 50):
            # One chunk off the socket has one time of receipt.
            spool.append(
                [
                    (
                        books.micros_at(first),
                        0,
                        channel("traffic"),
                        traffic_payload(1, number, 0, 0),
                    )
                    for number in range(first, first + 50)
                ]
            )
        for one in running:
            one.result(timeout=60)
    assert sum(counts) == messages
    assert loaded(books) == list(range(messages))
    (source,) = books.rows("sources")
    assert (source["epoch"], source["position"]) == (1, messages)
    assert gaps(books) == []
