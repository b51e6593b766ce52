"""Two coturn servers, over UDP, TCP, TLS and IPv6: sums by server = by user = their logs."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest

from tests.support.books import Books, sum_counters
from tests.support.certificates import CertificateAuthority
from tests.support.coturn_log import coturn_log_usage, usage_per_user
from tests.support.coturn_server import TurnServer, run_client, wait_until_closed
from tests.support.invariants import assert_servers_add_up
from tests.support.servers import ValkeyServer
from tests.support.service import Service

pytestmark = [pytest.mark.needs_coturn, pytest.mark.long]

SECOND_ADDRESS: Final = "127.0.0.2"
IPV6_ADDRESS: Final = "::1"
Counters = tuple[int, ...]


def sums(books: Books, view: str, column: str) -> dict[str, Counters]:
    rows = books.rows(view)
    return {
        name: tuple(sum_counters(row for row in rows if row[column] == name).values())
        for name in {row[column] for row in rows}
    }


def added(*counters: Counters) -> Counters:
    return tuple(map(sum, zip(*counters, strict=True)))


def test_sums_by_server_and_transport_equal_coturns_logs(books: Books, tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path / "tls", hosts=[], addresses=[SECOND_ADDRESS])
    settings = {"ACCOUNTING_DATABASE_URL": books.url()}
    with (
        ValkeyServer() as valkey,
        Service("up", tmp_path / "data", settings | {"ACCOUNTING_REDIS_URL": valkey.url}) as up,
        TurnServer(valkey.port, users={"alice": "a", "bob": "b"}) as first,
        TurnServer(
            valkey.port,
            users={"carol": "c", "dave": "d"},
            address=SECOND_ADDRESS,
            certificate=authority.issue(timedelta(days=1)),
            key=authority.key,
            options=[f"--listening-ip={IPV6_ADDRESS}"],
        ) as second,
        ThreadPoolExecutor(4) as clients,
    ):
        up.wait_until_capturing()
        running = [
            clients.submit(run_client, first, "alice", "a", messages=100, clients=3),
            clients.submit(run_client, first, "bob", "b", messages=100, tcp=True),
            clients.submit(run_client, second, "carol", "c", messages=100, tls=True),
            clients.submit(
                run_client, second, "dave", "d", messages=100, clients=2, address=IPV6_ADDRESS
            ),
        ]
        for client in running:
            assert client.result().code == 0, client.result().output
        logged: dict[str, Counters] = {}
        for server in (first, second):
            wait_until_closed(server)
            log = coturn_log_usage(server.log_bytes())
            logged |= {name.decode(): usage for (_, name), usage in usage_per_user(log).items()}
        assert set(logged) == {"alice", "bob", "carol", "dave"}
        up.wait_for(lambda: sums(books, "user_usage_hourly", "user_id") == logged)
        assert up.stop() == 0
    assert_servers_add_up(books)
    by_server = {
        "127.0.0.1": added(logged["alice"], logged["bob"]),
        SECOND_ADDRESS: logged["carol"],
        IPV6_ADDRESS: logged["dave"],
    }
    by_transport = {
        "UDP": added(logged["alice"], logged["dave"]),
        "TCP": logged["bob"],
        "TLS/TCP": logged["carol"],
    }
    for length in ("hourly", "daily"):
        assert sums(books, f"server_usage_{length}", "server_address") == by_server
        assert sums(books, f"transport_usage_{length}", "transport") == by_transport
    assert all(row["peak_sessions"] for row in books.rows("server_usage_daily"))
