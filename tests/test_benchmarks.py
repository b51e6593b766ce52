"""Every part of ``make bench`` runs with tiny sizes, and its books equal what was published.

The parts themselves compare the books with the published messages. These tests measure nothing.
"""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final

import pytest

from benchmarks import memory, path, sources
from benchmarks.__main__ import PARTS, arguments, chosen_scale, measure
from benchmarks.figures import Figure, json_line, side_by_side, table
from benchmarks.fixture import benchmark_database
from benchmarks.pipeline import Pipeline
from benchmarks.publisher import Timeline
from benchmarks.report import with_figures
from benchmarks.scale import FULL, QUICK, Scale
from benchmarks.workload import GROUP_MESSAGES, Workload
from tests.support.servers import PostgresServer

TINY: Final[Scale] = replace(
    QUICK,
    open_sessions=200,
    users=100,
    captures=("replication",),
    messages=2_000,
    events=640,
    step_events=320,
    rows=100,
    listed_users=20,
    seconds=0.5,
    many_sessions=200,
    memory_seconds=0.5,
    idle_seconds=0.1,
    settle_down_seconds=0.1,
    sources=(2,),
    cells=(2,),
    sources_seconds=0.5,
    day_reports=640,
    day_users=50,
    reports=1_280,
    growth_events=320,
    growth_open_sessions=50,
    web_sessions=2_000,
    web_users=200,
    web_live=20,
    web_requests=1,
)


PIPELINE_PARTS: Final = ("path", "memory", "sources")
"""Parts that need the processes of the service; here they share one pipeline."""


PROCESS_PARTS: Final = ("capture", "idle", "commands", "web")
"""Parts that start many processes."""


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(part, marks=[pytest.mark.long] if part in PROCESS_PARTS else [])
        for part in PARTS
        if part not in PIPELINE_PARTS
    ],
)
def test_part_runs_and_conserves(postgres_server: PostgresServer, part: str) -> None:
    check(PARTS[part](postgres_server, TINY))


@pytest.mark.long
def test_live_parts_run_and_conserve(postgres_server: PostgresServer) -> None:
    with benchmark_database(postgres_server) as bed, Pipeline(bed, TINY, sources=2) as line:
        line.open_sessions()
        check(path.measure(line, TINY))
        check(memory.measure(line, TINY))
        check(sources.measure(line, TINY, 2))
        line.check(line.stop_publishing())


def check(figures: list[Figure]) -> None:
    assert figures
    for figure in figures:
        assert len(figure.values) == TINY.rounds
        assert json.loads(json_line(figure.as_json()))["figure"] == figure.name


def test_run_prints_a_table_and_writes_a_line_for_each_figure(
    postgres_server: PostgresServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "bench.jsonl"
    measure(postgres_server, ["load"], TINY, lines)
    printed = capsys.readouterr().out
    about, *figures = map(json.loads, lines.read_text().splitlines())
    assert "fsync" in about["postgres"]
    assert "synchronous_commit" in about["postgres"]
    assert "three to one" in about["mix"]
    assert figures
    for figure in figures:
        assert figure["part"] == "load"
        assert f"| {figure['figure']}" in printed


def test_sizes_can_be_chosen_on_the_command_line() -> None:
    given = arguments().parse_args(
        ["--quick", "--rounds", "2", "--reports", "100000000", "--rate", "50000"]
    )
    assert chosen_scale(given) == replace(QUICK, rounds=2, reports=100_000_000, rate=50_000.0)
    assert chosen_scale(arguments().parse_args([])) == FULL


def test_workload_has_three_messages_of_sessions_to_one_interim() -> None:
    mix = Workload(open_sessions=100, users=30)
    opened = [message for group in mix.open() for message in group]
    groups = list(islice(mix.churn(), 50))
    churned = [message for group in groups for message in group]
    assert len(opened) == 100
    assert {len(group) for group in groups} == {GROUP_MESSAGES}
    starts = sum(payload.startswith(b"new") for _, payload in churned)
    deleted = sum(payload == b"deleted" for _, payload in churned)
    interims = sum(channel.endswith((b"/traffic", b"/traffic/peer")) for channel, _ in churned)
    assert starts == deleted == mix.ended == mix.started - 100
    # The last two traffic reports of a session belong to its own messages.
    assert 8 * starts == 3 * (interims - 2 * starts) == len(churned) * 3 // 4
    assert mix.messages == len(opened) + len(churned)


def test_workload_ends_every_session_that_it_began() -> None:
    mix = Workload(open_sessions=20, users=7)
    messages = [m for group in (*mix.open(), *islice(mix.churn(), 9), *mix.close()) for m in group]
    begun = {c for c, payload in messages if payload.startswith(b"new")}
    assert {c for c, payload in messages if payload == b"deleted"} == begun
    assert mix.started == mix.ended == len(begun)
    assert mix.messages == len(messages)


def test_the_lag_of_usage_is_the_age_of_its_oldest_missing_session() -> None:
    timeline = Timeline([10.0, 11.0, 12.0], [8, 80, 160], [1, 10, 20], {})
    assert timeline.lag(15.0, 20) == 0.0
    assert timeline.lag(15.0, 19) == 3.0
    assert timeline.lag(15.0, 10) == 3.0
    assert timeline.lag(15.0, 0) == 5.0


def test_figure_meets_its_target_by_its_median() -> None:
    figure = Figure(part="p", name="n", unit="us", values=[1.0, 9.0, 2.0], target=2.0)
    assert figure.is_met
    assert not Figure(
        part="p", name="n", unit="", values=[0.4], target=0.5, bound="at least"
    ).is_met
    assert table([figure]).splitlines()[-1].split("|")[3:6] == [
        f" {value} ".rjust(width) for value, width in (("2.00", 8), ("1.00", 6), ("9.00", 6))
    ]


def test_sizes_stand_in_columns_with_the_ratio_of_the_last_to_the_first() -> None:
    figures = [
        Figure(part=part, name="cost", unit="us", values=[value])
        for part, value in (("one", 2.0), ("two", 3.0))
    ]
    last = side_by_side(figures).splitlines()[-1]
    assert [cell.strip() for cell in last.split("|")[1:-1]] == ["cost, us", "2.00", "3.00", "1.50"]


def test_figures_of_a_run_stand_on_the_page_and_others_stay() -> None:
    page = (
        "# A\n<!-- figures: about -->\n<!-- end -->\n<!-- figures: load -->\nold\n<!-- end -->\n"
        "<!-- figures: path -->\nkept\n<!-- end -->\nafter\n"
    )
    figure = Figure(part="load", name="rate", unit="events/s", values=[5.0, 7.0, 6.0], target=9.0)
    assert Figure.from_json(json.loads(json_line(figure.as_json()))) == figure
    result = with_figures(page, [{"cores": 2}, figure.as_json()])
    assert result == (
        "# A\n<!-- figures: about -->\n- cores: 2\n<!-- end -->\n<!-- figures: load -->\n"
        f"{table([figure])}\n<!-- end -->\n"
        "<!-- figures: path -->\nkept\n<!-- end -->\nafter\n"
    )
