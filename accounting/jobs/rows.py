"""Messages become rows of the reports, or rejects: what loading does with every single one.

A report's meaning is ``model.wire``'s and ``store.identities``', its bytes are ``store.reports``'.
This is the loop around them, and it runs once for each message that coturn ever publishes: it makes
no object that it does not hand on, and touches neither clock nor database.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from accounting.capture.records import SpooledRow
from accounting.model.allowance import Allowance
from accounting.model.buckets import BEGINNING
from accounting.model.wire import (
    Topic,
    WireError,
    parse_counters,
    parse_owner,
    parse_status,
    split_channel,
)
from accounting.store.identities import Identities
from accounting.store.reports import Rejected, pack_head, pack_status, pack_traffic

PIECE: Final = 1_000
"""Rows that are handed on together: some 170 kB."""


@dataclass(slots=True)
class Rows:
    """The rows of one transaction. ``numbers``: the database's number of each spooled epoch.

    ``allowance`` is spent by what is reported.
    ``rejected`` holds messages that are no reports; ``waiting`` those of ``new_realms``, which
    can't be made while a COPY runs: make them, and give the messages to :meth:`pieces` once more.
    """

    source_id: int
    numbers: Mapping[int, int]
    identities: Identities
    allowance: Allowance
    rejected: list[Rejected] = field(default_factory=list)
    waiting: list[SpooledRow] = field(default_factory=list)
    new_realms: set[bytes] = field(default_factory=set)

    def pieces(self, messages: Sequence[SpooledRow], last: int) -> Iterator[bytes]:
        """Packed rows. ``last``: when the source's last message before these was received."""
        for latest in messages[-1:]:
            self.allowance.pass_to(max(last, latest[2]))
        rows = self._rows(messages, last)
        while piece := b"".join(islice(rows, PIECE)):
            yield piece

    def _rows(self, messages: Sequence[SpooledRow], last: int) -> Iterator[bytes]:
        known: Mapping[bytes, bytes] = {}
        until = BEGINNING
        heads = _Heads(self.source_id, self.numbers)
        allow = self.allowance.spend
        for message in messages:
            epoch, position, received_at, estimated, database, channel, payload = message
            # One source's times never fall, also where another machine's clock goes on.
            if received_at > last:
                last = received_at
            if last >= until:
                known, until = self.identities.known_at(last)
            try:
                owner, allocation_id, topic = split_channel(channel)
                identity = known.get(owner)
                if identity is None:
                    realm, username = parse_owner(owner)
                if topic is None:
                    status = parse_status(payload)
                else:
                    counters = parse_counters(payload, allow)
            except WireError as error:
                self._reject(message, last, error)
                continue
            if identity is None:
                if not self.identities.has_realm(realm):
                    self._let_wait(message, last, realm, topic)
                    continue
                identity = self.identities.resolve(owner, realm, username, last)
            head = heads[epoch, database, estimated]
            if topic is None:
                yield pack_status(head, position, last, identity, allocation_id, status)
            else:
                yield pack_traffic(head, position, last, identity, allocation_id, topic, counters)

    def _let_wait(
        self, message: SpooledRow, received_at: int, realm: bytes, topic: Topic | None
    ) -> None:
        self.new_realms.add(realm)
        self.waiting.append((*message[:2], received_at, *message[3:]))
        if topic is not None:  # it is weighed when it comes once more
            parse_counters(message[6], self.allowance.give_back)

    def _reject(self, message: SpooledRow, received_at: int, error: WireError) -> None:
        epoch, position, _, _, database, channel, payload = message
        self.rejected.append(
            Rejected(
                self.numbers[epoch], position, received_at, database, channel, payload, str(error)
            )
        )


class _Heads(dict[tuple[int, int, int], bytes]):
    """What rows begin with, by spooled epoch, database and whether the time is estimated."""

    def __init__(self, source_id: int, numbers: Mapping[int, int]) -> None:
        self._source_id = source_id
        self._numbers = numbers

    def __missing__(self, of: tuple[int, int, int]) -> bytes:
        epoch, database, estimated = of
        head = self[of] = pack_head(
            self._source_id, self._numbers[epoch], database, estimated=bool(estimated)
        )
        return head
