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

from accounting.capture.redis.address import SentinelAddress, parse_address
from accounting.capture.redis.connection import connect, take_socket
from accounting.capture.redis.receiver import Receiver
from accounting.capture.replication.handshake import (
    MAX_SILENCE_SECONDS,
    await_psync_reply,
    check_is_master,
    last_known_offset,
    make_attachment,
    psync_command,
    send_replconf,
)
from accounting.capture.replication.offset_poller import OffsetPoller
from accounting.capture.replication.protocol import PsyncReply
from accounting.capture.replication.replica_acks import ReplicaAcks
from accounting.capture.replication.stream import ReplicationStream
from accounting.capture.source import SourceLost
from accounting.capture.spool.records import SpoolState


class ReplicationSource:
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
        checkpoint_seconds: float = 1.0,
        silence_seconds: float = 10.0,
    ) -> None:
        self._address = parse_address(url)
        self._queue_bytes = queue_bytes
        self._clock = clock
        self._tick_seconds = checkpoint_seconds
        self._silence_seconds = silence_seconds

    @contextmanager
    def attach(self, state: SpoolState, stop: Event, /) -> Iterator[ReplicationStream]:
        """Connect and ask for the stream; raises SourceLost, or Refused, when that fails."""
        place = self._address.resolve()
        by_sentinels = isinstance(self._address, SentinelAddress)
        asking = place.new_connection(timeout_seconds=self._silence_seconds)
        following = place.new_connection()
        try:
            connect(asking)
            server = check_is_master(asking, self._clock, by_sentinels=by_sentinels)
            connect(following)
            if (
                check_is_master(following, self._clock, by_sentinels=by_sentinels).run_id
                != server.run_id
            ):
                raise SourceLost("disconnected", "two connections came to two servers")
            send_replconf(following)
            opening = PsyncReply()
            acks = ReplicaAcks()
            resume = state.resume_point
            sock = take_socket(following)
            try:
                sock.sendall(psync_command(resume))
            except OSError as error:
                raise SourceLost("disconnected", error.strerror or str(error)) from None
            receiver = Receiver(
                sock,
                outgoing=acks,
                queue_bytes=self._queue_bytes,
                silence_seconds=max(MAX_SILENCE_SECONDS, self._silence_seconds),
                clock=self._clock,
            )
            try:
                answered_at, rest = await_psync_reply(receiver, opening, stop)
                attachment = make_attachment(opening, resume, server, answered_at)
                ticker = OffsetPoller(
                    asking,
                    server_run_id=server.run_id,
                    poll_seconds=self._tick_seconds,
                    clock=self._clock,
                )
                try:
                    yield ReplicationStream(
                        receiver,
                        acks,
                        ticker,
                        opening,
                        attachment,
                        missed_from=last_known_offset(state, attachment),
                        first=(answered_at, rest),
                        silence_seconds=self._silence_seconds,
                        clock=self._clock,
                    )
                finally:
                    ticker.stop()
            finally:
                receiver.stop()
        finally:
            asking.disconnect()  # type: ignore[no-untyped-call]
            following.disconnect()  # type: ignore[no-untyped-call]
