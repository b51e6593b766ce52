"""The simulator publishes the commands of the recordings, in their order and formats."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

import pytest

from accounting.simulator import Command, Scenario, play
from tests.support.recordings import RecordedCommand, recorded_commands

SESSION_SHAPE = re.compile(
    r"(set-new pub-new )(set-refreshed pub-refreshed |traffic traffic/peer )*"
    r"(set-refreshed0 pub-refreshed0 )?"
    r"(traffic traffic/peer del deleted total_traffic total_traffic/peer )?"
)
UNAUTHENTICATED_SHAPE = re.compile(r"traffic traffic/peer ")
SUFFIX = re.compile(rb".*/allocation/\d{18}/(.*)", re.DOTALL)


def first_process(name: str) -> list[RecordedCommand]:
    """The commands of a recording's first server process, which has the version of its name."""
    run: list[RecordedCommand] = []
    for command in recorded_commands(name):
        if command.command in {"auth", "select", "flushall"} and run and has_published(run):
            break
        run.append(command)
    return run


def has_published(run: Iterable[RecordedCommand]) -> bool:
    return any(command.command == "publish" for command in run)


def as_commands(run: Iterable[RecordedCommand]) -> Iterator[Command]:
    numbers: dict[str, int] = {}
    for recorded in run:
        index = numbers.setdefault(recorded.connection, len(numbers))
        yield Command(
            recorded.time_us, index, recorded.database, recorded.command.encode(), recorded.args
        )


def command_word(command: Command) -> str:
    """A command of an allocation as one word."""
    key, value = command.args
    suffix = SUFFIX.fullmatch(key)
    assert suffix is not None, key
    if command.name == b"del":
        assert value == b""
        return "del"
    if suffix[1] != b"status":
        assert command.name == b"publish"
        return suffix[1].decode()
    if value == b"deleted":
        return "deleted"
    zero = "0" if value.startswith(b"refreshed lifetime=0") else ""
    verb = {b"set": "set-", b"publish": "pub-"}[command.name]
    return verb + value.split(b" ")[0].decode() + zero


def by_allocation(commands: Iterable[Command]) -> dict[tuple[int, bytes], list[Command]]:
    sessions = defaultdict(list)
    for command in commands:
        # KEYS and the DELs of a starting server have one argument and belong to no session.
        if len(command.args) == 2 and b"/allocation/" in command.args[0]:
            prefix = command.args[0].rpartition(b"/allocation/")[0]
            allocation_id = command.args[0].rpartition(b"/allocation/")[2][:18]
            sessions[command.connection, prefix + allocation_id].append(command)
    return sessions


def payload_formats(commands: Iterable[Command]) -> set[tuple[str, str]]:
    """Every payload with its numbers replaced, by the word of its command."""
    formats = set()
    for session in by_allocation(commands).values():
        for command in session:
            payload = re.sub(rb"\d+", b"9", command.args[1]).decode()
            formats.add((command_word(command).rstrip("0"), payload))
    return formats


def keepalives(commands: Iterable[Command]) -> dict[int, list[int]]:
    times = defaultdict(list)
    for command in commands:
        if command.args[0] == b"__XXX__":
            assert command.args[1] == b"__YYY__"
            times[command.connection].append(command.at_us)
    return times


RECORDINGS = {
    "4.6": [first_process("lifecycle-4.6.1"), first_process("unauthenticated-4.6.1")],
    "4.17": [first_process("unauthenticated-4.17.1"), first_process("usernames-4.17.1")],
}


def simulated(version: str) -> list[Command]:
    scenario = Scenario(
        version=version, servers=1, tcp_share=0, stolen=True, restart=True, duration_seconds=40
    )
    return play(scenario)[0]


@pytest.mark.parametrize("version", RECORDINGS)
def test_commands_of_a_session_come_in_the_recorded_order(version: str) -> None:
    runs = [list(as_commands(run)) for run in RECORDINGS[version]]
    runs.append(simulated(version))
    for run in runs:
        sessions = by_allocation(run)
        assert sessions
        for session in sessions.values():
            words = "".join(f"{command_word(command)} " for command in session)
            assert SESSION_SHAPE.fullmatch(words) or UNAUTHENTICATED_SHAPE.fullmatch(words), words


@pytest.mark.parametrize("version", RECORDINGS)
def test_payloads_have_the_recorded_formats(version: str) -> None:
    scenario = Scenario(version=version, tcp_share=0, lifetime_seconds=5, duration_seconds=30)
    recorded: set[tuple[str, str]] = set()
    for run in RECORDINGS[version]:
        recorded |= payload_formats(as_commands(run))
    assert payload_formats(play(scenario)[0]) == recorded


@pytest.mark.parametrize("version", RECORDINGS)
def test_interims_come_at_the_recorded_modulus(version: str) -> None:
    runs = [list(as_commands(run)) for run in RECORDINGS[version]]
    runs.append(simulated(version))
    seen = 0
    for run in runs:
        for session in by_allocation(run).values():
            words = [command_word(command) for command in session]
            for place, kind in enumerate(words[:-2]):
                if kind == "traffic" and words[place + 2] != "del":
                    counts = re.findall(rb"[rcvsent]+p=(\d+)", session[place].args[1])
                    counts += re.findall(rb"[rcvsent]+p=(\d+)", session[place + 1].args[1])
                    assert sum(map(int, counts)) % 4096 == 0
                    seen += 1
    assert seen > 0


def test_a_release_comes_a_second_before_the_close_as_recorded() -> None:
    runs = [list(as_commands(run)) for run in RECORDINGS["4.6"]] + [simulated("4.6")]
    for run in runs:
        for session in by_allocation(run).values():
            times = {command_word(command): command.at_us for command in session}
            if "pub-refreshed0" in times and "deleted" in times:
                assert 900_000 < times["deleted"] - times["pub-refreshed0"] < 1_100_000


def test_keepalives_come_every_five_seconds_on_as_many_connections_as_recorded() -> None:
    for run in RECORDINGS["4.6"]:
        assert len(keepalives(as_commands(run))) == 3
    for run in RECORDINGS["4.17"]:
        assert not keepalives(as_commands(run))
    scenario = Scenario(version="4.6", servers=1, relay_threads=2, duration_seconds=21)
    by_connection = keepalives(play(scenario)[0])
    assert len(by_connection) == 3
    for times in by_connection.values():
        assert times == [5_000_000, 10_000_000, 15_000_000, 20_000_000]
    assert not keepalives(play(Scenario(version="4.17"))[0])


@pytest.mark.parametrize("version", RECORDINGS)
def test_a_server_requests_the_recorded_keys_at_its_start(version: str) -> None:
    recorded = {
        c.args for run in RECORDINGS[version] for c in as_commands(run) if c.name == b"keys"
    }
    requested = {c.args for c in simulated(version) if c.name == b"keys"}
    assert requested == recorded - {(b"*",)}
