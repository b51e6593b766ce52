"""docs/restore.md: run as it is written there."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import psycopg
import pytest
from psycopg import sql

from accounting.billing.adjust import adjust
from accounting.feed.number_feed import number_feed
from tests.support.billing_scenarios import (
    close_november_without_late_source,
    receive_late_source,
)
from tests.support.books import READER, TEMPLATE, WRITER, Books, make_template
from tests.support.command import turn_accounting
from tests.support.page_commands import command_blocks
from tests.support.postgres_programs import programs_directory
from tests.support.servers import PostgresServer, ValkeyServer, wait_until
from tests.support.service import Service, environment
from tests.support.turn_traffic import NumberPublisher, hourly_received_bytes, loaded_numbers

BLOCKS: Final = command_blocks("docs/restore.md")
DATABASE: Final = "accounting"


def run(marker: str, directory: Path, settings: dict[str, str]) -> str:
    """Run a step of the page as an operator would, with the commands on the path."""
    path = f"{Path(sys.executable).parent}:{programs_directory()}:{os.environ['PATH']}"
    result = subprocess.run(
        ["sh", "-eu", "-c", BLOCKS[marker]],
        cwd=directory,
        env={**environment(directory / "operator", settings), "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.long
def test_a_restored_backup_is_loaded_again_from_the_spool(tmp_path: Path) -> None:
    with PostgresServer() as postgres, ValkeyServer({"repl-diskless-sync-delay": "0"}) as valkey:
        make_template(postgres, DATABASE)
        books = Books(postgres, DATABASE, tmp_path)
        settings = {
            "ACCOUNTING_DATABASE_URL": books.url(WRITER),
            "ACCOUNTING_REDIS_URL": valkey.url,
            "ACCOUNTING_CAPTURE": "replication",
            "ADMIN_URL": postgres.url(database="postgres"),
            "BOOKS_URL": books.url(),
        }
        service = {
            name: value for name, value in settings.items() if name.startswith("ACCOUNTING_")
        }

        def is_booked(number: int) -> bool:
            return hourly_received_bytes(books, "alice") >= number * (number + 1) // 2

        with Service("collect", tmp_path / "collect", service) as collect:
            collect.wait_until_capturing()
            with NumberPublisher(valkey, "alice") as numbers:
                with Service("schedule", tmp_path / "schedule", service):
                    numbers.wait_for_more(100)
                    wait_until(lambda: is_booked(50), 60)
                    run("backup", tmp_path, settings)
                    numbers.wait_for_more(100)
                    beyond_the_backup = len(numbers.sent)
                    wait_until(lambda: is_booked(beyond_the_backup), 60)
                books.disconnect()
                run("restore", tmp_path, settings)
                numbers.wait_for_more(100)
                sent = numbers.stop()
            with Service("schedule", tmp_path / "schedule", service):
                wait_until(lambda: is_booked(max(sent)), 60)
            assert loaded_numbers(books, "alice") == sorted(sent)
            assert hourly_received_bytes(books, "alice") == sum(sent)
            assert "(0 rows)" in run("look", tmp_path, settings)
        books.assert_conserved()
        books.close()


def read_feed(books: Books) -> list[str]:
    """The event ids that a worker gets, which starts at 0 every time."""
    number_feed(books.engine)
    result = turn_accounting("feed", "--json", database_url=books.url(READER))
    assert result.code == 0
    return [row["event_id"] for row in result.rows]


def test_after_a_restore_a_worker_gets_each_event_once_by_id(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """Dump, late usage and a correction, the worker's list, restore, the spool again, compare."""
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        name = sql.Identifier(DATABASE)
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(name, sql.Identifier(TEMPLATE))
        )
    books = Books(postgres_server, DATABASE, tmp_path)
    settings = {
        "ACCOUNTING_DATABASE_URL": books.url(WRITER),
        "ADMIN_URL": postgres_server.url(database="postgres"),
        "BOOKS_URL": books.url(),
        "BILLING_URL": books.url(READER),
    }
    correction = ("adjust", "example.org", "2026-11-01", "bob", "--sent-bytes=-600")
    words = ("--reason", "a test call", "--author", "carol")
    close_november_without_late_source(books)
    read_feed(books)
    books.disconnect()
    run("backup", tmp_path, settings)
    receive_late_source(books)
    books.run_jobs()
    assert adjust(books.engine) == 2
    assert turn_accounting(*correction, *words, database_url=books.url()).code == 0
    handled = read_feed(books)
    assert len(handled) == len(set(handled)) == 10
    (tmp_path / "handled.txt").write_text("".join(f"{event_id}\n" for event_id in handled))
    books.disconnect()
    run("restore", tmp_path, settings)
    assert handled[-1] in run("compare", tmp_path, settings)
    books._loaders.clear()
    books.run_jobs()
    assert adjust(books.engine) == 2
    assert turn_accounting(*correction, *words, database_url=books.url()).code == 0
    assert sorted(read_feed(books)) == sorted(handled)
    assert run("compare", tmp_path, settings).strip() == ""
    books.close()
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        for database in (DATABASE, f"{DATABASE}_broken"):
            connection.execute(
                sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(database))
            )
