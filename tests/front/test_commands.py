"""What reads one database reads a front: the same commands, the same output."""

import shlex

import pytest

from tests.support.books import READER
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
source list --json
gaps --since 2026-11-04T12:00
export usage --since 2026-11 --until 2026-11-04
export sessions --since 2026-11-02 --until 2026-11-03 --format jsonl
""".strip().splitlines()


def run(url: str, command: str) -> CommandResult:
    return turn_accounting(*shlex.split(command), database_url=url)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_prints_the_same_on_a_front(roaming: Front, command: str) -> None:
    on_front = run(roaming.books.url(READER), command)
    assert "Traceback" not in on_front.err
    assert on_front == run(roaming.whole.url(READER), command)
