"""The scripts of deploy/backup, run against a real Postgres as the nightly unit runs them."""

import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import psycopg
import pytest

from tests.support.books import Books, channel, status_payload, traffic_payload
from tests.support.deployments import DEPLOY, pods
from tests.support.password_logins import password_login
from tests.support.postgres_programs import programs_directory

BACKUP: Final = DEPLOY / "backup" / "turn-accounting-backup"
DRILL: Final = DEPLOY / "backup" / "turn-accounting-restore-drill"
DRILL_DATABASE: Final = "turn_accounting_drill"


@pytest.fixture
def filled_books(books: Books) -> Books:
    books.receive(0, channel("status"), status_payload("new"))
    books.receive(1, channel("traffic"), traffic_payload(1, 100, 1, 50))
    books.receive(2, channel("status"), b"deleted")
    books.receive(2, channel("total_traffic"), traffic_payload(1, 100, 1, 50))
    books.advance_clock(3)
    books.load()
    books.run_jobs()
    return books


@pytest.fixture
def dumps(tmp_path: Path) -> Path:
    directory = tmp_path / "dumps"
    directory.mkdir()
    return directory


def run(
    script: Path, books: Books, directory: Path, settings: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a script with nothing but libpq's variables, as the superuser."""
    programs = [programs_directory(), Path(sys.executable).parent, os.environ["PATH"]]
    return subprocess.run(
        [script, directory],
        env={
            "PATH": os.pathsep.join(map(str, programs)),
            "PYTHONPATH": str(DEPLOY.parent),
            "PGHOST": str(books.server.running.socket_dir),
            "PGUSER": "postgres",
            "PGDATABASE": books.name,
            **(settings or {}),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def databases(books: Books) -> set[str]:
    with psycopg.connect(books.server.url()) as connection:
        return {row[0] for row in connection.execute("SELECT datname FROM pg_database")}


def test_a_backup_is_restored_and_its_books_are_proved(filled_books: Books, dumps: Path) -> None:
    backup = run(BACKUP, filled_books, dumps)
    assert backup.returncode == 0, backup.stderr
    [dump] = dumps.iterdir()
    assert backup.stdout == f"{dump}\n"
    assert dump.stat().st_mode & 0o777 == 0o600
    drill = run(DRILL, filled_books, dumps)
    assert drill.returncode == 0, drill.stderr
    assert "proved: 1 session and all figures that follow" in drill.stderr
    assert drill.stdout.startswith(f"{dump}: restored and verified, 1 months of realms, ")
    assert DRILL_DATABASE not in databases(filled_books)


def test_the_cronjob_dumps_and_drills_with_its_variables(
    filled_books: Books, dumps: Path, tmp_path: Path
) -> None:
    """Its commands in its order, with the server, login and secret of this test.

    Its group may read the password file, as systemd 254 and Kubernetes give it, and libpq would
    ignore it. No copy of it stays.
    """
    [pod] = [template["spec"] for name, template in pods() if name == "backup"]
    passwords = tmp_path / "pgpass"
    passwords.write_text("*:*:*:*:secret\n")
    passwords.chmod(0o440)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    outputs = []
    with password_login(filled_books.server, "turn_accounting_owner", "secret") as login:
        with psycopg.connect(filled_books.server.url(), autocommit=True) as superuser:
            superuser.execute("ALTER ROLE turn_accounting_owner_with_password SUPERUSER")
        for step in (*pod["initContainers"], *pod["containers"]):
            program, directory = step["command"]
            assert directory in {mount["mountPath"] for mount in step["volumeMounts"]}
            variables = {one["name"]: one["value"] for one in step["env"]}
            assert {"PGHOST", "PGUSER", "PGDATABASE", "PGPASSFILE"} <= variables.keys()
            own = ("PGHOST", "PGUSER", "PGDATABASE")
            settings = {name: value for name, value in variables.items() if name not in own}
            settings |= {"PGPASSFILE": str(passwords), "TMPDIR": str(temporary)}
            settings["PGUSER"] = login.name
            done = run(DEPLOY / "backup" / program, filled_books, dumps, settings)
            assert done.returncode == 0, done.stderr
            assert list(temporary.iterdir()) == []
            outputs.append(done.stdout)
    [dump] = dumps.iterdir()
    assert outputs[0] == f"{dump}\n"
    assert outputs[1].startswith(f"{dump}: restored and verified, 1 months of realms, ")
    assert DRILL_DATABASE not in databases(filled_books)


def test_a_backup_deletes_old_ones_only_when_it_is_complete(books: Books, dumps: Path) -> None:
    old, recent = (dumps / f"turn-accounting-{name}.dump" for name in ("a", "b"))
    draft, other = dumps / "turn-accounting-c.dump.draft", dumps / "notes.txt"
    for path in (old, recent, draft, other):
        path.touch()
    for path in (old, draft, other):
        os.utime(path, (0, 0))
    failed = run(BACKUP, books, dumps, {"PGDATABASE": "missing"})
    assert failed.returncode != 0
    assert 'database "missing" does not exist' in failed.stderr
    assert set(dumps.iterdir()) == {old, recent, draft, other}
    made = run(BACKUP, books, dumps)
    assert made.returncode == 0, made.stderr
    assert set(dumps.iterdir()) == {recent, other, Path(made.stdout.strip())}


def test_a_backup_leaves_room_on_its_disk(books: Books, dumps: Path) -> None:
    """It may be that of a spool, and a full one stops capture."""
    last = dumps / "turn-accounting-2026-11-27T021500Z.dump"
    last.touch()
    os.truncate(last, 10**15)  # it has holes only
    refused = run(BACKUP, books, dumps)
    assert refused.returncode == 1
    assert f"a dump may need {10**15 * 3 // 2}: make room" in refused.stderr
    assert [*dumps.iterdir()] == [last]


def test_a_drill_fails_with_a_damaged_dump_and_leaves_no_database(
    filled_books: Books, dumps: Path
) -> None:
    missing = run(DRILL, filled_books, dumps)
    assert (missing.returncode, missing.stderr) == (1, f"no dump in {dumps}\n")
    run(BACKUP, filled_books, dumps)
    [dump] = dumps.iterdir()
    dump.write_bytes(dump.read_bytes()[:-1000])
    damaged = run(DRILL, filled_books, dumps)
    assert damaged.returncode != 0
    assert "pg_restore: error" in damaged.stderr
    assert DRILL_DATABASE not in databases(filled_books)


def test_a_drill_fails_when_the_books_in_the_dump_differ(filled_books: Books, dumps: Path) -> None:
    with psycopg.connect(filled_books.server.url(database=filled_books.name)) as connection:
        connection.execute("UPDATE accounting.user_usage_hourly SET received_bytes = 99")
    run(BACKUP, filled_books, dumps)
    differs = run(DRILL, filled_books, dumps)
    assert differs.returncode == 1
    assert "difference" in differs.stderr
    assert DRILL_DATABASE not in databases(filled_books)


@pytest.mark.parametrize("is_kept", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_drill_fails_when_the_spools_do_not_reach_back_to_the_dump(
    filled_books: Books, dumps: Path, is_kept: bool
) -> None:
    run(BACKUP, filled_books, dumps)
    [dump] = dumps.iterdir()
    began = datetime.now(UTC) - timedelta(seconds=90_000)
    dump.rename(dumps / f"turn-accounting-{began:%Y-%m-%dT%H%M%SZ}.dump")  # not when it was copied
    settings = {"ACCOUNTING_SPOOL_RETENTION_SECONDS": "172800"} if is_kept else {}
    drill = run(DRILL, filled_books, dumps, settings)
    assert drill.returncode == (0 if is_kept else 1), drill.stderr
    assert ("the spools reach back 86400 s" in drill.stderr) is not is_kept
