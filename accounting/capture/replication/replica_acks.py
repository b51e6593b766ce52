"""Acks: what a replica says while it follows, so that the server keeps it and waits for it.

Owns when the next word is due and what it says: how far the stream is durable here. Must not touch
the socket: the receiver's thread speaks.
"""

# Redis wants to hear from a replica within `repl-timeout`, 60 s by default. It starts the stream at
# the first word after it has put the replica online, so at the beginning it hears more of us.
ACK_SECONDS = 1.0
FAST_ACK_SECONDS = 0.1
FAST_ACKS = 20


class ReplicaAcks:
    """Tells the server every second how far the stream is durable here.

    Nothing before the stream has begun: a diskless snapshot waits until `repl-diskless-sync-delay`
    has passed without a word of a replica that wants one.
    """

    def __init__(self) -> None:
        self.durable_offset = 0
        self.is_requested = False
        self._started = False
        self._fast_acks_left = 0
        self._next_due = 0.0

    def start(self) -> None:
        """Begin to speak; oftener for a while, until the stream has begun for sure."""
        self._started = True
        self._fast_acks_left, self._next_due = FAST_ACKS, 0.0

    def due(self, now: float) -> bytes:
        """The next word when it is time for it."""
        if not self._started or (now < self._next_due and not self.is_requested):
            return b""
        self.is_requested = False
        self._next_due = now + (FAST_ACK_SECONDS if self._fast_acks_left else ACK_SECONDS)
        self._fast_acks_left = max(0, self._fast_acks_left - 1)
        digits = b"%d" % self.durable_offset
        return b"*3\r\n$8\r\nREPLCONF\r\n$3\r\nACK\r\n$%d\r\n%b\r\n" % (len(digits), digits)
