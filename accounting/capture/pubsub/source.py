"""The source that subscribes: PSUBSCRIBE to the channels of coturn."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from typing import Final

from accounting.capture.pubsub.pings import Pings
from accounting.capture.pubsub.protocol import (
    CHANNEL_PATTERNS,
    ErrorReply,
    Reply,
    SubscriptionParser,
)
from accounting.capture.redis.address import Address, StaticAddress, parse_address
from accounting.capture.redis.arguments import StreamError
from accounting.capture.redis.batching import BatchingStream
from accounting.capture.redis.connection import (
    ServerInfo,
    connect,
    send_and_take_socket,
    try_read_server_info,
)
from accounting.capture.redis.receiver import Receiver
from accounting.capture.redis.server_watch import ServerWatch
from accounting.capture.source import Attachment, Batch, SourceLost
from accounting.capture.spool.records import SpoolState
from accounting.domain.server_identity import ServerIdentity, is_other_history

PSUBSCRIBE_COMMAND: Final = b"*3\r\n$10\r\nPSUBSCRIBE\r\n" + b"".join(
    b"$%d\r\n%b\r\n" % (len(pattern), pattern) for pattern in CHANNEL_PATTERNS
)


SUBSCRIBE_TIMEOUT_SECONDS: Final = 60.0
"""A server that sends other replies all the time must confirm within this."""


class PubSubSource:
    """Subscribes to the Redis at ``url``, at each ``attach``.

    At most ``queue_bytes`` wait between the socket and the spool. A connection that sends nothing
    for ``silence_seconds`` after a PING counts as lost. Raises ConfigurationError for a malformed
    URL.
    """

    def __init__(
        self,
        url: str | Address,
        *,
        queue_bytes: int,
        clock: Callable[[], int],
        checkpoint_seconds: float = 1.0,
        silence_seconds: float = 10.0,
    ) -> None:
        self._address = parse_address(url) if isinstance(url, str) else url
        self._queue_bytes = queue_bytes
        self._clock = clock
        self._checkpoint_seconds = checkpoint_seconds
        self._silence_seconds = silence_seconds

    @contextmanager
    def attach(self, _state: SpoolState, _stop: Event, /) -> Iterator["PubSubStream"]:
        """Connect and subscribe. Raises SourceLost when that fails."""
        endpoint = self._address.resolve()
        connection = endpoint.new_connection()
        try:
            connect(connection)
            server = try_read_server_info(connection, self._clock)
            sock = send_and_take_socket(connection, PSUBSCRIBE_COMMAND)
            pings = Pings(ping_seconds=self._checkpoint_seconds, clock=self._clock)
            receiver = Receiver(
                sock,
                outgoing=pings,
                queue_bytes=self._queue_bytes,
                silence_seconds=self._silence_seconds,
                clock=self._clock,
            )
            watch = ServerWatch(
                StaticAddress(endpoint), poll_seconds=self._checkpoint_seconds, clock=self._clock
            )
            try:
                with watch.running():
                    yield PubSubStream(
                        receiver, pings, server, server.identity(endpoint.shown_address), watch
                    )
            finally:
                receiver.stop()
        finally:
            connection.disconnect()  # type: ignore[no-untyped-call]


class PubSubStream(BatchingStream):
    """A connection that is subscribed to both patterns. Construction waits for that.

    A subscription goes on when its server becomes the replica of another, and then has what is
    published there. ``watch`` finds that, and ends the stream.
    """

    def __init__(
        self,
        receiver: Receiver,
        pings: Pings,
        server: ServerInfo,
        identity: ServerIdentity,
        watch: ServerWatch,
    ) -> None:
        super().__init__(receiver)
        self._identity = identity
        self._watch = watch
        self._pings = pings
        self._parser = SubscriptionParser()
        self._subscribed_patterns: set[bytes] = set()
        self._subscribed_at: int | None = None
        deadline = time.monotonic() + SUBSCRIBE_TIMEOUT_SECONDS
        while self._subscribed_at is None:
            if time.monotonic() > deadline:
                raise SourceLost("disconnected", "Redis does not confirm the subscription")
            self._process(receiver.next_chunk(1.0))
        self.attachment = Attachment(
            mode="subscribe",
            captured_from=self._subscribed_at,
            server_run_id=server.run_id,
            server_started_at=server.started_at,
            server=identity,
        )

    def _request_final_checkpoint(self) -> None:
        self._pings.request_final()

    def _take_batch(self) -> Batch | None:
        if not self._messages and self._captured_until is None:
            return None
        batch = Batch(self._messages, self._captured_until)
        self._messages, self._captured_until = [], None
        return batch

    def _process(self, chunk: tuple[int, bytes] | None) -> None:
        if self._subscribed_at is not None:
            self._check_history()
        if chunk is None:
            return
        received_at, data = chunk
        try:
            replies = self._parser.feed(received_at, data, self._messages)
        except StreamError:
            raise SourceLost("disconnected", "Redis sent bytes that are not RESP") from None
        for reply in replies:
            self._handle_reply(received_at, reply)
        if self._messages and self._subscribed_at is None:
            raise SourceLost("disconnected", "Redis sent a message before the subscription")

    def _check_history(self) -> None:
        """Raise SourceLost when the server has become a replica, or begun another history."""
        watched = self._watch.latest
        if watched is None or watched.identity.run_id != self._identity.run_id:
            return
        if is_other_history(self._identity, watched.identity):
            raise SourceLost("failover", "the server began another history")

    def _handle_reply(self, received_at: int, reply: Reply) -> None:
        """Handle a reply that isn't a message. An unexpected one ends the subscription."""
        match reply:
            case [b"pong", bytes(token)] if ping := self._pings.match_reply(token):
                self._receiver.clear_overflow(ping.number)
                self._captured_until = ping.sent_at
                self._finished = ping.is_final
            case [b"psubscribe", bytes(pattern), int()] if pattern not in self._subscribed_patterns:
                self._subscribed_patterns.add(pattern)
                if self._subscribed_patterns.issuperset(CHANNEL_PATTERNS):
                    self._subscribed_at = received_at
            case [b"psubscribe" | b"punsubscribe", *_]:
                # A proxy reconnected to Redis; messages published meanwhile are lost.
                raise SourceLost("resubscribed", "a proxy renewed the subscription")
            case ErrorReply(text):
                raise SourceLost(
                    "redis_unreachable",
                    f"Redis refuses the subscription: {text}",
                    # An ACL must list the same patterns: Redis compares them as texts.
                    "give this user the commands psubscribe and ping and the channels "
                    + " ".join(pattern.decode() for pattern in CHANNEL_PATTERNS),
                )
            case _:
                raise SourceLost("disconnected", "Redis sent an unexpected reply")
