"""Acks: what a replica says while it follows, so that the server keeps it and waits for it.

Owns when the next word is due and what it says: how far the stream is durable here. Must not touch
the socket: the receiver's thread speaks.
"""

# Redis wants to hear from a replica within `repl-timeout`, 60 s by default. It starts the stream at
# the first word after it has put the replica online, so at the beginning it hears more of us.
ack_seconds = 1.0
first_ack_seconds = 0.1
first_acks = 20


class Acks:
    """Tells the server every second how far the stream is durable here.

    Nothing before the stream has begun: a diskless snapshot waits until `repl-diskless-sync-delay`
    has passed without a word of a replica that wants one.
    """

    def __init__(self) -> None:
        self.durable = 0
        self.is_wanted = False
        self._has_begun = False
        self._hurried = 0
        self._next = 0.0

    def begin(self) -> None:
        """Begin to speak; oftener for a while, until the stream has begun for sure."""
        self._has_begun = True
        self._hurried, self._next = first_acks, 0.0

    def due(self, now: float) -> bytes:
        """The next word when it is time for it."""
        if not self._has_begun or (now < self._next and not self.is_wanted):
            return b""
        self.is_wanted = False
        self._next = now + (first_ack_seconds if self._hurried else ack_seconds)
        self._hurried = max(0, self._hurried - 1)
        digits = b"%d" % self.durable
        return b"*3\r\n$8\r\nREPLCONF\r\n$3\r\nACK\r\n$%d\r\n%b\r\n" % (len(digits), digits)
