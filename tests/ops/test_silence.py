"""A relay thread that fell silent is seen, and only such a one."""

from typing import Final

from accounting.domain.calendar import to_micros
from accounting.domain.thread_silence import MAX_ALARM_SECONDS, RelayThread, ThreadStatus
from accounting.sessions.relay_threads import read_statuses
from tests.support.books import Books, channel, status_payload, traffic_payload

SERVER: Final = "192.0.2.1"
OTHER: Final = "192.0.2.2"


def allocation(number: int, thread: int = 3) -> int:
    return thread * 10**15 + number


def hear(
    books: Books,
    seconds: float,
    word: str,
    number: int,
    *,
    thread: int = 3,
    server: str = SERVER,
    lifetime: int = 600,
) -> None:
    books.receive(
        seconds,
        channel("status", allocation=allocation(number, thread)),
        status_payload(word, lifetime, local=f"{server}:3478"),
    )


def account(books: Books, seconds: float) -> None:
    books.advance_clock(seconds)
    books.run_jobs()


def known(books: Books) -> dict[RelayThread, ThreadStatus]:
    with books.engine.connect() as connection:
        return read_statuses(connection, 1)


def silent(books: Books, seconds: float) -> list[tuple[str, int]]:
    now = books.micros_at(seconds)
    return sorted(
        (thread.server, thread.thread)
        for thread, voice in known(books).items()
        if voice.is_silent(now)
    )


def test_a_thread_with_a_life_that_ran_out_unheard_is_silent(books: Books) -> None:
    hear(books, 0, "new", 1)
    hear(books, 0, "new", 1, thread=4)
    hear(books, 540, "refreshed", 1, thread=4)
    account(books, 659)
    assert silent(books, 659) == []
    account(books, 661)
    assert silent(books, 661) == [(SERVER, 3)]
    voice = known(books)[RelayThread(0, SERVER, 3)]
    assert (voice.last_report_at, voice.overdue_since) == (books.micros_at(0), books.micros_at(600))
    assert (voice.missed_count, voice.not_explained_by_gap) == (1, True)


def test_quiet_clients_within_their_lifetime_are_not_silence(books: Books) -> None:
    """Some clients refresh a minute before the end, and idle ones have no interims."""
    hear(books, 0, "new", 1)
    hear(books, 0, "new", 2)
    account(books, 599)
    assert silent(books, 599) == []


def test_lives_that_ended_as_coturn_said_owe_nothing(books: Books) -> None:
    hear(books, 0, "new", 1)
    hear(books, 0, "new", 2)
    hear(books, 300, "deleted", 1)
    hear(books, 300, "deleted", 2)
    account(books, 2000)
    assert silent(books, 2000) == []


def test_a_thread_heard_since_lost_a_word_but_not_its_voice(books: Books) -> None:
    hear(books, 0, "new", 1)
    hear(books, 10, "new", 2)
    hear(books, 605, "refreshed", 2)
    account(books, 700)
    assert silent(books, 700) == []


def test_a_thread_that_speaks_again_is_silent_no_more(books: Books) -> None:
    hear(books, 0, "new", 1)
    account(books, 700)
    assert silent(books, 700) == [(SERVER, 3)]
    hear(books, 701, "new", 2)
    account(books, 702)
    assert silent(books, 702) == []


def test_interims_of_a_life_that_counts_as_expired_are_its_threads_voice(books: Books) -> None:
    """They have no address; the life that their key last had tells whose they are."""
    hear(books, 0, "new", 1)
    account(books, 700)
    assert silent(books, 700) == [(SERVER, 3)]
    books.receive(
        701, channel("traffic", allocation=allocation(1)), traffic_payload(4000, 400_000, 96, 9_600)
    )
    account(books, 702)
    assert silent(books, 702) == []


def test_other_ports_of_a_server_are_the_same_voice(books: Books) -> None:
    hear(books, 0, "new", 1)
    books.receive(
        603,
        channel("status", allocation=allocation(2)),
        status_payload("new", local=f"{SERVER}:5349"),
    )
    account(books, 700)
    assert silent(books, 700) == []


def test_the_same_thread_of_another_server_is_another_voice(books: Books) -> None:
    hear(books, 0, "new", 1)
    hear(books, 0, "new", 2, server=OTHER)
    hear(books, 540, "refreshed", 2, server=OTHER)
    account(books, 700)
    assert (SERVER, 3) in silent(books, 700)
    assert (OTHER, 3) not in silent(books, 700)


def test_strangers_traffic_owes_nothing(books: Books) -> None:
    """Interims of requests that never authenticated: no allocation, no lifetime."""
    books.receive(0, channel("traffic", allocation=allocation(1)), traffic_payload(3, 300, 3, 300))
    account(books, 9000)
    assert silent(books, 9000) == []


def gap(books: Books, from_seconds: float, to_seconds: float) -> None:
    spool = books.spool()
    spool.close_gap(
        spool.open_gap(books.micros_at(from_seconds), "disconnected"), books.micros_at(to_seconds)
    )


def test_a_word_due_within_a_gap_is_owed_by_nobody(books: Books) -> None:
    hear(books, 0, "new", 1)
    hear(books, 0, "new", 2)
    books.advance_clock(590)
    gap(books, 590, 610)
    account(books, 700)
    assert silent(books, 700) == []


def test_a_gap_before_takes_two_lives_to_tell_silence(books: Books) -> None:
    """One may have been refreshed within the gap; hardly all of them."""
    hear(books, 0, "new", 1)
    hear(books, 30, "new", 2)
    books.advance_clock(100)
    gap(books, 100, 103)
    account(books, 661)
    assert silent(books, 661) == []
    account(books, 691)
    assert silent(books, 691) == [(SERVER, 3)]


def test_a_coturn_started_again_owes_nothing_for_the_process_before(books: Books) -> None:
    """Its numbers begin anew; another thread of the same server shows it."""
    hear(books, 0, "new", 7)
    hear(books, 0, "new", 5, thread=4)
    hear(books, 300, "new", 1, thread=4)
    account(books, 700)
    assert silent(books, 700) == []


def test_a_restart_seen_late_takes_the_alarm_back(books: Books) -> None:
    hear(books, 0, "new", 5, thread=4)
    hear(books, 0, "new", 7)
    hear(books, 1, "deleted", 5, thread=4)
    account(books, 700)
    assert silent(books, 700) == [(SERVER, 3)]
    hear(books, 701, "new", 1, thread=4)
    account(books, 702)
    assert silent(books, 702) == []


def test_numbers_out_of_order_for_a_minute_are_no_restart(books: Books) -> None:
    """A client gets its number when it connects; a slower one allocates later."""
    hear(books, 0, "new", 1)
    hear(books, 100, "new", 9, thread=4)
    hear(books, 160, "new", 8, thread=4)
    hear(books, 640, "refreshed", 9, thread=4)
    hear(books, 640, "refreshed", 8, thread=4)
    account(books, 700)
    assert silent(books, 700) == [(SERVER, 3)]


def test_silence_is_forgotten_after_a_day(books: Books) -> None:
    hear(books, 0, "new", 1)
    account(books, 700)
    assert silent(books, 600 + MAX_ALARM_SECONDS) == [(SERVER, 3)]
    assert silent(books, 601 + MAX_ALARM_SECONDS) == []


def test_threads_unheard_for_a_week_are_dropped(books: Books) -> None:
    hear(books, 0, "new", 1)
    hear(books, 8 * 86_400, "new", 1, server=OTHER)
    account(books, 8 * 86_400 + 700)
    assert set(known(books)) == {RelayThread(0, OTHER, 3)}


def test_batches_of_any_size_know_the_same_of_every_thread(books: Books) -> None:
    for number in range(1, 30):
        hear(books, number, "new", number % 7 + 1, thread=number % 3)
    books.advance_clock(2000)
    books.load()
    books.settle(limit=4)
    voice = known(books)[RelayThread(0, SERVER, 2)]
    assert voice.last_report_at == to_micros(books.start) + 29_000_000
    assert voice.missed_count > 0
