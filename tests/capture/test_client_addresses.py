"""What of a client's address reaches the disk of the collector, on real servers."""

from pathlib import Path
from typing import Final

import pytest

from accounting.capture.spool.file import spool_path
from accounting.domain.client_addresses import ClientAddresses
from tests.support.collectors import (
    CollectorThread,
    SpooledMessage,
    publish,
    replication_collector,
    stored_messages,
)
from tests.support.servers import RedisServer, ValkeyServer

STATUS: Final = b"turn/realm/north/user/ann/allocation/001000000000000001/status"
ADDRESS: Final = b"198.51.100.7"
FORM: Final = b"%b lifetime=600, type=UDP, local=192.0.2.1:3478, remote=%b, ssl=NONE, cipher=NONE"
PAYLOADS: Final = (
    FORM % (b"new", b"198.51.100.7:50000"),
    b"rcvp=1, rcvb=100, sentp=2, sentb=200",
    FORM % (b"refreshed", b"198.51.100.7:50000"),
    b"new lifetime=600, client=198.51.100.7:50000",
    b"deleted",
)
NETWORK: Final = b"198.51.100.0/24"
NOTHING: Final = b""


def received(payloads: tuple[bytes, ...], kept: bytes) -> list[bytes]:
    """The payloads with ``kept`` in place of the address, and masked where nobody knows it."""
    masked = payloads[3].replace(b"198.51.100.7:50000", b"x" * 18)
    return [
        *(payload.replace(b"198.51.100.7:50000", kept) for payload in payloads[:3]),
        masked,
        payloads[4],
    ]


def capture_twice(
    master: RedisServer, data_dir: Path, kept: ClientAddresses
) -> list[SpooledMessage]:
    """Publish all payloads twice, and stop the collector in between."""
    for _ in range(2):
        with replication_collector(master.url, data_dir, client_addresses=kept) as collector:
            collector.await_attached(master)
            publish(master, *PAYLOADS, to=STATUS)
            collector.await_checkpoint()
            rows = stored_messages(collector.spool)
            assert collector.spool.gaps() == []
    return rows


@pytest.mark.parametrize(
    ("kept", "address"),
    [(ClientAddresses.NETWORK, NETWORK), (ClientAddresses.DROP, NOTHING)],
)
def test_no_address_reaches_the_disk_and_positions_stay(
    valkey_master: ValkeyServer, tmp_path: Path, kept: ClientAddresses, address: bytes
) -> None:
    """The position is that of the stream, so that capture goes on where it stopped."""
    with replication_collector(valkey_master.url, tmp_path / "kept") as other:
        other.await_attached(valkey_master)
        rows = capture_twice(valkey_master, tmp_path / "reduced", kept)
        other.await_checkpoint()
        whole = stored_messages(other.spool)
    assert [row.payload for row in whole] == list(PAYLOADS) * 2
    assert [row.payload for row in rows] == received(PAYLOADS, address) * 2
    assert [(row.position, row.channel) for row in rows] == [
        (row.position, row.channel) for row in whole
    ]
    for path in spool_path(tmp_path / "reduced", "test").parent.iterdir():
        assert not path.is_file() or ADDRESS + b":" not in path.read_bytes(), path


def test_a_subscription_reduces_addresses_too(valkey: ValkeyServer, tmp_path: Path) -> None:
    with CollectorThread(valkey.url, tmp_path, client_addresses=ClientAddresses.DROP) as collector:
        collector.await_attached(valkey)
        publish(valkey, *PAYLOADS, to=STATUS)
        collector.await_checkpoint()
        rows = stored_messages(collector.spool)
    assert [row.payload for row in rows] == received(PAYLOADS, NOTHING)
