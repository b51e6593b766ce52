"""What operators see on a front: refused commands, health, doctor and metrics of its cells."""

import json
from collections.abc import Iterator
from dataclasses import replace

import psycopg
import pytest

from accounting.ops.monitoring import status_queries
from accounting.ops.monitoring.health import cell_faults, cell_status_problems, evaluate
from accounting.reporting.cells import CellState
from tests.support.books import WRITER
from tests.support.cell_link import CellLink, cell_link
from tests.support.command import CommandResult, turn_accounting
from tests.support.fronts import HOUR, Front, call, open_front
from tests.support.monitoring import metrics_of, read_snapshot
from tests.support.servers import PostgresServer


@pytest.fixture(scope="module")
def front(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Front]:
    with open_front(postgres_server, tmp_path_factory.mktemp("ops"), ("north", "south")) as front:
        for number, cell in enumerate(front.cells):
            call(front, cell, f"{cell} only", HOUR, 1 + number)
        front.advance_clocks(HOUR * 10)
        front.run_jobs()
        for books in front.cells.values():
            books.query("UPDATE test_clock.clock SET fixed_at = '2026-11-02 22:00:05Z' RETURNING 1")
        yield front


@pytest.fixture(scope="module")
def link(front: Front) -> Iterator[CellLink]:
    with cell_link(front, "north") as link:
        yield link


@pytest.fixture(autouse=True)
def _restored(link: CellLink, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(status_queries, "CELL_SECONDS", 0.5)
    yield
    link.restore()


def run(front: Front, *arguments: str, **settings: str) -> CommandResult:
    return turn_accounting(*arguments, database_url=front.books.url(WRITER), **settings)


@pytest.mark.parametrize(
    "command",
    [
        "rebuild --reason test",
        "reconcile turn.log",
        "collect",
        "source retire unknown",
        "export reports --day 2026-11-02 --output archive",
        "verify --archive archive",
    ],
)
def test_what_works_in_a_cell_is_refused(
    front: Front, command: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    result = run(
        front,
        *command.split(),
        data_dir=str(tmp_path_factory.mktemp("data")),
        redis_url="redis://127.0.0.1:1",
    )
    assert result.code == 2
    assert result.err == (
        "turn-accounting: this database is a front: run this on the database of a cell: known are "
        "'north', 'south'\n"
    )


@pytest.mark.parametrize("command", ["retire south", "reopen south", "rename south east"])
def test_the_cell_of_a_source_is_named(front: Front, command: str) -> None:
    result = run(front, "source", *command.split())
    assert result.code == 2
    assert result.error_line == (
        "this database is a front, and source 'south' is in cell 'south': run this on that cell's "
        "database"
    )


def test_up_is_refused_before_anything_runs(front: Front, tmp_path: pytest.TempPathFactory) -> None:
    result = turn_accounting("up", database_url=front.books.url(), data_dir=str(tmp_path))
    assert result.code == 2
    assert "this database is a front" in result.err


def test_a_front_whose_cells_answer_is_healthy(front: Front) -> None:
    snapshot = read_snapshot(front.books)
    health = evaluate(snapshot, captures=False)
    assert health.problems == ()
    assert health.warnings == ()
    metrics = metrics_of(snapshot)
    for cell in front.cells:
        assert metrics["turn_accounting_cell_up", cell] == 1
        assert metrics["turn_accounting_cell_captured_lag_seconds", cell] == pytest.approx(5, abs=1)
        assert abs(metrics["turn_accounting_cell_clock_offset_seconds", cell]) < 1


@pytest.mark.parametrize("fault", ["cut", "hold"])
def test_a_cell_away_is_a_problem(front: Front, link: CellLink, fault: str) -> None:
    getattr(link, fault)()
    snapshot = read_snapshot(front.books)
    [problem] = evaluate(snapshot, captures=False).problems
    assert problem.startswith("cell 'north' does not answer: ")
    metrics = metrics_of(snapshot)
    assert metrics["turn_accounting_database_up",] == 1
    assert metrics["turn_accounting_cell_up", "north"] == 0
    assert metrics["turn_accounting_cell_up", "south"] == 1
    assert ("turn_accounting_cell_captured_lag_seconds", "north") not in metrics


def test_the_doctor_has_a_finding_for_each_cell(front: Front, link: CellLink) -> None:
    link.cut()
    rules = (
        "UPDATE accounting.realm_rules SET grace_seconds = grace_seconds + %s RETURNING realm_id"
    )
    front.cells["south"].query(rules, [1])
    result = run(front, "doctor", "--json")
    front.cells["south"].query(rules, [-1])
    findings = [json.loads(line) for line in result.out.splitlines()]
    assert result.code == 1
    assert not [finding for finding in findings if "partition" in str(finding)]
    findings = [finding for finding in findings if finding["subject"] != "postgres"]
    errors = [finding for finding in findings if finding["level"] == "error"]
    assert [finding["subject"] for finding in errors] == ["cells", "cells"]
    differs, away = sorted(finding["seen"] for finding in errors)[::-1]
    assert "cell 'south': it has other rules of realm 'example.org'" in differs
    assert "cell 'north' does not answer" in away
    assert {finding["subject"] for finding in findings} == {"cells", "events", "zones", "addresses"}
    [south] = [
        finding
        for finding in findings
        if "cell 'south'" in finding["seen"] and finding["level"] == "ok"
    ]
    assert south["seen"].startswith("cell 'south': 1 source, captured until ")


def test_a_cell_that_was_upgraded_is_to_join_again(front: Front) -> None:
    change = "UPDATE accounting.alembic_version SET version_num = %s RETURNING version_num"
    with psycopg.connect(front.cells["south"].url()) as connection:
        connection.execute(change, ["9999"])
    try:
        [problem] = evaluate(read_snapshot(front.books), captures=False).problems
        assert problem == "cell 'south': now at revision 9999: join it again"
    finally:
        with psycopg.connect(front.cells["south"].url()) as connection:
            connection.execute(change, ["0001"])


def test_what_is_wrong_in_a_cell_is_said_in_short() -> None:
    status = status_queries.DatabaseStatus(
        revision="0001",
        cell_states=(
            CellState(cell="fine", sources=1, captured_lag_seconds=1, settled_lag_seconds=2),
            CellState(
                cell="late",
                sources=2,
                captured_lag_seconds=600,
                settled_lag_seconds=None,
                clock_ahead_seconds=-90,
                open_gaps=1,
                failing_jobs=2,
            ),
            CellState(cell="away", away="refused", sources=1),
        ),
    )
    assert list(cell_status_problems(status)) == ["cell 'away' does not answer: refused"]
    [warning] = cell_faults(status)
    assert warning == (
        "cell 'late': its clock is 90.00 s behind the front's, captured until 10 min ago, settled "
        "never, 1 open gap, 2 failing jobs: run `turn-accounting doctor` there"
    )
    assert list(cell_status_problems(replace(status, cell_states=()))) == []
