"""Encode spooled messages as rows of the reports and fold them into sessions, or reject them.

``domain.coturn_messages`` parses a message, ``identities.identity_resolver`` resolves its names,
``ingest.report_rows`` packs the row, ``domain.session_fold`` applies it. This module's loop
calls them once for every message that coturn publishes, so it creates as few objects as it can. It
reads the spool, not the database.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final, NamedTuple, NoReturn

from accounting.capture.clock import MAX_CLOCK_ERROR
from accounting.capture.spool.records import (
    ESTIMATED_ORIGIN,
    MessageOrigin,
    RawKeySighting,
    SpooledRow,
)
from accounting.capture.spool.spool import Spool
from accounting.domain.calendar import TIME_MIN
from accounting.domain.client_addresses import (
    ClientAddresses,
    reduced_address,
    reduced_payload,
    stricter,
)
from accounting.domain.coturn_messages import (
    INTERIM,
    MAX_CHANNEL_BYTES,
    PEER_INTERIM,
    PEER_TOTAL,
    UNKNOWN_SUFFIX,
    MessageRejected,
    TrafficKind,
    parse_channel_prefix,
    parse_counters,
    parse_status,
    split_channel,
    split_status,
    split_suffix,
)
from accounting.domain.rate_limit import RateLimit
from accounting.domain.session_fold import KeyFold
from accounting.identities.identity_resolver import IdentityResolver, unpack_identity
from accounting.ingest.rejected_messages import RejectedMessage
from accounting.ingest.report_rows import StatusFields, pack_header, pack_owner, pack_traffic
from accounting.sessions.open_sessions import Key, OpenSessions

# A test sets two of these; a Final would be part of the compiled code.
CHUNK_MESSAGES = 500
"""Messages that are read and packed together: few enough to stay in the processor's cache."""
MAX_REJECTED = 2_000
MAX_NEW_NAMES: Final = 20_000
"""Rejected messages and new names are held in memory until the transaction ends, so it ends early
at these numbers."""
DAY_MICROSECONDS: Final = 86_400_000_000
"""The reports are partitioned by days of UTC."""
MAX_STATUS_FIELDS: Final = 1_000
"""Of the cache of them. It has few, unless somebody publishes many addresses of servers."""
LONGEST_SUFFIX: Final = len(b"/total_traffic/peer")

Place = tuple[int, int]
"""(epoch, position) in the spool."""


class NewRealm(NamedTuple):
    """A realm that the database lacks."""

    name: bytes


class NewDay(NamedTuple):
    """A day without a partition, in days since the Unix epoch (UTC)."""

    day: int


class UnreadKeys(NamedTuple):
    """Keys whose sessions have to be read from the database, each with its realm_id."""

    realm_ids: dict[Key, int]


class DueSightings(NamedTuple):
    """Key sightings to apply before the next message."""

    sightings: Sequence[RawKeySighting]


Need = NewRealm | NewDay | UnreadKeys | DueSightings


class _Needed(Exception):
    """Raised where a row needs something from the database; see :attr:`RowEncoder.needs`."""

    def __init__(self, need: Need) -> None:
        super().__init__(need)
        self.need = need


_NewChannel = tuple[bytes, int, bytes | None, bytes, bytes]
"""The prefix and the allocation id of a channel that is not known, its identity, or else its names.
"""


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
    left before it. ``client_addresses``: what is stored of them in every realm, at most.

    The messages are folded into ``memory``. ``sightings``, by position, are due after the message
    at their position; ``last_sighting`` is the number of the last one that was.

    ``needs`` is set when encoding pauses for something that is not possible during a COPY. Provide
    it, then continue with :meth:`encoded_chunks`.
    """

    spool: Spool
    source_id: int
    epoch_numbers: Mapping[int, int]
    identities: IdentityResolver
    memory: OpenSessions
    rate_limit: RateLimit
    partitions: set[int]
    reached: tuple[int, int]
    end: tuple[int, int]
    limit: int
    received_at: int
    latest: int
    client_addresses: ClientAddresses = ClientAddresses.KEEP
    held_back: bool = False
    message_count: int = 0
    last: LastMessage | None = None
    needs: Need | None = None
    rejected: list[RejectedMessage] = field(default_factory=list)
    sightings: Sequence[RawKeySighting] = ()
    last_sighting: int = 0
    _unread: Sequence[SpooledRow] = ()
    _names: Mapping[bytes, bytes] = field(default_factory=dict)
    _statuses: dict[bytes, StatusFields] = field(default_factory=dict)

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
        while self.needs is None:
            has_more = self.has_more()
            if due := self._take_due_sightings():
                self.needs = DueSightings(due)
            elif not has_more:
                return
            else:
                yield self._encode_unread()

    def _take_due_sightings(self) -> Sequence[RawKeySighting]:
        """Those before the next message, which are not due a second time."""
        if self._unread:
            count = bisect_left(
                self.sightings, _place_of_message(self._unread[0]), key=_place_of_sighting
            )
        else:
            count = bisect_right(self.sightings, self.reached, key=_place_of_sighting)
        due, self.sightings = self.sightings[:count], self.sightings[count:]
        if due:
            self.last_sighting = due[-1].number
        return due

    def _encode_unread(self) -> bytes:
        """Encode what was read, up to the next sighting."""
        messages = self._unread
        if self.sightings:
            until = _place_of_sighting(self.sightings[0])
            messages = messages[: bisect_right(messages, until, key=_place_of_message)]
        rows: list[bytes] = []
        rejected_before = len(self.rejected)
        try:
            self._encode(messages, rows)
        except _Needed as error:
            self.needs = error.need
        if done := len(rows) + len(self.rejected) - rejected_before:
            origin, position, received_at, _, _ = self._unread[done - 1]
            self.last = LastMessage(MessageOrigin.unpack(origin), position, received_at)
            self.reached = self.last.origin.epoch, position
            self.message_count += done
            self._unread = self._unread[done:]
        return b"".join(rows)

    def _encode(  # noqa: C901  # one loop: it runs for every message
        self, messages: Sequence[SpooledRow], rows: list[bytes]
    ) -> None:
        """Append a row or a rejected message for each message, in order, and fold it."""
        memory, statuses, changed = self.memory, self._statuses, self.memory.changed
        headers = _HeaderCache(self.source_id, self.epoch_numbers)
        channels: Mapping[bytes, tuple[KeyFold, bytes]] = {}
        consume = self.rate_limit.consume
        self.rate_limit.drain(max(self.received_at, messages[-1][2]))
        last = self.received_at
        names_until = TIME_MIN
        known_origin = -1
        for origin, position, received_at, channel, payload in messages:
            # A source's receipt times never decrease, even if another machine's clock is behind.
            if received_at > last:
                self.received_at = last = received_at
            elif last - received_at > MAX_CLOCK_ERROR:
                origin |= ESTIMATED_ORIGIN  # noqa: PLW2901
            if last >= names_until:
                names_until = self._load_names(last)
                known_origin = -1
            if origin != known_origin:
                header, number, database = headers[origin]
                channels = memory.by_channel(database, self._names)
                known_origin = origin
            channel_start, traffic_kind = split_suffix(channel)
            known = channels.get(channel_start)
            try:
                if known is None or traffic_kind is UNKNOWN_SUFFIX:
                    new_channel = self._check_channel(channel, payload, database)
                if traffic_kind is None:
                    shared, client = split_status(payload)
                    fields = statuses.get(shared) or self._add_status_fields(shared, payload)
                else:
                    counters = parse_counters(payload, consume)
            except MessageRejected as error:
                payload = self._stored_payload(payload)  # noqa: PLW2901
                self.rejected.append(
                    RejectedMessage(number, position, last, database, channel, payload, str(error))
                )
                continue
            if known is None:
                fold, owner, is_erased = self._add_channel(channel_start, new_channel, database)
                if is_erased:
                    client = None
            else:
                fold, owner = known
            if traffic_kind is None and client is not None:
                kept = stricter(self.client_addresses, fold.rules.client_addresses)
                # None for an empty address too, which a collector leaves of one that it drops.
                client = reduced_address(client, kept) or None
            if not fold.changed:
                changed.append(fold)
            if traffic_kind is None:
                rows.append(fields.pack(header, position, last, owner, client))
            else:
                rows.append(pack_traffic(header, position, last, owner, traffic_kind, counters))
            try:
                if traffic_kind is None:
                    fold.apply_status(
                        number,
                        position,
                        last,
                        fields.kind,
                        fields.lifetime,
                        fields.transport,
                        fields.server_address,
                        None if client is None else client.decode(),
                    )
                elif traffic_kind is INTERIM:
                    fold.apply_interim(number, position, last, False, counters)
                elif traffic_kind is PEER_INTERIM:
                    fold.apply_interim(number, position, last, True, counters)
                else:
                    fold.apply_total(number, position, last, traffic_kind is PEER_TOTAL, counters)
            except Exception as error:  # noqa: BLE001  # a bug may raise anything
                memory.failures[fold.key] = error

    def _stored_payload(self, payload: bytes) -> bytes:
        """The payload of a rejected message, by the strictest rule.

        One that does not parse is no evidence of the realm that its channel names.
        """
        of_realms = (rules.client_addresses for rules in self.identities.rules.values())
        return reduced_payload(payload, stricter(self.client_addresses, *of_realms))

    def _load_names(self, time: int) -> int:
        """Load the identities that are known at that time; until when they are valid, in its day.

        Raises _Needed if the day has no partition.
        """
        day = time // DAY_MICROSECONDS
        if day not in self.partitions:
            raise _Needed(NewDay(day))
        self._names, valid_until = self.identities.cache_at(time)
        return min(valid_until, (day + 1) * DAY_MICROSECONDS)

    def _check_channel(self, channel: bytes, payload: bytes, database: int) -> _NewChannel:
        """The names in a channel. Raises _Needed, or MessageRejected."""
        channel_prefix, allocation_id, traffic_kind = split_channel(channel)
        identity, realm, username = self._names.get(channel_prefix), b"", b""
        if identity is None:
            realm, username = parse_channel_prefix(channel_prefix)
            if not self.identities.has_realm(realm):
                self._require_realm(realm, traffic_kind, payload)
        new_channel = channel_prefix, allocation_id, identity, realm, username
        if not self.memory.is_complete:
            key, _ = self._key(new_channel, database)
            if self.memory.may_be_stored(key):
                self._require_unread_keys()
        return new_channel

    def _add_channel(
        self, channel_start: bytes, new_channel: _NewChannel, database: int
    ) -> tuple[KeyFold, bytes, bool]:
        """The fold of a channel, the owner of its rows, and whether the owner was erased since."""
        channel_prefix, allocation_id, identity, realm, username = new_channel
        is_erased = False
        if identity is None:
            time = self.received_at
            identity = self.identities.resolve(channel_prefix, realm, username, time)
            is_erased = self.identities.is_erased(identity, time)
        realm_id, username_key, user_key = unpack_identity(identity)
        fold = self.memory.fold((self.source_id, database, username_key, allocation_id), realm_id)
        fold.user_key = user_key
        owner = pack_owner(identity, allocation_id)
        # An erased user is never in the caches.
        if not is_erased and len(channel_start) + LONGEST_SUFFIX <= MAX_CHANNEL_BYTES:
            self.memory.set_channel(fold, channel_start, owner)
        return fold, owner, is_erased

    def _key(self, new_channel: _NewChannel, database: int) -> tuple[Key, int]:
        """The key of an allocation and its realm_id."""
        _, allocation_id, identity, realm, username = new_channel
        if identity is None:
            realm_id, username_key = self.identities.username_key(realm, username)
        else:
            realm_id, username_key, _ = unpack_identity(identity)
        return (self.source_id, database, username_key, allocation_id), realm_id

    def _add_status_fields(self, shared: bytes, payload: bytes) -> StatusFields:
        fields = StatusFields(parse_status(payload))
        if len(self._statuses) >= MAX_STATUS_FIELDS:
            self._statuses.clear()
        self._statuses[shared] = fields
        return fields

    def _require_unread_keys(self) -> NoReturn:
        """Raise _Needed for all keys among the messages to come that are not in memory."""
        realm_ids: dict[Key, int] = {}
        for origin, _, _, channel, _ in self._unread:
            database = MessageOrigin.unpack(origin).database
            try:
                channel_prefix, allocation_id, _ = split_channel(channel)
                realm, username = parse_channel_prefix(channel_prefix)
            except MessageRejected:
                continue
            if self.identities.has_realm(realm):
                identity = self._names.get(channel_prefix)
                new_channel = channel_prefix, allocation_id, identity, realm, username
                key, realm_id = self._key(new_channel, database)
                if self.memory.may_be_stored(key):
                    realm_ids[key] = realm_id
        raise _Needed(UnreadKeys(realm_ids))

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
        raise _Needed(NewRealm(realm))


def _place_of_sighting(sighting: RawKeySighting) -> Place:
    return sighting.epoch, sighting.position


def _place_of_message(message: SpooledRow) -> Place:
    return MessageOrigin.unpack(message[0]).epoch, message[1]


class _HeaderCache(dict[int, tuple[bytes, int, int]]):
    """The headers of rows, the numbers of epochs and databases, by the origin of the message."""

    def __init__(self, source_id: int, epoch_numbers: Mapping[int, int]) -> None:
        self._source_id = source_id
        self._epoch_numbers = epoch_numbers

    def __missing__(self, origin: int) -> tuple[bytes, int, int]:
        epoch, database, estimated = MessageOrigin.unpack(origin)
        number = self._epoch_numbers[epoch]
        header = pack_header(self._source_id, number, database, estimated=estimated)
        result = self[origin] = header, number, database
        return result
