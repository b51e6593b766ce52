"""A server that lies about lengths and counts costs a connection, never memory."""

from contextlib import suppress
from pathlib import Path

import pytest
from redis.exceptions import RedisError

from accounting.capture.clock import wall_clock
from accounting.capture.redis.address import Endpoint, parse_address
from accounting.capture.redis.connection import connect, read_server_info
from accounting.capture.redis.key_scan import parse_page
from accounting.capture.source import MAX_TEXT, SourceLost
from accounting.capture.spool.file import spool_path
from accounting.capture.spool.spool import Spool
from tests.support.collectors import CollectorProcess, publish, stored_messages
from tests.support.hostile_server import HostileServer
from tests.support.redis_proxy import Proxy
from tests.support.servers import ValkeyServer, wait_until
from tests.support.wire import array

MEGABYTE = 1 << 20
FLOOD_BYTES = 200 * MEGABYTE
MAX_PEAK_BYTES = 160 * MEGABYTE
"""A collector at rest has some 60 MB; its queue has 16 MB here."""

PMESSAGE = b"*4\r\n$8\r\npmessage\r\n$32\r\nturn/realm/*/user/*/allocation/*\r\n"


@pytest.mark.parametrize(
    ("capture", "header", "filler"),
    [
        ("replication", b"*2147483647\r\n$7\r\nPUBLISH\r\n", b"$10\r\n0123456789\r\n"),
        ("replication", b"*4\r\n$7\r\nPUBLISH\r\n$9999999999\r\n", b"x"),
        pytest.param("replication", b"*2\r\n$6\r\nSELECT\r\n$10\r\n", b"9", marks=pytest.mark.long),
        ("replication", b"", array(b"PUBLISH", b"__XXX__", b"__YYY__")),
        ("subscribe", PMESSAGE + b"$9999999999\r\n", b"x"),
        ("subscribe", b"*4294967295\r\n", b":1\r\n"),
        pytest.param("subscribe", b"-ERR ", b"x", marks=pytest.mark.long),
    ],
)
def test_a_flood_within_a_stream_does_not_fill_the_memory(
    valkey_master: ValkeyServer, tmp_path: Path, capture: str, header: bytes, filler: bytes
) -> None:
    with (
        Proxy(valkey_master) as proxy,
        CollectorProcess(
            proxy.url, tmp_path, capture=capture, queue_bytes=16 << 20, own_python=True
        ) as collector,
    ):
        path = spool_path(tmp_path, "test")
        wait_until(path.exists)
        with Spool.open(path, "test") as spool:
            wait_until(lambda: spool.state().captured_until)
            piece = filler * (MEGABYTE // len(filler))
            with suppress(OSError):  # it hangs up at what can't be meant
                proxy.inject_into_stream(header)
                for _ in range(FLOOD_BYTES // len(piece)):
                    proxy.inject_into_stream(piece)
            assert collector.peak_bytes() < MAX_PEAK_BYTES
            proxy.cut()
            proxy.mend()
            before = spool.state().captured_until or 0
            wait_until(lambda: (spool.state().captured_until or 0) > before, 40)
            publish(valkey_master, b"1")
            wait_until(lambda: stored_messages(spool))
            code, text = collector.terminate()
            assert code == 0, text


FLOODS = {
    "a bulk string without end": (b"$9999999999\r\n", b"x"),
    "an array that claims billions": (b"*4294967295\r\n", b":1\r\n"),
    "arrays within arrays": (b"", b"*1\r\n"),
    "a line without end": (b"+", b"x"),
    "a length of thousands of digits": (b"$", b"9"),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_reply_has_a_bound(flood: str) -> None:
    header, filler = FLOODS[flood]
    piece = filler * (MEGABYTE // len(filler))
    with HostileServer(header, piece) as server:
        connection = Endpoint(server.url).new_connection()
        connect(connection)
        with pytest.raises(RedisError):
            read_server_info(connection, wall_clock)
        connection.disconnect()  # type: ignore[no-untyped-call]
        assert server.sent_bytes < 40 * MEGABYTE


@pytest.mark.parametrize("flood", FLOODS)
def test_a_sentinels_reply_has_a_bound(flood: str) -> None:
    header, filler = FLOODS[flood]
    piece = filler * (MEGABYTE // len(filler))
    with HostileServer(header, piece) as server:
        address = parse_address(f"redis+sentinel://127.0.0.1:{server.port}/turn")
        with pytest.raises(SourceLost):
            address.resolve()
        assert server.sent_bytes < 40 * MEGABYTE


@pytest.mark.parametrize(
    "reply",
    [
        b":1\r\n",
        b"*1\r\n$1\r\nx\r\n",
        array(b"x" * 300, b"6379"),
        array(b"host/path?", b"6379"),
        array(b"user@host", b"6379"),
        array(b"host", b"9" * 5000),
        array(b"host", b"port"),
    ],
)
def test_a_sentinel_that_names_no_address_is_an_error(reply: bytes) -> None:
    with HostileServer(reply, b"", limit_bytes=0) as server:
        address = parse_address(f"redis+sentinel://127.0.0.1:{server.port}/turn")
        with pytest.raises(SourceLost, match="address"):
            address.resolve()


@pytest.mark.parametrize(
    "reply",
    [
        None,
        7,
        b"0",
        [b"0"],
        [b"0", b"keys"],
        [7, []],
        [b"x", []],
        [b"9" * 21, []],
    ],
)
def test_a_page_of_scan_of_another_form_is_an_error(reply: object) -> None:
    with pytest.raises(SourceLost):
        parse_page(reply)


def test_keys_too_large_for_coturn_are_no_sightings() -> None:
    assert parse_page([b"0", [b"k", b"x" * 9000, 7, None]]) == (b"0", [b"k"])


def test_what_a_server_says_is_cut_in_an_error() -> None:
    with HostileServer(b"-ERR " + b"x" * 100_000 + b"\r\n", b"", limit_bytes=0) as server:
        address = parse_address(f"redis+sentinel://127.0.0.1:{server.port}/turn")
        with pytest.raises(SourceLost, match="refuses") as lost:
            address.resolve()
        assert len(str(lost.value)) <= MAX_TEXT + 3
