"""One process of a coturn server: its connections, ids and status keys, and what it publishes.

A restart is another process, with other connections, whose ids start again. This module decides
what coturn publishes and in which order; allocations and the fleet decide when.
"""

from typing import Final

from accounting.simulator import wire
from accounting.simulator.oracle import OracleLedger
from accounting.simulator.version import Version
from accounting.simulator.wire import Command

THREAD_STRIDE: Final = 10**15
"""An id is ``relay_thread * 10^15 + counter`` (docs/coturn.md#ids-restart)."""


class ServerProcess:
    """A server process. Appends to ``commands``, which the fleet empties after every step."""

    __slots__ = (
        "_commands",
        "_ledger",
        "_next_counters",
        "_status_keys",
        "address",
        "connections",
        "database",
        "is_running",
        "server",
        "version",
    )

    def __init__(
        self,
        *,
        server: int,
        version: Version,
        address: str,
        database: int,
        connections: range,
        status_keys: dict[bytes, None],
        ledger: OracleLedger,
        commands: list[Command],
    ) -> None:
        self.server = server
        self.version = version
        self.address = address
        self.database = database
        self.is_running = True
        self.connections = connections
        """The main thread's, then one for each relay thread, as in the recording of 4.6.1."""
        self._next_counters = [1] * (len(connections) - 1)
        self._status_keys = status_keys
        self._ledger = ledger
        self._commands = commands

    def next_id(self, thread: int) -> int:
        """The id that the next session of a relay thread gets."""
        return thread * THREAD_STRIDE + self._next_counters[thread]

    def take_id(self, thread: int) -> int:
        """Take the next id of a relay thread; unauthenticated requests take one too."""
        allocation_id = self.next_id(thread)
        self._next_counters[thread] += 1
        return allocation_id

    def skip_to(self, thread: int, allocation_id: int) -> None:
        """Skip ids of a thread, as if unauthenticated clients without traffic had taken them."""
        self._next_counters[thread] = allocation_id % THREAD_STRIDE

    def clear_status_keys(self, at_us: int) -> None:
        """At start: KEYS, then DEL of every allocation's status key in this database.

        Keys of other live servers go too (docs/coturn.md#start-deletes-keys). Only keys that this
        run set: leftovers of another run, or of a real server, are not touched.
        """
        self._send(at_us, 0, b"keys", (wire.STATUS_KEYS_PATTERN,))
        for key in self._status_keys:
            self._send(at_us, 0, b"del", (key,))
        self._status_keys.clear()

    def publish_keepalives(self, at_us: int) -> None:
        for index in range(len(self.connections)):
            self._send(at_us, index, b"publish", wire.KEEPALIVE)
        self._ledger.keepalives += len(self.connections)

    def publish_status(
        self, at_us: int, thread: int, key: bytes, kind: str, payload: bytes
    ) -> None:
        """``new`` or ``refreshed``: SET, then PUBLISH."""
        self._status_keys[key] = None
        self._send(at_us, thread + 1, b"set", (key, payload))
        self._send(at_us, thread + 1, b"publish", (key, payload))
        self._ledger.messages[kind] += 1

    def publish_deleted(self, at_us: int, thread: int, key: bytes) -> None:
        """DEL, then PUBLISH. The recordings show an empty second argument of DEL."""
        self._status_keys.pop(key, None)
        self._send(at_us, thread + 1, b"del", (key, b""))
        self._send(at_us, thread + 1, b"publish", (key, wire.DELETED))
        self._ledger.messages["deleted"] += 1

    def publish_traffic(
        self, at_us: int, thread: int, prefix: bytes, kind: str, counters: tuple[int, ...]
    ) -> None:
        """``traffic`` or ``total_traffic``: the client side, then the peer side."""
        channel = prefix + kind.encode()
        self._send(at_us, thread + 1, b"publish", (channel, wire.traffic_payload(*counters[:4])))
        self._ledger.messages[kind] += 1
        if self.version.peer_traffic:
            payload = wire.traffic_payload(*counters[4:])
            self._send(at_us, thread + 1, b"publish", (channel + b"/peer", payload))
            self._ledger.messages[kind + "/peer"] += 1

    def _send(
        self, at_us: int, connection_index: int, name: bytes, args: tuple[bytes, ...]
    ) -> None:
        self._commands.append(
            Command(at_us, self.connections[connection_index], self.database, name, args)
        )
