"""The source that replicates: two connections, one for the stream and one for polling INFO."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event

from redis.connection import AbstractConnection

from accounting.capture.redis.address import Address, parse_address
from accounting.capture.redis.connection import ServerInfo, connect, send_and_take_socket
from accounting.capture.redis.receiver import Receiver
from accounting.capture.replication.failover import FailoverGuard
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
    """Follows the master at ``url``, at each ``attach``.

    At most ``queue_bytes`` wait between the socket and the spool. A stream that receives nothing
    for ``silence_seconds`` while the server's offset advances counts as lost. Raises
    ConfigurationError for a malformed URL.
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
        self._failover_guard = FailoverGuard()

    @contextmanager
    def attach(self, state: SpoolState, stop: Event, /) -> Iterator[ReplicationStream]:
        """Connect and start the stream. Raises SourceLost or SourceRefused when that fails."""
        endpoint = self._address.resolve()
        by_sentinels = endpoint.by_sentinels
        poll_connection = endpoint.new_connection(timeout_seconds=self._silence_seconds)
        connection = endpoint.new_connection()
        try:
            connect(poll_connection)
            server = self._check_is_master(poll_connection, by_sentinels=by_sentinels)
            connect(connection)
            stream_server = self._check_is_master(connection, by_sentinels=by_sentinels)
            if stream_server.run_id != server.run_id:
                raise SourceLost("disconnected", "the two connections reached different servers")
            send_replconf(connection)
            resume_point = state.resume_point
            sock = send_and_take_socket(connection, psync_command(resume_point))
            acks = ReplicaAcks()
            receiver = Receiver(
                sock,
                outgoing=acks,
                queue_bytes=self._queue_bytes,
                silence_seconds=max(MAX_SILENCE_SECONDS, self._silence_seconds),
                clock=self._clock,
            )
            try:
                reply = PsyncReply()
                replied_at, stream_bytes = await_psync_reply(receiver, reply, stop)
                attachment = make_attachment(
                    reply, resume_point, server, replied_at, endpoint.shown_address
                )
                assert attachment.resume_point is not None
                poller = OffsetPoller(
                    poll_connection,
                    server_run_id=server.run_id,
                    replication_id=attachment.resume_point.replication_id,
                    failover_guard=self._failover_guard,
                    poll_seconds=self._checkpoint_seconds,
                    clock=self._clock,
                )
                try:
                    yield ReplicationStream(
                        receiver,
                        acks,
                        poller,
                        reply,
                        attachment,
                        backlog_from=last_known_offset(state, attachment),
                        first_chunk=(replied_at, stream_bytes),
                        silence_seconds=self._silence_seconds,
                        clock=self._clock,
                    )
                finally:
                    poller.stop()
            finally:
                receiver.stop()
        finally:
            poll_connection.disconnect()  # type: ignore[no-untyped-call]
            connection.disconnect()  # type: ignore[no-untyped-call]

    def _check_is_master(self, connection: AbstractConnection, *, by_sentinels: bool) -> ServerInfo:
        return check_is_master(
            connection, self._clock, self._failover_guard, by_sentinels=by_sentinels
        )
