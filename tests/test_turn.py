"""The live coturn of the tests: what it publishes and what it logs are the same numbers."""

import re
from collections import defaultdict

import pytest
import redis

from tests.coturn_log import LoggedKey, coturn_log_usage
from tests.servers import ValkeyServer
from tests.turn import TurnServer, run_client, wait_until_closed

pytestmark = pytest.mark.needs_coturn

TRAFFIC = re.compile(
    rb"turn/realm/(?P<realm>.*)/user/(?P<username>.*)/allocation/(?P<id>\d+)/traffic(?P<peer>/peer)?"
)


def received(subscription: redis.client.PubSub, seconds: float) -> dict[LoggedKey, list[int]]:
    """The eight counters by session as Redis passed them on, once it is quiet for so long."""
    sums: dict[LoggedKey, list[int]] = defaultdict(lambda: [0] * 8)
    while message := subscription.get_message(ignore_subscribe_messages=True, timeout=seconds):
        if match := TRAFFIC.fullmatch(message["channel"]):
            key = LoggedKey(match["realm"], match["username"], match["id"].decode())
            counts = [int(number) for number in re.findall(rb"=(\d+)", message["data"])]
            for place, count in enumerate(counts, start=4 if match["peer"] else 0):
                sums[key][place] += count
    return sums


def test_coturn_logs_the_numbers_that_it_publishes() -> None:
    users = {"alice": "a", "bob": "b"}
    with (
        ValkeyServer() as valkey,
        TurnServer(valkey.port, users=users) as server,
        redis.Redis.from_url(valkey.url) as client,
        client.pubsub() as subscription,
    ):
        subscription.psubscribe("turn/realm/*/user/*/allocation/*")
        subscription.get_message(timeout=5)
        alice = run_client(server, "alice", "a", messages=40)
        bob = run_client(server, "bob", "b", messages=20, tcp=True)
        wrong = run_client(server, "bob", "wrong")
        wait_until_closed(server)
        published = received(subscription, 1.0)
        logged = coturn_log_usage(server.log_bytes())
    assert (alice.code, alice.received_messages) == (0, 40)
    assert (bob.code, bob.received_messages) == (0, 20)
    assert wrong.code != 0
    used = {key: list(usage.counters()) for key, usage in logged.items() if any(usage.counters())}
    assert used == {key: counters for key, counters in published.items() if any(counters)}
    assert {key.username for key in used} >= {b"alice", b"bob"}
