"""What reads one database reads a front: the same commands, the same output."""

import re
import shlex

import pytest

from tests.support.books import READER, WRITER
from tests.support.command import CommandResult, turn_accounting
from tests.support.fronts import Front

COMMANDS = """
usage --json
usage --realm example.org --per hour --json
usage --by realm --per month --json
usage --by server --per day --json
usage --by transport --per hour --json
usage --user roamer1 --json
usage --top 3 --json
usage --top 2 --per hour --csv
usage --limit 4 --json
usage --since 2026-11-02T13:30 --until 2026-11-03 --json
sessions --user 'south only' --json
sessions --user '1700000000:south only' --json
usage --user 'south only' --csv
sessions --json
sessions --limit 5 --json
sessions --realm example.org --limit 3
sessions --user roamer2 --json
sessions --user roamer0 --limit 1 --json
sessions --since 2026-11-02T13:00 --until 2026-11-02T20:00 --json
sessions --since 2026-11-02T13:00 --limit 4 --json
sessions --since 2026-11-04T11:30 --json
sessions --user roamer1 --since 2026-11-04T11:30 --json
sessions --live --json
sessions --live --limit 2 --json
sessions --realm example.org
usage --realm nowhere
usage --user nobody
usage --realm example.com
source list
source list --json
source list --csv
period list
period list example.org --json
period list nowhere
statement example.org 2026-11-01
statement example.org 2026-11-01 --preview
statement example.org 2026-11-01 --preview --json
statement example.org 2026-11-01 --preview --user roamer1
statement example.net 2026-11-01 --preview --csv
limit list
limit status
feed --json
rates
rates --json
rates --realm example.net --csv
top --once
top --once --json
top --once --json --by session
top --once --by user --sort name
gaps
gaps --json
gaps --since 2026-11-04T12:00
export usage --since 2026-11
export usage --since 2026-11 --until 2026-11-04
export usage --by realm --per hour --since 2026-11-02 --until 2026-11-03
export statements
export statements --period 2026-11-01
export adjustments --since 2026-11
export focus
export sessions --since 2026-11-02 --until 2026-11-03 --format jsonl
""".strip().splitlines()


WRITERS_COMMANDS = """
realm list
realm list --json
token list
webhook list
""".strip().splitlines()


def run(url: str, command: str) -> CommandResult:
    return turn_accounting(*shlex.split(command), database_url=url)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_prints_the_same_on_a_front(roaming: Front, command: str) -> None:
    on_front = run(roaming.books.url(READER), command)
    assert "Traceback" not in on_front.err
    on_whole = run(roaming.whole.url(READER), command)
    assert with_gaps_of_whole(roaming, on_front) == with_gaps_of_whole(roaming, on_whole)


@pytest.mark.parametrize("command", WRITERS_COMMANDS)
def test_a_writer_s_command_prints_the_same_on_a_front(roaming: Front, command: str) -> None:
    on_front = run(roaming.books.url(WRITER), command)
    assert on_front.code == 0
    assert on_front == run(roaming.whole.url(WRITER), command)


def with_gaps_of_whole(front: Front, result: CommandResult) -> CommandResult:
    """A front gives gaps other numbers; in a table they are wider."""
    [of_front], [of_whole] = (
        books.rows("capture_gaps", "gap_id") for books in (front.books, front.whole)
    )
    out = result.out
    for number in (str(of_front["gap_id"]), f"{of_front['gap_id']:,}"):
        out = re.sub(rf"\b{number}\b", str(of_whole["gap_id"]), out)
    if re.search(r"\bgap\b", out):
        out = re.sub(r"(?m) +", " ", re.sub(r"(?m)^ +", "", out))
    return result._replace(out=out)
