"""REPLCONF ACK: reports to the master how far the stream is durable here.

The receiver's thread sends what ``ReplicaAcks.due`` returns. Redis disconnects a replica that sends
nothing for ``repl-timeout``, 60 s by default.

An ack holds one byte back. FAILOVER promotes the first replica whose acknowledged offset equals the
master's, and a collector must never be that one (``docs/coturn.md#failover-command``). WAIT stays
exact: it makes the master append REPLCONF GETACK to the stream, so that the byte held back is never
one of the command that the client waits for. A server that shuts down waits for replicas with the
exact offset too, so it gets that one then.
"""

from typing import Final

ACK_SECONDS: Final = 1.0
FAST_ACK_SECONDS: Final = 0.1
FAST_ACKS: Final = 20
"""The first acks follow each other faster: after the snapshot Redis waits for one of them, and
starts the stream only then."""


class ReplicaAcks:
    """An ack every second, with the offset up to which the stream is stored.

    None is due before ``start``: a master that sends its snapshot without a disk file first waits
    until no replica has sent anything for ``repl-diskless-sync-delay``.
    """

    def __init__(self) -> None:
        self.durable_offset = 0
        self.is_requested = False
        self.server_is_shutting_down = False
        self._started = False
        self._fast_acks_left = 0
        self._next_due = 0.0

    def start(self) -> None:
        """Begin to send acks."""
        self._started = True
        self._fast_acks_left, self._next_due = FAST_ACKS, 0.0

    def due(self, now: float) -> bytes:
        """The next ack when it is due or the master has requested one, else nothing."""
        if not self._started or (now < self._next_due and not self.is_requested):
            return b""
        self.is_requested = False
        self._next_due = now + (FAST_ACK_SECONDS if self._fast_acks_left else ACK_SECONDS)
        self._fast_acks_left = max(0, self._fast_acks_left - 1)
        offset = self.durable_offset
        if not self.server_is_shutting_down:
            offset = unpromotable_offset(offset)
        digits = b"%d" % offset
        return b"*3\r\n$8\r\nREPLCONF\r\n$3\r\nACK\r\n$%d\r\n%b\r\n" % (len(digits), digits)


def unpromotable_offset(durable_offset: int) -> int:
    """An offset that differs from the master's, and counts for every command that is durable.

    The stream of a new server begins at 0, where no byte can be held back. There 1 differs as well,
    and it lies within the first command, so that command does not count.
    """
    return durable_offset - 1 if durable_offset else 1
