"""The command ``feed``: its output, and the cursor of its consumer."""

import psycopg

from tests.support.books import READER, Books
from tests.support.command import turn_accounting
from tests.support.feed_events import consumer_cursor, post_and_number


def test_without_a_consumer_it_prints_all_events_every_time(books: Books) -> None:
    post_and_number(books, "a", "b", "c")
    for _ in range(2):
        result = turn_accounting("feed", "--json", "--after", "1", database_url=books.url(READER))
        assert (result.code, result.err) == (0, "")
        assert [(row["seq"], row["payload"]) for row in result.rows] == [
            (2, {"period": "b"}),
            (3, {"period": "c"}),
        ]
        names = ["seq", "event_id", "type", "realm", "payload", "created_at"]
        assert list(result.rows[0]) == names
    first, *_ = turn_accounting("feed", database_url=books.url(READER)).out.splitlines()
    assert first.startswith("   1  20")
    assert first.endswith('  period      example.org  {"period": "a"}')


def test_a_consumer_gets_each_event_once(books: Books) -> None:
    post_and_number(books, "a", "b")
    arguments = ("feed", "--json", "--consumer", "invoicer")
    first = turn_accounting(*arguments, database_url=books.url(READER))
    assert [row["seq"] for row in first.rows] == [1, 2]
    assert consumer_cursor(books) == 2
    post_and_number(books, "c")
    second = turn_accounting(*arguments, database_url=books.url(READER))
    assert [row["seq"] for row in second.rows] == [3]
    assert turn_accounting(*arguments, database_url=books.url(READER)).out == ""


def test_an_event_that_could_not_be_written_is_not_handled(books: Books) -> None:
    post_and_number(books, "a")
    result = turn_accounting(
        "feed", "--consumer", "invoicer", output="/dev/full", database_url=books.url(READER)
    )
    assert result.code == 1
    assert consumer_cursor(books) == 0


def test_a_consumer_may_have_any_name(books: Books) -> None:
    post_and_number(books, "a")
    for name in ("a b;'\"", "\udcff", "\u00fc\n", "-"):
        result = turn_accounting("feed", "--consumer", name, database_url=books.url(READER))
        assert (result.code, result.err) == (0, "")
        assert turn_accounting("feed", "--consumer", name, database_url=books.url(READER)).out == ""


def test_a_usage_error_is_one_line(books: Books) -> None:
    for arguments in (("--consumer", ""), ("--consumer", "x", "--after", "1")):
        result = turn_accounting("feed", *arguments, database_url=books.url(READER))
        assert result.code == 2
        assert result.error_line


def test_a_database_of_an_older_version_is_a_one_line_error(books: Books) -> None:
    post_and_number(books, "a")
    with psycopg.connect(books.url()) as connection:
        connection.execute("DROP FUNCTION reporting.feed_cursor CASCADE")
    result = turn_accounting("feed", "--consumer", "x", database_url=books.url(READER))
    assert result.code == 1
    assert result.error_line.endswith("bring it to this version with `turn-accounting db upgrade`")


def test_an_unreachable_database_is_reported_without_a_retry() -> None:
    result = turn_accounting("feed", database_url="postgresql://127.0.0.1:1/nowhere")
    assert result.code == 1
    assert "127.0.0.1" in result.error_line


def test_a_number_beyond_the_end_is_wrong_or_of_a_feed_before_a_restore(books: Books) -> None:
    """The command can't tell which: it has only the number."""
    post_and_number(books, "a")
    at_end = turn_accounting("feed", "--after", "1", database_url=books.url(READER))
    assert (at_end.code, at_end.out) == (0, "")
    beyond = turn_accounting("feed", "--after", "2", database_url=books.url(READER))
    assert beyond.code == 2
    assert beyond.error_line.startswith("--after 2: the feed ends at 1. If you have read up to 2,")


def test_a_limit_ends_the_list_and_the_last_event_is_handled(books: Books) -> None:
    post_and_number(books, "a", "b", "c")
    url = books.url(READER)
    listed = turn_accounting("feed", "--json", "--limit", "2", database_url=url)
    assert [row["seq"] for row in listed.rows] == [1, 2]
    for cursor in (2, 3):
        read = turn_accounting(
            "feed", "--json", "--consumer", "invoicer", "--limit", "2", database_url=url
        )
        assert (read.code, consumer_cursor(books)) == (0, cursor)
    assert [row["seq"] for row in read.rows] == [3]
