"""Following: one connection over which a replication stream comes, batch after batch.

Owns what the stream's offsets prove, and the times of what was missed: messages that came to be
before we were there are held until the end of what was missed is known. Must not begin a stream
(that is the handshake's) or store anything.
"""

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from threading import Event

from accounting.capture.redis.receiver import Receiver
from accounting.capture.replication.backlog_times import OffsetTime, estimate_times
from accounting.capture.replication.handshake import MAX_SILENCE_SECONDS, feed_reply
from accounting.capture.replication.offset_poller import OffsetPoller
from accounting.capture.replication.protocol import CommandStream, PsyncReply, StreamError
from accounting.capture.replication.replica_acks import ReplicaAcks
from accounting.capture.source import Attachment, Batch, SourceLost
from accounting.capture.spool.records import Message, ResumePoint

# What is stored at once at most, and how long a message waits for company, as with a subscription.
batch_messages = 10_000
batch_seconds = 0.05

# How long a stop waits until the stream has come as far as the server had when it was asked.
stop_seconds = 3.0

# Missed messages are held until the end of what was missed is there, since only then their times
# can be told by coturn's keepalives. Of more than this the times go with the bytes alone.
MAX_BUFFERED_BYTES = 64 << 20

# What comes after a snapshot that took no longer has the time when it came.
PROMPT_SNAPSHOT = 1_000_000


class ReplicationStream:
    """One connection over which a stream comes."""

    def __init__(
        self,
        receiver: Receiver,
        acks: ReplicaAcks,
        ticker: OffsetPoller,
        opening: PsyncReply,
        attachment: Attachment,
        *,
        missed_from: OffsetTime,
        first: tuple[int, bytes],
        silence_seconds: float,
        clock: Callable[[], int],
    ) -> None:
        assert attachment.resume_point is not None
        self.attachment = attachment
        self._receiver = receiver
        self._acks = acks
        self._ticker = ticker
        self._opening = opening
        self._silence_seconds = silence_seconds
        self._clock = clock
        self._replication_id = attachment.resume_point.replication_id
        self._stream = CommandStream(
            attachment.resume_point.offset, attachment.resume_point.database
        )
        self._messages: list[Message] = []
        self._positions: list[int] = []
        self._ticks: deque[OffsetTime] = deque()
        self._captured_until: int | None = None
        # What was missed lies between these two; the second is asked for when the stream begins.
        # Until its end is there, messages are held.
        self._missed_from: OffsetTime | None = missed_from
        self._missed_to: OffsetTime | None = None
        self._held_from = missed_from.offset
        self._is_held = True
        self._estimated = 0
        self._began_at: int | None = None
        self._finish_after: int | None = None
        self._finished = False
        self._moved_at = time.monotonic()
        if opening.is_complete:
            self._begin_stream()
            self._take(*first)

    def batches(self, stop: Event) -> Iterator[Batch]:
        """Yield what arrives; after `stop`, all that was read and a last tick."""
        deadline = None
        while not self._finished and (deadline is None or time.monotonic() < deadline):
            if deadline is None and stop.is_set():
                self._finish_at_next_tick()
                deadline = time.monotonic() + stop_seconds
            yield from self._gather()
        self._receiver.stop()
        while self._receiver.queued_bytes:
            yield from self._gather()

    def _finish_at_next_tick(self) -> None:
        self._finish_after = self._clock()
        self._ticker.poll_now()

    def _gather(self) -> Iterator[Batch]:
        """At most one batch, and then what ended the connection after it."""
        lost = None
        try:
            self._fill()
        except SourceLost as error:
            lost = error
        if (self._messages and not self._is_held) or self._captured_until is not None:
            batch = Batch(
                self._messages,
                self._captured_until,
                self._positions,
                ResumePoint(
                    replication_id=self._replication_id,
                    offset=self._stream.offset,
                    database=self._stream.database,
                ),
                self._estimated,
            )
            self._messages, self._positions, self._captured_until = [], [], None
            self._estimated = 0
            self._stream.keepalives.clear()
            self._is_held = self._missed_from is not None
            yield batch
            # Asked for the next one, whoever took this one has stored it.
            self._acks.durable_offset = self._stream.offset
        if lost:
            raise lost

    def _fill(self) -> None:
        """Take chunks until the batch is full, old enough, or has a tick."""
        wait_seconds, deadline = batch_seconds, None
        while wait_seconds > 0:
            self._receiver.yield_to_receiver()
            if chunk := self._receiver.next_chunk(wait_seconds):
                self._take(*chunk)
            self._tick()
            if self._captured_until is not None or len(self._messages) >= batch_messages:
                return
            if not self._messages:
                return
            deadline = deadline or time.monotonic() + batch_seconds
            wait_seconds = deadline - time.monotonic()

    def _take(self, received_at: int, data: bytes) -> None:
        self._moved_at = time.monotonic()
        if not self._opening.is_complete:
            data = feed_reply(self._opening, data)
            if not self._opening.is_complete:
                return
            self._begin_stream()
        try:
            self._stream.feed(received_at, data, self._messages, self._positions)
        except StreamError as error:
            raise SourceLost("disconnected", str(error)) from None
        if self._stream.ack_requested:
            self._stream.ack_requested, self._acks.is_requested = False, True

    def _begin_stream(self) -> None:
        self._began_at = self._clock()
        self._acks.durable_offset = self._stream.offset
        self._acks.start()
        self._ticker.poll_now()

    def _tick(self) -> None:
        """Find out how far what came proves that everything came."""
        for moment in self._ticker.drain():
            self._ticks.append(moment)
            began_at, ended = self._began_at, self._missed_to is not None
            if not ended and began_at is not None and moment.at >= began_at:
                self._missed_to = moment
        if self._began_at is not None and self._missed_to is None:
            # A clock that was set back is followed, or messages were held until it had caught up.
            self._began_at = min(self._began_at, self._clock())
        if self._missed_from is not None:
            self._time_missed(self._missed_from)
        while not self._is_held and self._ticks and self._ticks[0].offset <= self._stream.offset:
            self._captured_until = self._ticks.popleft().at
            if self._finish_after is not None and self._captured_until >= self._finish_after:
                self._finished = True
        now = time.monotonic()
        if self._opening.is_complete and not self._ticks:
            self._moved_at = now
        patience = self._silence_seconds if self._opening.is_complete else MAX_SILENCE_SECONDS
        if now - self._moved_at > patience:
            raise SourceLost(
                "disconnected", f"the stream stands still for {patience:g} s, and Redis goes on"
            )

    def _time_missed(self, begin: OffsetTime) -> None:
        """Give the messages that were missed their times, once all of them are here."""
        end, stream = self._missed_to, self._stream
        if end is None:
            return
        if not self.attachment.continued and end.at - begin.at < PROMPT_SNAPSHOT:
            # Nothing waited long enough to be called missed.
            self._missed_from, self._is_held = None, False
            return
        if stream.offset >= end.offset:
            count, beats = bisect_right(self._positions, end.offset), stream.keepalives
            self._missed_from = None
        elif stream.offset - self._held_from > MAX_BUFFERED_BYTES:
            count, beats = len(self._positions), []
            self._held_from = stream.offset
        else:
            return
        times = estimate_times(self._positions[:count], beats, begin, end)
        missed = zip(times, self._messages[:count], strict=True)
        self._messages[:count] = [(at, *message[1:]) for at, message in missed]
        self._estimated = count
        self._is_held = False
