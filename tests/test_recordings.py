"""Recordings are parsed to the exact bytes that the servers received."""

import pytest

from tests.support.recordings import (
    RecordedCommand,
    parse_arguments,
    parse_monitor,
    recorded_commands,
    recording_names,
)


def test_every_escape_of_monitor_is_decoded_exactly() -> None:
    line = rb'"publish" "a\\b\"c\n\r\t\a\b\x00\xff \\x41" ""'
    assert parse_arguments(line) == [b"publish", b'a\\b"c\n\r\t\x07\x08\x00\xff \\x41', b""]


def test_a_line_gives_time_database_connection_and_command() -> None:
    line = b'1795372666.000189 [3 127.0.0.1:54742] "SELECT" "0"\n'
    assert list(parse_monitor(b"OK\n" + line)) == [
        RecordedCommand(1_795_372_666_000_189, "127.0.0.1:54742", 3, "select", (b"0",))
    ]


@pytest.mark.parametrize(
    "line", [b"nonsense", b'1.000001 [0 x:1] "a" b', b'1.000001 [0 x:1] "\\q"']
)
def test_a_line_that_monitor_would_not_print_is_an_error(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a|no escape"):
        list(parse_monitor(line))


@pytest.mark.parametrize("name", recording_names())
def test_every_line_of_every_recording_is_read(name: str) -> None:
    commands = recorded_commands(name)
    assert len(commands) > 50
    assert all(command.args for command in commands if command.command != "flushall")
    assert [c.time_us for c in commands] == sorted(c.time_us for c in commands)


def test_hostile_usernames_keep_their_bytes() -> None:
    channels = {
        args[0]
        for *_, command, args in recorded_commands("usernames-4.17.1")
        if command == "publish"
    }
    prefix = b"turn/realm/example.org/user/1999999999:"
    for name in (b"\xff\xfe", b"a\x01\x07b", b"k=v,rcvb=9", b"a*b?[x]"):
        assert any(channel.startswith(prefix + name + b"/allocation/") for channel in channels)
