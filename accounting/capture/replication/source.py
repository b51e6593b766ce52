"""The replication source: PSYNC, as a replica does, and of all that it shows only coturn's events.

Owns a connection from its beginning to its end; `handshake` begins the stream on it, `following`
reads it, `acks` speaks meanwhile. Must not store anything or try again: that is the collector's. As
long as the server's backlog reaches back to the place that is stored, a stream goes on right there,
and no end of one is a gap.

The server counts us among its replicas: INFO shows us, WAIT and `min-replicas-to-write` count us.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event

from accounting.capture.offset_poller import Ticker
from accounting.capture.redis.address import Sentinels, address
from accounting.capture.redis.connection import connect, socket_of
from accounting.capture.redis.receiver import Receiver
from accounting.capture.replication.handshake import (
    await_answer,
    check,
    introduce,
    judge,
    last_moment,
    longest_silence_seconds,
    request,
)
from accounting.capture.replication.protocol import Opening
from accounting.capture.replication.replica_acks import Acks
from accounting.capture.replication.stream import Following
from accounting.capture.source import SourceLost
from accounting.capture.spool.records import SpoolState


class Replication:
    """Follows the master at `url`, over and over.

    Between the socket and the spool lie at most `queue_bytes`. A stream that stands still for
    `silence_seconds` while the server's goes on is given up. Raises ConfigurationError for a URL
    that redis-py refuses.
    """

    def __init__(
        self,
        url: str,
        *,
        queue_bytes: int,
        clock: Callable[[], int],
        tick_seconds: float = 1.0,
        silence_seconds: float = 10.0,
    ) -> None:
        self._address = address(url)
        self._queue_bytes = queue_bytes
        self._clock = clock
        self._tick_seconds = tick_seconds
        self._silence_seconds = silence_seconds

    @contextmanager
    def attach(self, state: SpoolState, stop: Event, /) -> Iterator[Following]:
        """Connect and ask for the stream; raises SourceLost, or Refused, when that fails."""
        place = self._address.locate()
        by_sentinels = isinstance(self._address, Sentinels)
        asking = place.prepare(timeout_seconds=self._silence_seconds)
        following = place.prepare()
        try:
            connect(asking)
            server = check(asking, self._clock, by_sentinels=by_sentinels)
            connect(following)
            if check(following, self._clock, by_sentinels=by_sentinels).run != server.run:
                raise SourceLost("disconnected", "two connections came to two servers")
            introduce(following)
            opening = Opening()
            acks = Acks()
            resume = state.resume
            sock = socket_of(following)
            try:
                sock.sendall(request(resume))
            except OSError as error:
                raise SourceLost("disconnected", error.strerror or str(error)) from None
            receiver = Receiver(
                sock,
                speaker=acks,
                queue_bytes=self._queue_bytes,
                silence_seconds=max(longest_silence_seconds, self._silence_seconds),
                clock=self._clock,
            )
            try:
                answered_at, rest = await_answer(receiver, opening, stop)
                attachment = judge(opening, resume, server, answered_at)
                ticker = Ticker(
                    asking,
                    server_run=server.run,
                    tick_seconds=self._tick_seconds,
                    clock=self._clock,
                )
                try:
                    yield Following(
                        receiver,
                        acks,
                        ticker,
                        opening,
                        attachment,
                        missed_from=last_moment(state, attachment),
                        first=(answered_at, rest),
                        silence_seconds=self._silence_seconds,
                        clock=self._clock,
                    )
                finally:
                    ticker.halt()
            finally:
                receiver.halt()
        finally:
            asking.disconnect()  # type: ignore[no-untyped-call]
            following.disconnect()  # type: ignore[no-untyped-call]
