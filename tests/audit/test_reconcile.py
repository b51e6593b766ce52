"""Reconcile finds no difference where nothing was lost, and names each one it finds."""

from pathlib import Path

import pytest

from accounting.audit.reconcile import LogDifference, ReconcileResult, reconcile
from accounting.domain.coturn_log import LogReader, parse_line, read_message
from tests.support.books import Books
from tests.support.coturn_log import coturn_log_usage
from tests.support.coturn_messages import FakeAllocation, run_jobs_at
from tests.support.recordings import DIRECTORY, receive_recording, recording_names

FORMS = ("{}: : ", "2026-11-22T18:38:43.56{}+0000 INFO ")
NAME = "realm=<example.org>, username=<alice>"


def log(form: str, *lines: str) -> bytes:
    return "".join(
        f"{form.format(at)}session {1:018d}: {line}\n" for at, line in enumerate(lines)
    ).encode()


def write_log(tmp_path: Path, text: bytes, name: str = "turn.log") -> Path:
    path = tmp_path / name
    path.write_bytes(text)
    return path


@pytest.mark.parametrize("name", sorted(path.stem for path in DIRECTORY.glob("*.log")))
def test_the_log_reader_agrees_with_an_independent_count(name: str) -> None:
    text = (DIRECTORY / f"{name}.log").read_bytes()
    reader = LogReader()
    messages = (read_message(number, b"", line) for number, line in enumerate(text.split(b"\n"), 1))
    reader.read(0, filter(None, messages))
    assert {
        (first.realm, first.username, f"{first.allocation_id:018d}"): tuple(session.counters)
        for session in reader.sessions()
        for first in [session.first]
    } == {tuple(key): usage.counters() for key, usage in coturn_log_usage(text).items()}


@pytest.mark.parametrize("name", recording_names())
def test_a_recording_reconciles_with_its_log(books: Books, name: str) -> None:
    receive_recording(books, name)
    result = ReconcileResult()
    assert list(reconcile(books.engine, [DIRECTORY / f"{name}.log"], result=result)) == []
    assert result.sessions > 0
    assert result.differing == 0


@pytest.mark.parametrize("form", FORMS)
def test_each_counter_that_differs_is_named(books: Books, tmp_path: Path, form: str) -> None:
    FakeAllocation(books).new(0)
    FakeAllocation(books).interim(5, 1, 100, 2, 200)
    FakeAllocation(books).close(10, (1, 100, 2, 200), (0, 0, 0, 0))
    run_jobs_at(books, 5000)
    path = write_log(
        tmp_path,
        log(
            form,
            f"new, {NAME}, lifetime=600",
            f"usage: {NAME}, rp=1, rb=101, sp=2, sb=200",
            f"peer usage: {NAME}, rp=0, rb=0, sp=0, sb=0",
            f"delete: {NAME}",
        ),
    )
    (session,) = books.rows("sessions")
    assert list(reconcile(books.engine, [path])) == [
        LogDifference(
            log=str(path),
            line=1,
            realm="example.org",
            username="alice",
            allocation_id=f"{1:018d}",
            kind="differs",
            session_id=session["session_id"],
            column="received_bytes",
            logged=101,
            booked=100,
        )
    ]


@pytest.mark.parametrize("form", FORMS)
def test_a_logged_session_that_was_never_received_is_missing(
    books: Books, tmp_path: Path, form: str
) -> None:
    FakeAllocation(books, allocation=2).new(0)
    run_jobs_at(books, 5000)
    path = write_log(tmp_path, log(form, f"new, {NAME}, lifetime=600", f"delete: {NAME}"))
    result = ReconcileResult()
    (difference,) = reconcile(books.engine, [path], result=result)
    assert (difference.kind, difference.allocation_id) == ("missing", f"{1:018d}")
    assert (result.sessions, result.differing) == (1, 1)


def test_a_session_continues_in_the_next_file_and_a_reused_id_is_another(
    books: Books, tmp_path: Path
) -> None:
    for start in (0, 2000):
        FakeAllocation(books).new(start)
        FakeAllocation(books).interim(start + 5, 2 + start, 200, 2, 200)
        FakeAllocation(books).close(start + 10, (2 + start, 200, 2, 200), (0, 0, 0, 0))
    run_jobs_at(books, 9000)
    usage = f"usage: {NAME}, rp=1, rb=100, sp=1, sb=100"
    again = f"usage: {NAME}, rp=2002, rb=200, sp=2, sb=200"
    new = f"new, {NAME}, lifetime=600"
    logs = [
        write_log(tmp_path, log(FORMS[0], new, usage), "turn.log.1"),
        write_log(tmp_path, log(FORMS[0], usage, f"delete: {NAME}", new, again, f"delete: {NAME}")),
    ]
    result = ReconcileResult()
    assert list(reconcile(books.engine, logs, result=result)) == []
    assert (result.sessions, result.unlogged) == (2, 0)


def test_a_username_that_looks_like_a_log_line_is_parsed_whole() -> None:
    name = b"x>, rp=9, rb=9, sp=9, sb=9 \xff session 7: usage: realm=<q>, username=<y"
    line = parse_line(
        b"1: : session 000000000000000001: usage: realm=<r>, username=<"
        + name
        + b">, rp=1, rb=2, sp=3, sb=4\n"
    )
    assert line is not None
    assert (line.allocation_id, line.realm, line.username) == (1, b"r", name)
    assert line.counters == (1, 2, 3, 4)
