"""Messages become rows of the reports, or rejects: what loading does with every single one.

A report's meaning is ``domain.coturn_messages``'s and ``identities.names``', its bytes are
``ingest.report_queries``'.
This is the loop around them, and it runs once for each message that coturn ever publishes: it makes
no object that it does not hand on. It knows the spool, and no database.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, NoReturn

from accounting.capture.spool.records import MessageOrigin, SpooledRow
from accounting.capture.spool.spool import Spool
from accounting.domain.calendar import TIME_MIN
from accounting.domain.coturn_messages import (
    TrafficKind,
    WireError,
    parse_channel_prefix,
    parse_counters,
    parse_status,
    split_channel,
)
from accounting.domain.rate_limit import RateLimit
from accounting.identities.names import Identities
from accounting.ingest.report_queries import Rejected, pack_head, pack_status, pack_traffic

PIECE: Final = 500
"""Messages that are read and packed together: few enough to stay in the processor's cache."""
MOST_REJECTED: Final = 2_000
MOST_NAMES: Final = 20_000
"""Rejected messages and new names are held in memory until the transaction ends; it ends early
when there are as many."""
DAY: Final = 86_400_000_000
"""Microseconds: reports are parted by days of UTC."""


class _Missing(Exception):
    """What must be in the database before a row can be; see :attr:`Rows.missing`."""

    def __init__(self, what: bytes | int) -> None:
        super().__init__(what)
        self.what = what


class Last(NamedTuple):
    """The last message that became a row or a reject."""

    origin: MessageOrigin
    position: int
    received_at: int


@dataclass(slots=True, kw_only=True)
class Rows:
    """The rows of one transaction: of the spool's messages after ``place`` up to ``end``.

    ``numbers``: the database's number of each spooled epoch. ``partitions``: the days (since the
    Unix epoch, UTC) that have one. ``limit``: messages at the most. ``received_at``: of the
    source's last message. ``allowance`` is spent by what is reported. As rows are made ``place``
    moves on, and ``last`` is the message there; it is at ``end`` when nothing is left before that.

    ``missing`` is why they end before that: a realm or a day that is not in the database, and
    can't be put there while a COPY runs. Do so, and go on with :meth:`pieces`.
    """

    spool: Spool
    source_id: int
    numbers: Mapping[int, int]
    identities: Identities
    allowance: RateLimit
    partitions: set[int]
    place: tuple[int, int]
    end: tuple[int, int]
    limit: int
    received_at: int
    count: int = 0
    last: Last | None = None
    missing: bytes | int | None = None
    rejected: list[Rejected] = field(default_factory=list)
    _read: Sequence[SpooledRow] = ()

    def has_more(self) -> bool:
        """Whether there is another message for this transaction."""
        is_full = len(self.rejected) >= MOST_REJECTED or self.identities.new >= MOST_NAMES
        room = 0 if is_full else self.limit - self.count
        if not self._read and room:
            self._read = self.spool.read_messages(*self.place, min(PIECE, room), self.end)
            if not self._read:
                self.place = self.end
        return bool(self._read)

    def pieces(self) -> Iterator[bytes]:
        """The next rows, packed."""
        self.missing = None
        while self.missing is None and self.has_more():
            rows: list[bytes] = []
            rejected = len(self.rejected)
            try:
                self._pack(self._read, rows)
            except _Missing as missing:
                self.missing = missing.what
            if done := len(rows) + len(self.rejected) - rejected:
                origin, position, received_at, _, _ = self._read[done - 1]
                self.last = Last(MessageOrigin.unpack(origin), position, received_at)
                self.place = self.last.origin.epoch, position
                self.count += done
                self._read = self._read[done:]
            yield b"".join(rows)

    def _pack(self, messages: Sequence[SpooledRow], rows: list[bytes]) -> None:
        """Pack messages: each is a row or a reject more, in order."""
        known: Mapping[bytes, bytes] = {}
        heads = _Heads(self.source_id, self.numbers)
        allow = self.allowance.consume
        self.allowance.refill(max(self.received_at, messages[-1][2]))
        last = self.received_at
        until = TIME_MIN
        for origin, position, received_at, channel, payload in messages:
            # One source's times never fall, also where another machine's clock goes on.
            if received_at > last:
                self.received_at = last = received_at
            if last >= until:
                known, until = self._known_at(last)
            try:
                channel_prefix, allocation_id, traffic_kind = split_channel(channel)
                identity = known.get(channel_prefix)
                if identity is None:
                    realm, username = parse_channel_prefix(channel_prefix)
                    if not self.identities.has_realm(realm):
                        self._miss(realm, traffic_kind, payload)
                if traffic_kind is None:
                    status = parse_status(payload)
                else:
                    counters = parse_counters(payload, allow)
            except WireError as error:
                epoch, database, _ = MessageOrigin.unpack(origin)
                number = self.numbers[epoch]
                self.rejected.append(
                    Rejected(number, position, last, database, channel, payload, str(error))
                )
                continue
            if identity is None:
                identity = self.identities.resolve(channel_prefix, realm, username, last)
            head = heads[origin]
            if traffic_kind is None:
                row = pack_status(head, position, last, identity, allocation_id, status)
            else:
                row = pack_traffic(
                    head, position, last, identity, allocation_id, traffic_kind, counters
                )
            rows.append(row)

    def _known_at(self, time: int) -> tuple[Mapping[bytes, bytes], int]:
        """Names that need not be resolved, and until when; within a day that has a partition."""
        day = time // DAY
        if day not in self.partitions:
            raise _Missing(day)
        known, until = self.identities.known_at(time)
        return known, min(until, (day + 1) * DAY)

    def _miss(self, realm: bytes, traffic_kind: TrafficKind | None, payload: bytes) -> NoReturn:
        """Say that a realm is missing, unless the message is no report: that needs none."""
        if traffic_kind is None:
            parse_status(payload)
        else:
            parse_counters(payload)
        raise _Missing(realm)


class _Heads(dict[int, bytes]):
    """What rows begin with, by their origin."""

    def __init__(self, source_id: int, numbers: Mapping[int, int]) -> None:
        self._source_id = source_id
        self._numbers = numbers

    def __missing__(self, of: int) -> bytes:
        epoch, database, estimated = MessageOrigin.unpack(of)
        head = self[of] = pack_head(
            self._source_id, self._numbers[epoch], database, estimated=estimated
        )
        return head
