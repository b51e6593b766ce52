"""Progress of long commands: a line on a terminal, which makes way for all output; else nothing."""

import json
import re
from pathlib import Path
from typing import Final

import pytest

from tests.support.books import WRITER, Books
from tests.support.command import turn_accounting, turn_accounting_on_terminal
from tests.support.corruptions import corrupt
from tests.support.servers import ValkeyServer

LOG: Final = (
    "1: : session 000000000000000003: new, realm=<example.org>, username=<bob>, lifetime=600\n"
)


def frames(shown: str) -> list[str]:
    """What the terminal showed on its last line, one after another, and the lines left there."""
    return [part.rstrip() for part in shown.replace("\n", "\r\n\r").split("\r") if part.strip()]


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ("verify", ["waiting for the jobs to rest", "recomputing sessions",
                    "rolling up the recomputed sessions",
                    "comparing tables of realm 'example.org'", "checking statements"]),
        ("rebuild --reason test", ["waiting for the jobs to rest", "recomputing sessions",
                                   "comparing tables of realm 'example.org'"]),
        ("trace example.org 2026-11-01 --user alice",
         ["waiting for the jobs to rest", "recomputing the user's sessions"]),
        ("export usage --output {directory}", ["counting rows", "writing rows"]),
        ("reconcile {directory}/turn.log",
         ["reading kilobytes of logs", "comparing names and ids"]),
        ("erase example.org bob", ["waiting for loaders and jobs", "erasing client addresses",
                                   "erasing names"]),
    ],
)  # fmt: skip
def test_long_work_shows_what_it_does_and_leaves_nothing(
    adjusted_books: Books, tmp_path: Path, arguments: str, steps: list[str]
) -> None:
    (tmp_path / "turn.log").write_text(LOG)
    words = [word.format(directory=tmp_path) for word in arguments.split()]
    shown = turn_accounting_on_terminal(
        *words, columns=80, with_errors=True, database_url=adjusted_books.url(WRITER)
    )
    drawn = frames(shown)
    for step in steps:
        assert any(frame.startswith(step) for frame in drawn), (step, drawn)
    assert max(map(len, drawn[: len(steps)])) < 80
    # Drawn over with spaces before the result, which is all that stays.
    result = shown.rpartition("\r")[2]
    assert result.endswith("\n")
    assert not any(step in result for step in steps)
    assert "\x1b" not in shown
    piped = turn_accounting(*words, database_url=adjusted_books.url(WRITER))
    assert not any(step in piped.err for step in steps)


def test_a_simulation_shows_how_far_it_is() -> None:
    with ValkeyServer() as server:
        shown = turn_accounting_on_terminal(
            "simulate", "--rate", "0", "--sessions", "5", "--json",
            with_errors=True, redis_url=server.url,
        )  # fmt: skip
    [*_, last, result] = frames(shown)
    assert re.match(r"simulating seconds  \[=+ *\]  [0-9]+/25  .*, 0 live$", last)
    assert result.startswith("{")


def test_data_go_to_their_file_while_progress_is_shown(
    adjusted_books: Books, tmp_path: Path
) -> None:
    corrupt(adjusted_books, "UPDATE accounting.user_usage_daily SET sent_bytes = sent_bytes + 1")
    out = tmp_path / "differences.jsonl"
    shown = turn_accounting_on_terminal(
        "verify", "--json", output=str(out), code=1, database_url=adjusted_books.url(WRITER)
    )
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["what"] for row in rows} == {"user_usage_daily"}
    assert "recomputing sessions" in shown
    assert "user_usage_daily" not in shown
