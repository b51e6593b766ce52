"""Encode spooled messages as rows of the reports, or reject them.

``domain.coturn_messages`` parses a message, ``identities.identity_resolver`` resolves its names,
``ingest.report_queries`` packs the row. This module's loop calls them once for every message that
coturn publishes, so it creates as few objects as it can. It reads the spool, not the database.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from typing import Final, NamedTuple, NoReturn

from accounting.capture.clock import MAX_CLOCK_ERROR
from accounting.capture.spool.records import MessageOrigin, SpooledRow
from accounting.capture.spool.spool import Spool
from accounting.domain.calendar import TIME_MIN
from accounting.domain.coturn_messages import (
    MessageRejected,
    TrafficKind,
    parse_channel_prefix,
    parse_counters,
    parse_status,
    split_channel,
)
from accounting.domain.rate_limit import RateLimit
from accounting.domain.session_fold import Report
from accounting.identities.identity_resolver import Identity, IdentityResolver
from accounting.ingest.rejected_messages import RejectedMessage
from accounting.ingest.report_queries import (
    pack_header,
    pack_status,
    pack_traffic,
    without_client_address,
)

CHUNK_MESSAGES: Final = 500
"""Messages that are read and packed together: few enough to stay in the processor's cache."""
MAX_REJECTED: Final = 2_000
MAX_NEW_NAMES: Final = 20_000
"""Rejected messages and new names are held in memory until the transaction ends, so it ends early
at these numbers."""
DAY_MICROSECONDS: Final = 86_400_000_000
"""The reports are partitioned by days of UTC."""
_NO_COUNTERS: Final = (0, 0, 0, 0)
_NO_ADDRESSES: Final = (None, None, None)


class _Needed(Exception):
    """Raised where a row needs something from the database; see :attr:`RowEncoder.needs`."""

    def __init__(self, needed: bytes | int) -> None:
        super().__init__(needed)
        self.needed = needed


class LastMessage(NamedTuple):
    """The last message that was encoded or rejected."""

    origin: MessageOrigin
    position: int
    received_at: int


@dataclass(slots=True, kw_only=True)
class RowEncoder:
    """Encodes the messages of one transaction, from after ``reached`` up to ``end``.

    ``epoch_numbers``: the database's number of each spooled epoch. ``partitions``: the days (since
    the Unix epoch, UTC) that have one. ``limit``: the most messages. ``received_at``: of the
    source's last message. ``latest``: a message that was received later ends the transaction, which
    is then ``held_back``. ``rate_limit`` bounds the reported traffic. Encoding advances
    ``reached``, and sets ``last`` to the message there; ``reached`` is ``end`` once no message is
    left before it.

    ``reports`` gets what the rows say, for settling.

    ``needs`` is set when encoding pauses for a realm or a day that the database lacks and that
    can't be created during a COPY. Create it, then continue with :meth:`encoded_chunks`.
    """

    spool: Spool
    source_id: int
    epoch_numbers: Mapping[int, int]
    identities: IdentityResolver
    rate_limit: RateLimit
    partitions: set[int]
    reached: tuple[int, int]
    end: tuple[int, int]
    limit: int
    received_at: int
    latest: int
    held_back: bool = False
    message_count: int = 0
    last: LastMessage | None = None
    needs: bytes | int | None = None
    rejected: list[RejectedMessage] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    _unread: Sequence[SpooledRow] = ()

    def has_more(self) -> bool:
        """Whether there is another message for this transaction."""
        is_full = (
            len(self.rejected) >= MAX_REJECTED or self.identities.pending_count >= MAX_NEW_NAMES
        )
        left = 0 if is_full or self.held_back else self.limit - self.message_count
        if not self._unread and left:
            self._unread = self.spool.read_messages(
                *self.reached, min(CHUNK_MESSAGES, left), self.end
            )
            if not self._unread:
                self.reached = self.end
            elif self._unread[-1][2] > self.latest:
                # Receipt times rise with positions.
                self.held_back = True
                count = bisect_right(self._unread, self.latest, key=itemgetter(2))
                self._unread = self._unread[:count]
        return bool(self._unread)

    def encoded_chunks(self) -> Iterator[bytes]:
        """The next rows, until the transaction is full or :attr:`needs` is set."""
        self.needs = None
        while self.needs is None and self.has_more():
            rows: list[bytes] = []
            rejected_before = len(self.rejected)
            try:
                self._encode(self._unread, rows)
            except _Needed as error:
                self.needs = error.needed
            if done := len(rows) + len(self.rejected) - rejected_before:
                origin, position, received_at, _, _ = self._unread[done - 1]
                self.last = LastMessage(MessageOrigin.unpack(origin), position, received_at)
                self.reached = self.last.origin.epoch, position
                self.message_count += done
                self._unread = self._unread[done:]
            yield b"".join(rows)

    def _encode(  # noqa: C901  # one loop without calls of its own: it runs for every message
        self, messages: Sequence[SpooledRow], rows: list[bytes]
    ) -> None:
        """Append a row or a rejected message for each message, in order."""
        cache: Mapping[bytes, bytes] = {}
        own_headers = _HeaderCache(self.source_id, self.epoch_numbers)
        estimated_headers = _HeaderCache(self.source_id, self.epoch_numbers, estimated=True)
        names = _NamesCache()
        reports = self.reports
        consume = self.rate_limit.consume
        self.rate_limit.drain(max(self.received_at, messages[-1][2]))
        last = self.received_at
        cache_until = TIME_MIN
        for origin, position, received_at, channel, payload in messages:
            # A source's receipt times never decrease, even if another machine's clock is behind.
            headers = own_headers
            if received_at > last:
                self.received_at = last = received_at
            elif last - received_at > MAX_CLOCK_ERROR:
                headers = estimated_headers
            if last >= cache_until:
                cache, cache_until = self._cache_at(last)
            try:
                channel_prefix, allocation_id, traffic_kind = split_channel(channel)
                identity = cache.get(channel_prefix)
                if identity is None:
                    realm, username = parse_channel_prefix(channel_prefix)
                    if not self.identities.has_realm(realm):
                        self._require_realm(realm, traffic_kind, payload)
                if traffic_kind is None:
                    status = parse_status(payload)
                else:
                    counters = parse_counters(payload, consume)
            except MessageRejected as error:
                epoch, database, _ = MessageOrigin.unpack(origin)
                number = self.epoch_numbers[epoch]
                self.rejected.append(
                    RejectedMessage(number, position, last, database, channel, payload, str(error))
                )
                continue
            if identity is None:
                identity = self.identities.resolve(channel_prefix, realm, username, last)
                # An erased user is never in the cache.
                if traffic_kind is None and self.identities.is_erased(identity, last):
                    status = without_client_address(status)
            header, number, database = headers[origin]
            side: int | None
            if traffic_kind is None:
                row = pack_status(header, position, last, identity, allocation_id, status)
                kind, lifetime, transport, server, client = status
                addresses = _shared(transport), _shared(server), _decoded(client)
                side, counters = None, _NO_COUNTERS
            else:
                row = pack_traffic(
                    header, position, last, identity, allocation_id, traffic_kind, counters
                )
                kind, side, lifetime = traffic_kind.kind, traffic_kind.side, None
                addresses = _NO_ADDRESSES
            rows.append(row)
            reports.append(
                Report(
                    number,
                    position,
                    last,
                    database,
                    *names[identity],
                    allocation_id,
                    kind,
                    side,
                    lifetime,
                    *addresses,
                    *counters,
                )
            )

    def _cache_at(self, time: int) -> tuple[Mapping[bytes, bytes], int]:
        """The identities cached for that time, and until when they are valid, within one day.

        Raises _Needed if the day has no partition.
        """
        day = time // DAY_MICROSECONDS
        if day not in self.partitions:
            raise _Needed(day)
        cache, valid_until = self.identities.cache_at(time)
        return cache, min(valid_until, (day + 1) * DAY_MICROSECONDS)

    def _require_realm(
        self, realm: bytes, traffic_kind: TrafficKind | None, payload: bytes
    ) -> NoReturn:
        """Raise _Needed for a realm, or MessageRejected for a wrong payload or too many realms."""
        if traffic_kind is None:
            parse_status(payload)
        else:
            parse_counters(payload)
        if not self.identities.has_room_for_realm:
            raise MessageRejected("too many realms")
        raise _Needed(realm)


def _decoded(text: bytes | None) -> str | None:
    return None if text is None else text.decode()


_shared = lru_cache(maxsize=1024)(_decoded)
"""For what many sessions have in common, and keep in memory."""


class _NamesCache(dict[bytes, Identity]):
    """Identities, by their packed form."""

    def __missing__(self, packed: bytes) -> Identity:
        identity = self[packed] = Identity.unpack(packed)
        return identity


class _HeaderCache(dict[int, tuple[bytes, int, int]]):
    """The headers of rows, the numbers of epochs and databases, by the origin of the message.

    ``estimated``: the times of all of them are, as their own could not enter the books.
    """

    def __init__(
        self, source_id: int, epoch_numbers: Mapping[int, int], *, estimated: bool = False
    ) -> None:
        self._source_id = source_id
        self._epoch_numbers = epoch_numbers
        self._estimated = estimated

    def __missing__(self, origin: int) -> tuple[bytes, int, int]:
        epoch, database, estimated = MessageOrigin.unpack(origin)
        number = self._epoch_numbers[epoch]
        header = pack_header(
            self._source_id, number, database, estimated=estimated or self._estimated
        )
        result = self[origin] = header, number, database
        return result
