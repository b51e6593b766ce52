"""One replication stream: yields batches, derives checkpoints, times messages from the backlog.

A checkpoint: the server's offset at some time was X, and the stream has come to X. Messages that
were published before the stream began are buffered until the end of the backlog is known, since
only then their times can be estimated.
"""

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from threading import Event
from typing import Final

from accounting.capture.redis.arguments import StreamError
from accounting.capture.redis.batching import BatchingStream
from accounting.capture.redis.receiver import Receiver
from accounting.capture.replication.backlog_times import OffsetTime, estimate_times
from accounting.capture.replication.handshake import MAX_SILENCE_SECONDS, feed_reply
from accounting.capture.replication.offset_poller import OffsetPoller
from accounting.capture.replication.protocol import MAX_KEEPALIVES, CommandStream, PsyncReply
from accounting.capture.replication.replica_acks import ReplicaAcks
from accounting.capture.source import Attachment, Batch, SourceLost
from accounting.capture.spool.records import ResumePoint

MAX_BUFFERED_BYTES: Final = 64 << 20
MAX_BUFFERED_MESSAGES: Final = 200_000
"""Times of a larger backlog are estimated in parts, by the bytes alone and without keepalives."""

MAX_SERVER_OFFSETS: Final = 10_000
"""Polled offsets that the stream has not reached: hours of them."""

PROMPT_SNAPSHOT_MICROSECONDS: Final = 1_000_000
"""After a snapshot that took no longer than this, messages keep their times of receipt."""


class ReplicationStream(BatchingStream):
    """One connection to a master. The poller must poll the same server."""

    def __init__(
        self,
        receiver: Receiver,
        acks: ReplicaAcks,
        poller: OffsetPoller,
        reply: PsyncReply,
        attachment: Attachment,
        *,
        backlog_from: OffsetTime,
        first_chunk: tuple[int, bytes],
        silence_seconds: float,
        clock: Callable[[], int],
    ) -> None:
        super().__init__(receiver)
        assert attachment.resume_point is not None
        self.attachment = attachment
        self._acks = acks
        self._poller = poller
        self._reply = reply
        self._silence_seconds = silence_seconds
        self._clock = clock
        self._replication_id = attachment.resume_point.replication_id
        self._stream = CommandStream(
            attachment.resume_point.offset, attachment.resume_point.database
        )
        self._positions: list[int] = []
        self._server_offsets: deque[OffsetTime] = deque()
        # The backlog lies between these two. The second is polled for when the stream begins; both
        # are None when the backlog is done.
        self._backlog_from: OffsetTime | None = backlog_from
        self._backlog_to: OffsetTime | None = None
        self._buffered_from = backlog_from.offset
        self._is_buffering = True
        self._estimated_count = 0
        self._stream_began_at: int | None = None
        self._final_checkpoint_after: int | None = None
        self._last_progress_at = time.monotonic()
        if reply.is_complete:
            self._on_stream_begin()
            self._parse(*first_chunk)

    def batches(self, stop: Event) -> Iterator[Batch]:
        for batch in super().batches(stop):
            yield batch
            # The collector asks for the next batch only after it has stored this one.
            self._acknowledge()

    def _request_final_checkpoint(self) -> None:
        self._final_checkpoint_after = self._clock()
        self._poller.poll_now()

    def _take_batch(self) -> Batch | None:
        if (self._is_buffering or not self._messages) and self._captured_until is None:
            return None
        batch = Batch(
            self._messages,
            self._captured_until,
            self._positions,
            ResumePoint(
                replication_id=self._replication_id,
                offset=self._stream.offset,
                database=self._stream.database,
            ),
            self._estimated_count,
        )
        self._messages, self._positions, self._captured_until = [], [], None
        self._estimated_count = 0
        self._stream.keepalives.clear()
        self._is_buffering = self._backlog_from is not None
        return batch

    def _process(self, chunk: tuple[int, bytes] | None) -> None:
        if chunk is not None:
            self._parse(*chunk)
        self._update_backlog()
        self._advance_checkpoint()
        self._acknowledge()
        self._check_progress()

    def _parse(self, received_at: int, data: bytes) -> None:
        self._last_progress_at = time.monotonic()
        if not self._reply.is_complete:
            data = feed_reply(self._reply, data)
            if not self._reply.is_complete:
                return
            self._on_stream_begin()
        try:
            self._stream.feed(received_at, data, self._messages, self._positions)
        except StreamError as error:
            raise SourceLost("disconnected", str(error)) from None

    def _on_stream_begin(self) -> None:
        self._stream_began_at = self._clock()
        self._acks.durable_offset = self._stream.offset
        self._acks.start()
        self._poller.poll_now()

    def _acknowledge(self) -> None:
        """Let the master know how far everything is stored, soon when it has asked for that."""
        if self._messages or not self._reply.is_complete:
            return
        shutting_down = self._poller.server_is_shutting_down
        is_urgent = self._stream.ack_requested or (
            shutting_down and not self._acks.server_is_shutting_down
        )
        self._stream.ack_requested = False
        # The receiver's thread reads these: the request last.
        self._acks.server_is_shutting_down = shutting_down
        self._acks.durable_offset = self._stream.offset
        if is_urgent:
            self._acks.is_requested = True

    def _update_backlog(self) -> None:
        """Find the end of the backlog in the server's offsets, and estimate times up to it."""
        for offset_time in self._poller.drain():
            if len(self._server_offsets) >= MAX_SERVER_OFFSETS:
                self._server_offsets.pop()
            self._server_offsets.append(offset_time)
            began_at = self._stream_began_at
            if self._backlog_to is None and began_at is not None and offset_time.at >= began_at:
                self._backlog_to = offset_time
        if self._stream_began_at is not None and self._backlog_to is None:
            # After the clock was set back, buffering must not last until it has caught up.
            self._stream_began_at = min(self._stream_began_at, self._clock())
        if self._backlog_from is None:
            self._stream.keepalives.clear()
        elif self._backlog_to is not None:
            self._estimate_times(self._backlog_from, self._backlog_to)
        elif self._is_buffer_full():
            # The poll is not answered yet. What is here was published before now.
            now = OffsetTime(self._clock(), self._stream.offset + 1)
            self._estimate_times(self._backlog_from, now)

    def _estimate_times(self, begin: OffsetTime, end: OffsetTime) -> None:
        """Replace the times of receipt of messages from the backlog, once all of them are here."""
        stream = self._stream
        if not self.attachment.continued and end.at - begin.at < PROMPT_SNAPSHOT_MICROSECONDS:
            self._backlog_from, self._is_buffering = None, False
            return
        if stream.offset >= end.offset:
            count, keepalives = bisect_right(self._positions, end.offset), stream.keepalives
            if len(keepalives) >= MAX_KEEPALIVES:
                keepalives = []
            self._backlog_from = None
        elif self._is_buffer_full():
            count, keepalives = len(self._positions), []
            self._buffered_from = stream.offset
        else:
            return
        times = estimate_times(self._positions[:count], keepalives, begin, end)
        backlog = zip(times, self._messages[:count], strict=True)
        self._messages[:count] = [(at, *message[1:]) for at, message in backlog]
        self._estimated_count = count
        self._is_buffering = False

    def _is_buffer_full(self) -> bool:
        return (
            len(self._messages) >= MAX_BUFFERED_MESSAGES
            or self._stream.offset - self._buffered_from > MAX_BUFFERED_BYTES
        )

    def _advance_checkpoint(self) -> None:
        """Take the server's offsets that the stream has reached."""
        while (
            not self._is_buffering
            and self._server_offsets
            and self._server_offsets[0].offset <= self._stream.offset
        ):
            self._captured_until = self._server_offsets.popleft().at
            final_after = self._final_checkpoint_after
            if final_after is not None and self._captured_until >= final_after:
                self._finished = True

    def _check_progress(self) -> None:
        """Raise SourceLost when nothing arrives although the server's offset is ahead."""
        now = time.monotonic()
        if self._reply.is_complete and not self._server_offsets:
            self._last_progress_at = now
        limit = self._silence_seconds if self._reply.is_complete else MAX_SILENCE_SECONDS
        if now - self._last_progress_at > limit:
            raise SourceLost(
                "disconnected", f"the stream stands still for {limit:g} s although Redis has more"
            )
