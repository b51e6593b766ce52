"""A silent relay thread is detected, and no other thread is reported as silent."""

from typing import Final

from accounting.domain.calendar import to_micros
from accounting.domain.thread_silence import MAX_ALARM_SECONDS, RelayThread, ThreadStatus
from accounting.sessions.relay_threads import read_statuses
from tests.support.books import Books, channel, status_payload, traffic_payload

SERVER: Final = "192.0.2.1"
OTHER_SERVER: Final = "192.0.2.2"


def allocation_id(number: int, thread: int = 3) -> int:
    return thread * 10**15 + number


def receive_status(
    books: Books,
    seconds: float,
    event: str,
    number: int,
    *,
    thread: int = 3,
    server: str = SERVER,
    lifetime: int = 600,
) -> None:
    books.receive(
        seconds,
        channel("status", allocation=allocation_id(number, thread)),
        status_payload(event, lifetime, local=f"{server}:3478"),
    )


def run_jobs_at(books: Books, seconds: float) -> None:
    books.advance_clock(seconds)
    books.run_jobs()


def thread_statuses(books: Books) -> dict[RelayThread, ThreadStatus]:
    with books.engine.connect() as connection:
        return read_statuses(connection, books.source_id())


def silent_threads(books: Books, seconds: float) -> list[tuple[str, int]]:
    now = books.micros_at(seconds)
    return sorted(
        (thread.server, thread.thread)
        for thread, status in thread_statuses(books).items()
        if status.is_silent(now)
    )


def test_a_thread_whose_allocation_expires_without_a_report_is_silent(books: Books) -> None:
    receive_status(books, 0, "new", 1)
    receive_status(books, 0, "new", 1, thread=4)
    receive_status(books, 540, "refreshed", 1, thread=4)
    run_jobs_at(books, 659)
    assert silent_threads(books, 659) == []
    run_jobs_at(books, 661)
    assert silent_threads(books, 661) == [(SERVER, 3)]
    status = thread_statuses(books)[RelayThread(0, SERVER, 3)]
    assert (status.last_report_at, status.overdue_since) == (
        books.micros_at(0),
        books.micros_at(600),
    )
    assert (status.missed_count, status.not_explained_by_gap) == (1, True)


def test_a_thread_is_not_silent_within_the_lifetime_of_its_allocations(books: Books) -> None:
    """Some clients refresh a minute before the end, and idle ones have no interims."""
    receive_status(books, 0, "new", 1)
    receive_status(books, 0, "new", 2)
    run_jobs_at(books, 599)
    assert silent_threads(books, 599) == []


def test_a_thread_whose_sessions_were_deleted_is_not_silent(books: Books) -> None:
    receive_status(books, 0, "new", 1)
    receive_status(books, 0, "new", 2)
    receive_status(books, 300, "deleted", 1)
    receive_status(books, 300, "deleted", 2)
    run_jobs_at(books, 2000)
    assert silent_threads(books, 2000) == []


def test_a_thread_with_a_later_report_of_another_session_is_not_silent(books: Books) -> None:
    receive_status(books, 0, "new", 1)
    receive_status(books, 10, "new", 2)
    receive_status(books, 605, "refreshed", 2)
    run_jobs_at(books, 700)
    assert silent_threads(books, 700) == []


def test_a_new_report_ends_the_silence(books: Books) -> None:
    receive_status(books, 0, "new", 1)
    run_jobs_at(books, 700)
    assert silent_threads(books, 700) == [(SERVER, 3)]
    receive_status(books, 701, "new", 2)
    run_jobs_at(books, 702)
    assert silent_threads(books, 702) == []


def test_an_interim_of_an_expired_session_ends_the_silence(books: Books) -> None:
    """Interims have no server address: that of the key's last session is used."""
    receive_status(books, 0, "new", 1)
    run_jobs_at(books, 700)
    assert silent_threads(books, 700) == [(SERVER, 3)]
    books.receive(
        701,
        channel("traffic", allocation=allocation_id(1)),
        traffic_payload(4000, 400_000, 96, 9_600),
    )
    run_jobs_at(books, 702)
    assert silent_threads(books, 702) == []


def test_other_ports_of_a_server_count_as_the_same_thread(books: Books) -> None:
    receive_status(books, 0, "new", 1)
    books.receive(
        603,
        channel("status", allocation=allocation_id(2)),
        status_payload("new", local=f"{SERVER}:5349"),
    )
    run_jobs_at(books, 700)
    assert silent_threads(books, 700) == []


def test_the_same_thread_number_of_another_server_is_another_thread(books: Books) -> None:
    receive_status(books, 0, "new", 1)
    receive_status(books, 0, "new", 2, server=OTHER_SERVER)
    receive_status(books, 540, "refreshed", 2, server=OTHER_SERVER)
    run_jobs_at(books, 700)
    assert (SERVER, 3) in silent_threads(books, 700)
    assert (OTHER_SERVER, 3) not in silent_threads(books, 700)


def test_unauthenticated_traffic_makes_no_thread_silent(books: Books) -> None:
    """Requests that never authenticated have no allocation and no lifetime."""
    books.receive(
        0, channel("traffic", allocation=allocation_id(1)), traffic_payload(3, 300, 3, 300)
    )
    run_jobs_at(books, 9000)
    assert silent_threads(books, 9000) == []


def gap(books: Books, from_seconds: float, to_seconds: float) -> None:
    spool = books.spool()
    spool.close_gap(
        spool.open_gap(books.micros_at(from_seconds), "disconnected"), books.micros_at(to_seconds)
    )


def test_a_report_missed_within_a_gap_does_not_make_a_thread_silent(books: Books) -> None:
    receive_status(books, 0, "new", 1)
    receive_status(books, 0, "new", 2)
    books.advance_clock(590)
    gap(books, 590, 610)
    run_jobs_at(books, 700)
    assert silent_threads(books, 700) == []


def test_after_a_gap_two_missed_sessions_make_a_thread_silent(books: Books) -> None:
    """The refresh of one session may have been lost in the gap, but hardly that of both."""
    receive_status(books, 0, "new", 1)
    receive_status(books, 30, "new", 2)
    books.advance_clock(100)
    gap(books, 100, 103)
    run_jobs_at(books, 661)
    assert silent_threads(books, 661) == []
    run_jobs_at(books, 691)
    assert silent_threads(books, 691) == [(SERVER, 3)]


def test_a_restarted_coturn_is_not_silent_for_its_previous_process(books: Books) -> None:
    """Its allocation ids start again, which another thread of the same server shows."""
    receive_status(books, 0, "new", 7)
    receive_status(books, 0, "new", 5, thread=4)
    receive_status(books, 300, "new", 1, thread=4)
    run_jobs_at(books, 700)
    assert silent_threads(books, 700) == []


def test_a_restart_detected_late_ends_the_silence(books: Books) -> None:
    receive_status(books, 0, "new", 5, thread=4)
    receive_status(books, 0, "new", 7)
    receive_status(books, 1, "deleted", 5, thread=4)
    run_jobs_at(books, 700)
    assert silent_threads(books, 700) == [(SERVER, 3)]
    receive_status(books, 701, "new", 1, thread=4)
    run_jobs_at(books, 702)
    assert silent_threads(books, 702) == []


def test_allocation_ids_out_of_order_for_a_minute_are_not_a_restart(books: Books) -> None:
    """A client gets its id when it connects, and may allocate later than the next client."""
    receive_status(books, 0, "new", 1)
    receive_status(books, 100, "new", 9, thread=4)
    receive_status(books, 160, "new", 8, thread=4)
    receive_status(books, 640, "refreshed", 9, thread=4)
    receive_status(books, 640, "refreshed", 8, thread=4)
    run_jobs_at(books, 700)
    assert silent_threads(books, 700) == [(SERVER, 3)]


def test_silence_ends_after_a_day(books: Books) -> None:
    receive_status(books, 0, "new", 1)
    run_jobs_at(books, 700)
    assert silent_threads(books, 600 + MAX_ALARM_SECONDS) == [(SERVER, 3)]
    assert silent_threads(books, 601 + MAX_ALARM_SECONDS) == []


def test_threads_without_reports_for_a_week_are_deleted(books: Books) -> None:
    receive_status(books, 0, "new", 1)
    receive_status(books, 8 * 86_400, "new", 1, server=OTHER_SERVER)
    run_jobs_at(books, 8 * 86_400 + 700)
    assert set(thread_statuses(books)) == {RelayThread(0, OTHER_SERVER, 3)}


def test_small_batches_give_the_same_thread_statuses(books: Books) -> None:
    for number in range(1, 30):
        receive_status(books, number, "new", number % 7 + 1, thread=number % 3)
    books.advance_clock(2000)
    books.load()
    books.settle(limit=4)
    status = thread_statuses(books)[RelayThread(0, SERVER, 2)]
    assert status.last_report_at == to_micros(books.start) + 29_000_000
    assert status.missed_count > 0
