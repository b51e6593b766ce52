"""The replication source: PSYNC, as a replica does, and of all that it shows only coturn's events.

Owns the stream from the handshake to its end, and what its offsets prove. Must not store anything
or try again: that is the collector's. As long as the server's backlog reaches back to the place
that is stored, a stream goes on right there, and no end of one is a gap.

The server counts us among its replicas: INFO shows us, WAIT and `min-replicas-to-write` count us.
"""

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event

from redis.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from accounting.capture import psync
from accounting.capture.address import Sentinels, address
from accounting.capture.connection import ServerState, ask, connect, lost, socket_of, tell
from accounting.capture.psync import CommandStream, Continued, Opening, Resynced, StreamError
from accounting.capture.receiver import Receiver
from accounting.capture.records import Message, Resume, SpoolState
from accounting.capture.replay import Moment, replayed_times
from accounting.capture.source import Attachment, Batch, Refused, SourceLost, Unanswered
from accounting.capture.ticker import Ticker

# What is stored at once at most, and how long a message waits for company, as with a subscription.
batch_messages = 10_000
batch_seconds = 0.05

# How long a stop waits until the stream has come as far as the server had when it was asked.
stop_seconds = 3.0

# Redis wants to hear from a replica within `repl-timeout`, 60 s by default. It starts the stream at
# the first word after it has put the replica online, so at the beginning it hears more of us.
ack_seconds = 1.0
first_ack_seconds = 0.1
first_acks = 20

# Redis itself sends a newline a second while it makes a snapshot, and PING every ten seconds later.
longest_silence_seconds = 60.0

# Missed messages are held until the end of what was missed is there, since only then their times
# can be told by coturn's keepalives. Of more than this the times go with the bytes alone.
largest_replay_bytes = 64 << 20

# What comes after a snapshot that took no longer has the time when it came.
prompt_snapshot_microseconds = 1_000_000

# What an error means that isn't for ever: the server is starting, or has no master itself.
passing_errors = ("LOADING", "NOMASTERLINK", "MASTERDOWN", "BUSY", "TRYAGAIN")

advice_on_rights = (
    "give this user the commands psync, replconf, ping and info,"
    " or set ACCOUNTING_CAPTURE=subscribe"
)


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
    def attach(self, state: SpoolState, stop: Event, /) -> Iterator["Following"]:
        """Connect and ask for the stream; raises SourceLost, or Refused, when that fails."""
        place = self._address.locate()
        asking = place.prepare(timeout_seconds=self._silence_seconds)
        following = place.prepare()
        try:
            connect(asking)
            server = self._check(asking)
            connect(following)
            if self._check(following).run != server.run:
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

    def _check(self, connection: AbstractConnection) -> ServerState:
        """What the server tells of itself. Raises Refused where there is no stream to be had."""
        try:
            server = tell(connection, self._clock)
        except ResponseError as error:
            raise refusal(str(error)) from None
        except (RedisError, OSError) as error:
            raise lost(error) from None
        if server.is_cluster:
            raise Refused(
                "redis_unreachable",
                "a Redis in cluster mode does not replicate what is published",
                "set ACCOUNTING_CAPTURE=subscribe, or give coturn a Redis that is no cluster",
            )
        if server.role != "master":
            if isinstance(self._address, Sentinels):
                # In the midst of a failover; they will name the master soon.
                raise SourceLost(
                    "redis_unreachable", "the sentinels name a server that is no master"
                )
            raise Refused(
                "redis_unreachable",
                "this Redis is a replica: what coturn publishes is in the stream of its master",
                "set ACCOUNTING_REDIS_URL to the master, or to the sentinels that know it",
            )
        return server


def request(resume: Resume | None) -> bytes:
    """PSYNC for what follows that place, or for a beginning."""
    name, offset = ("?", -1) if resume is None else (resume.replication_id, resume.offset + 1)
    words = [b"PSYNC", name.encode(), b"%d" % offset]
    return b"*3\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def introduce(connection: AbstractConnection) -> None:
    """Say what we can do. Raises Refused where a replica is not welcome."""
    try:
        ask(connection, "REPLCONF", "listening-port", "0")
        ask(connection, "REPLCONF", "capa", "eof", "capa", "psync2")
        with suppress(ResponseError):  # before Redis 7: the snapshot comes with the data, then
            ask(connection, "REPLCONF", "rdb-filter-only", "")
    except ResponseError as error:
        raise refusal(str(error)) from None
    except (RedisError, OSError) as error:
        raise lost(error) from None


def refusal(text: str) -> SourceLost:
    """What an error of the server means: try again, or not."""
    if text.startswith(passing_errors):
        return SourceLost("redis_unreachable", f"Redis is not ready: {text}")
    return Refused("redis_unreachable", f"Redis refuses replication: {text}", advice_on_rights)


def await_answer(receiver: Receiver, opening: Opening, stop: Event) -> tuple[int, bytes]:
    """When the answer to PSYNC came, and what came with it of the stream.

    Before a snapshot a server may wait for other replicas that want one, 5 s by default.
    """
    heard_at = time.monotonic()
    while not stop.is_set():
        if time.monotonic() - heard_at > longest_silence_seconds:
            raise Unanswered("redis_unreachable", "no answer to PSYNC, and not a byte")
        try:
            chunk = receiver.take(0.1)
        except SourceLost as lost:
            raise Unanswered(lost.cause, f"no answer to PSYNC: {lost}") from None
        if chunk:
            heard_at = time.monotonic()
            received_at, data = chunk
            rest = taken(opening, data)
            if opening.answer is not None:
                return received_at, rest
    raise SourceLost("disconnected", "stopped before Redis had answered")


def taken(opening: Opening, data: bytes) -> bytes:
    """Feed the opening; what is no protocol is a lost connection."""
    try:
        return opening.feed(data)
    except StreamError as error:
        raise SourceLost("disconnected", str(error)) from None


def judge(
    opening: Opening, asked: Resume | None, server: ServerState, answered_at: int
) -> Attachment:
    """Where the stream begins, by the answer to PSYNC."""
    continued = False
    match opening.answer:
        case Continued(name) if asked is not None:
            continued = True
            resume = Resume(
                replication_id=name or asked.replication_id,
                offset=asked.offset,
                database=asked.database,
            )
        case Resynced(name, offset):
            resume = Resume(replication_id=name, offset=offset, database=None)
        case psync.Refused(text):
            raise refusal(text)
        case _:
            raise SourceLost("disconnected", "Redis goes on where nobody was")
    return Attachment(
        mode="replication",
        at=answered_at,
        server_run=server.run,
        server_began_at=server.began_at,
        resume=resume,
        continued=continued,
    )


def last_moment(state: SpoolState, attachment: Attachment) -> Moment:
    """The last time of which the offset is known, before what the attachment brings."""
    assert attachment.resume is not None
    if attachment.continued:
        at = max(state.captured_until or 0, state.last_received_at)
    else:
        at = attachment.at
    return Moment(at, attachment.resume.offset)


class Following:
    """One connection over which a stream comes."""

    def __init__(
        self,
        receiver: Receiver,
        acks: Acks,
        ticker: Ticker,
        opening: Opening,
        attachment: Attachment,
        *,
        missed_from: Moment,
        first: tuple[int, bytes],
        silence_seconds: float,
        clock: Callable[[], int],
    ) -> None:
        assert attachment.resume is not None
        self.attachment = attachment
        self._receiver = receiver
        self._acks = acks
        self._ticker = ticker
        self._opening = opening
        self._silence_seconds = silence_seconds
        self._clock = clock
        self._replication_id = attachment.resume.replication_id
        self._stream = CommandStream(attachment.resume.offset, attachment.resume.database)
        self._messages: list[Message] = []
        self._positions: list[int] = []
        self._ticks: deque[Moment] = deque()
        self._captured_until: int | None = None
        # What was missed lies between these two; the second is asked for when the stream begins.
        # Until its end is there, messages are held.
        self._missed_from: Moment | None = missed_from
        self._missed_to: Moment | None = None
        self._held_from = missed_from.offset
        self._is_held = True
        self._estimated = 0
        self._began_at: int | None = None
        self._finish_after: int | None = None
        self._finished = False
        self._moved_at = time.monotonic()
        if opening.is_over:
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
        self._receiver.halt()
        while self._receiver.queued_bytes:
            yield from self._gather()

    def _finish_at_next_tick(self) -> None:
        self._finish_after = self._clock()
        self._ticker.ask_now()

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
                Resume(
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
            self._acks.durable = self._stream.offset
        if lost:
            raise lost

    def _fill(self) -> None:
        """Take chunks until the batch is full, old enough, or has a tick."""
        wait_seconds, deadline = batch_seconds, None
        while wait_seconds > 0:
            self._receiver.stand_aside()
            if chunk := self._receiver.take(wait_seconds):
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
        if not self._opening.is_over:
            data = taken(self._opening, data)
            if not self._opening.is_over:
                return
            self._begin_stream()
        try:
            self._stream.feed(received_at, data, self._messages, self._positions)
        except StreamError as error:
            raise SourceLost("disconnected", str(error)) from None
        if self._stream.is_asked_for_ack:
            self._stream.is_asked_for_ack, self._acks.is_wanted = False, True

    def _begin_stream(self) -> None:
        self._began_at = self._clock()
        self._acks.durable = self._stream.offset
        self._acks.begin()
        self._ticker.ask_now()

    def _tick(self) -> None:
        """Find out how far what came proves that everything came."""
        for moment in self._ticker.moments():
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
        if self._opening.is_over and not self._ticks:
            self._moved_at = now
        patience = self._silence_seconds if self._opening.is_over else longest_silence_seconds
        if now - self._moved_at > patience:
            raise SourceLost(
                "disconnected", f"the stream stands still for {patience:g} s, and Redis goes on"
            )

    def _time_missed(self, begin: Moment) -> None:
        """Give the messages that were missed their times, once all of them are here."""
        end, stream = self._missed_to, self._stream
        if end is None:
            return
        if not self.attachment.continued and end.at - begin.at < prompt_snapshot_microseconds:
            # Nothing waited long enough to be called missed.
            self._missed_from, self._is_held = None, False
            return
        if stream.offset >= end.offset:
            count, beats = bisect_right(self._positions, end.offset), stream.keepalives
            self._missed_from = None
        elif stream.offset - self._held_from > largest_replay_bytes:
            count, beats = len(self._positions), []
            self._held_from = stream.offset
        else:
            return
        times = replayed_times(self._positions[:count], beats, begin, end)
        missed = zip(times, self._messages[:count], strict=True)
        self._messages[:count] = [(at, *message[1:]) for at, message in missed]
        self._estimated = count
        self._is_held = False
