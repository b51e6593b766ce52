"""The subscribing source: PSUBSCRIBE to what coturn publishes, at most once by nature.

Owns the subscription from its acknowledgements to its end, and cuts the bytes that the receiver
took off the socket into messages. Must not look into a message, store anything, or try again: that
is the collector's. A subscription can't go on where it stopped, so every end of one is a gap.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import hiredis

from accounting.capture.pubsub.pings import Pings
from accounting.capture.redis.address import parse_address
from accounting.capture.redis.connection import (
    ServerInfo,
    connect,
    take_socket,
    try_read_server_info,
)
from accounting.capture.redis.receiver import Receiver
from accounting.capture.source import Attachment, Batch, SourceLost
from accounting.capture.spool.records import MAX_MESSAGE_BYTES, Message, SpoolState

# coturn leaves the realm out of the channel when it is empty; the two never match the same channel.
CHANNEL_PATTERNS = (b"turn/realm/*/user/*/allocation/*", b"turn/user/*/allocation/*")

PSUBSCRIBE_COMMAND = b"*3\r\n$10\r\nPSUBSCRIBE\r\n" + b"".join(
    b"$%d\r\n%b\r\n" % (len(p), p) for p in CHANNEL_PATTERNS
)

# Pub/sub does not tell the database number.
UNKNOWN_DATABASE = 0

# hiredis moves the rest of its buffer at every kilobyte that it has read, so it gets small pieces:
# with a megabyte at a time it takes three times as long.
PARSER_CHUNK_BYTES = 16 << 10

# What is stored at once at most: it bounds the memory between the queue and the disk.
batch_messages = 10_000

# How long a message waits for company before it is stored.
batch_seconds = 0.05

# How long a stop waits for the answer to the last ping.
stop_seconds = 3.0


class PubSubSource:
    """Subscribes to the Redis at `url`, over and over.

    Between the socket and the spool lie at most `queue_bytes`. A connection that sends nothing for
    `silence_seconds` after a ping is given up. Raises ConfigurationError for a URL that redis-py
    refuses.
    """

    def __init__(
        self,
        url: str,
        *,
        queue_bytes: int,
        clock: Callable[[], int],
        checkpoint_seconds: float = 1.0,
        silence_seconds: float = 10.0,
    ) -> None:
        self._address = parse_address(url)
        self._queue_bytes = queue_bytes
        self._clock = clock
        self._tick_seconds = checkpoint_seconds
        self._silence_seconds = silence_seconds

    @contextmanager
    def attach(self, _state: SpoolState, _stop: threading.Event, /) -> Iterator["PubSubStream"]:
        """Connect and subscribe; raises SourceLost when that fails."""
        connection = self._address.resolve().new_connection()
        try:
            connect(connection)
            server = try_read_server_info(connection, self._clock)
            sock = take_socket(connection)
            try:
                sock.sendall(PSUBSCRIBE_COMMAND)
            except OSError as error:
                raise SourceLost("disconnected", error.strerror or str(error)) from None
            pings = Pings(ping_seconds=self._tick_seconds, clock=self._clock)
            receiver = Receiver(
                sock,
                outgoing=pings,
                queue_bytes=self._queue_bytes,
                silence_seconds=self._silence_seconds,
                clock=self._clock,
            )
            try:
                yield PubSubStream(receiver, pings, server)
            finally:
                receiver.stop()
        finally:
            connection.disconnect()  # type: ignore[no-untyped-call]


class PubSubStream:
    """One connection that is subscribed to both patterns."""

    def __init__(self, receiver: Receiver, pings: Pings, server: ServerInfo) -> None:
        self._receiver = receiver
        self._pings = pings
        self._parser = hiredis.Reader()
        self._messages: list[Message] = []
        self._captured_until: int | None = None
        self._acknowledged: set[bytes] = set()
        self._attached_at: int | None = None
        self._finished = False
        while self._attached_at is None:
            if chunk := receiver.next_chunk(1.0):
                self._parse(*chunk)
        self.attachment = Attachment(
            mode="subscribe",
            captured_from=self._attached_at,
            server_run_id=server.run_id,
            server_started_at=server.started_at,
        )

    def batches(self, stop: threading.Event) -> Iterator[Batch]:
        """Yield what arrives; after `stop`, all that was read and a last tick."""
        deadline = None
        while not self._finished and (deadline is None or time.monotonic() < deadline):
            if deadline is None and stop.is_set():
                self._pings.request_final()
                deadline = time.monotonic() + stop_seconds
            yield from self._gather()
        self._receiver.stop()
        while self._receiver.queued_bytes:
            yield from self._gather()

    def _gather(self) -> Iterator[Batch]:
        """At most one batch, and then what ended the connection after it."""
        lost = None
        try:
            self._fill()
        except SourceLost as error:
            lost = error
        if self._messages or self._captured_until is not None:
            batch = Batch(self._messages, self._captured_until)
            self._messages, self._captured_until = [], None
            yield batch
        if lost:
            raise lost

    def _fill(self) -> None:
        """Take chunks until the batch is full, old enough, or has a tick."""
        wait_seconds, deadline = batch_seconds, None
        while wait_seconds > 0:
            self._receiver.yield_to_receiver()
            if chunk := self._receiver.next_chunk(wait_seconds):
                self._parse(*chunk)
            if self._captured_until is not None or len(self._messages) >= batch_messages:
                return
            if not self._messages:
                return
            deadline = deadline or time.monotonic() + batch_seconds
            wait_seconds = deadline - time.monotonic()

    def _parse(self, received_at: int, chunk: bytes) -> None:
        parser, gets, append = self._parser, self._parser.gets, self._messages.append
        size = len(chunk)
        try:
            for offset in range(0, size, PARSER_CHUNK_BYTES):
                parser.feed(chunk, offset, min(PARSER_CHUNK_BYTES, size - offset))
                # hiredis answers False for "not yet whole"; nothing that RESP2 says becomes that.
                while (reply := gets()) is not False:
                    if type(reply) is list and len(reply) == 4 and reply[0] == b"pmessage":
                        if len(reply[2]) + len(reply[3]) <= MAX_MESSAGE_BYTES:
                            append((received_at, UNKNOWN_DATABASE, reply[2], reply[3]))
                    else:
                        self._answer(received_at, reply)
        except hiredis.ProtocolError:
            raise SourceLost("disconnected", "what Redis sent is not its protocol") from None

    def _answer(self, received_at: int, reply: object) -> None:
        """Handle what is no message. Anything unexpected ends the subscription at once."""
        match reply:
            case [b"pong", bytes(token)] if ping := self._pings.match_reply(token):
                self._receiver.clear_overflow(ping.number)
                self._captured_until = ping.sent_at
                self._finished = ping.is_final
            case [b"psubscribe", bytes(pattern), int()] if pattern not in self._acknowledged:
                self._acknowledged.add(pattern)
                if self._acknowledged.issuperset(CHANNEL_PATTERNS):
                    self._attached_at = received_at
            case [b"psubscribe" | b"punsubscribe", *_]:
                # Something between us and Redis connected anew, and what was published meanwhile
                # is lost.
                raise SourceLost("resubscribed", "the subscription was begun anew, not by us")
            case hiredis.ReplyError():
                raise SourceLost(
                    "redis_unreachable",
                    f"Redis refuses the subscription: {reply}",
                    # Redis compares a pattern with the allowed ones as texts: turn/* allows none.
                    "give this user the commands psubscribe and ping and the channels "
                    + " ".join(pattern.decode() for pattern in CHANNEL_PATTERNS),
                )
            case _:
                raise SourceLost("disconnected", "Redis answered what was not asked")
