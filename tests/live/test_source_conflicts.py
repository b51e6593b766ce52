"""Collectors as processes: the second name of a Redis, and the second Redis of a name."""

from pathlib import Path

import pytest

from tests.support.books import Books
from tests.support.collectors import PROMPT_SYNC
from tests.support.servers import RedisServer, ValkeyServer, wait_until
from tests.support.service import Service
from tests.support.turn_traffic import NumberPublisher, loaded_numbers


def collector(
    books: Books, directory: Path, server: RedisServer, source: str, capture: str
) -> Service:
    return Service(
        "collect",
        directory / f"{source}-{server.port}",
        {
            "ACCOUNTING_DATABASE_URL": books.url(),
            "ACCOUNTING_REDIS_URL": server.url,
            "ACCOUNTING_SOURCE": source,
            "ACCOUNTING_CAPTURE": capture,
            "ACCOUNTING_LEASE_SECONDS": "2",
        },
    )


def error_line(service: Service) -> str:
    """The message of a collector that exits with code 2."""
    assert service.process.wait(30) == 2, service.log_text()
    [line] = [
        line for line in service.log_text().splitlines() if line.startswith("turn-accounting")
    ]
    return line


def test_a_second_name_on_one_redis_exits_with_code_2_and_loads_nothing(
    books: Books, tmp_path: Path
) -> None:
    with (
        ValkeyServer(PROMPT_SYNC) as server,
        collector(books, tmp_path, server, "a", "replication") as first,
    ):
        first.wait_until_capturing()
        with NumberPublisher(server, "once") as numbers:
            numbers.wait_for_more(50)
            with collector(books, tmp_path, server, "b", "subscribe") as second:
                assert "has the history of source 'a', which" in error_line(second)
            sent = numbers.stop()
        wait_until(lambda: loaded_numbers(books, "once") == sorted(sent), 30)
    assert [row["source"] for row in books.rows("sources")] == ["a"]


@pytest.mark.long
def test_up_ends_when_its_name_belongs_to_another_redis(books: Books, tmp_path: Path) -> None:
    """`default` is everybody's first name: the second machine does not stand by in silence."""
    with (
        ValkeyServer(PROMPT_SYNC) as one,
        ValkeyServer(PROMPT_SYNC) as other,
        collector(books, tmp_path, one, "default", "replication") as first,
    ):
        first.wait_until_capturing()
        settings = {
            "ACCOUNTING_DATABASE_URL": books.url(),
            "ACCOUNTING_REDIS_URL": other.url,
            "ACCOUNTING_LEASE_SECONDS": "2",
        }
        with Service("up", tmp_path / "second", settings) as second:
            assert second.process.wait(60) == 2, second.log_text()
            assert f"127.0.0.1:{one.port}" in second.log_text()
            assert f"127.0.0.1:{other.port}" in second.log_text()
    [gap] = books.rows("capture_gaps")
    assert (gap["source"], gap["cause"]) == ("default", "another_redis")
