"""Waits for stop signals again and again: ``signal_rounds service|feed ROUNDS``.

Prints a line once it is ready, and ends after so many stops. A burst of signals meets the main
thread at every place of its wait.
"""

import os
import signal
import sys
from contextlib import suppress
from typing import Final

from accounting.errors import ConnectionLost
from accounting.feed import client
from accounting.ops.stop_signals import stop_on_signals

SHORT_SECONDS: Final = 0.00001
UNREACHABLE_URL: Final = "postgresql://nobody@127.0.0.1:1/none?connect_timeout=2"


def run_service(rounds: int) -> None:
    """The event of a process of the service, cleared after each stop."""
    stop = stop_on_signals()
    os.write(sys.stdout.fileno(), b"\n")
    for _ in range(rounds):
        while not stop.wait(SHORT_SECONDS):
            pass
        stop.clear()


def run_feed(rounds: int) -> None:
    """A worker whose database is away, and which stops its feed in the handler of a signal."""
    client.MIN_RETRY_SECONDS = client.MAX_RETRY_SECONDS = SHORT_SECONDS  # type: ignore[misc]
    feed = client.Feed(UNREACHABLE_URL)
    signal.signal(signal.SIGTERM, lambda *_: feed.stop())
    os.write(sys.stdout.fileno(), b"\n")
    for _ in range(rounds):
        with suppress(ConnectionLost):
            for _event in feed.read(follow=True):
                pass
        feed = client.Feed(UNREACHABLE_URL)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


if __name__ == "__main__":
    {"service": run_service, "feed": run_feed}[sys.argv[1]](int(sys.argv[2]))
