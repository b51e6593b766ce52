"""The open sessions of one source in memory, so that a loader folds without reading them back.

A cache and nothing more: it is valid while only its owner changes the source's open sessions, and
:meth:`OpenSessions.clear` drops it when a transaction failed or somebody else changed them. Any
limit gives the same books: a key that is not here is read from the database.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Final

from sqlalchemy import Connection

from accounting.domain.realm_rules import RealmRules
from accounting.domain.session_fold import AllocationKey, KeyFold, Report, StatusKeySighting
from accounting.sessions import session_queries
from accounting.sessions.careful_fold import CarefulFold, SetAside

Key = tuple[int, int, bytes, int]
"""As AllocationKey, which takes three times as long to make."""

_FILTER_BITS: Final = 24


class _KeyFilter:
    """A Bloom filter: whether a key may have been added. Two megabytes; a million keys: 1.4 %."""

    def __init__(self) -> None:
        self._bits = bytearray(1 << _FILTER_BITS - 3)

    def add(self, key: Key) -> None:
        for bit in self._bits_of(key):
            self._bits[bit >> 3] |= 1 << (bit & 7)

    def __contains__(self, key: Key) -> bool:
        return all(self._bits[bit >> 3] >> (bit & 7) & 1 for bit in self._bits_of(key))

    @staticmethod
    def _bits_of(key: Key) -> tuple[int, int]:
        value = hash(key)
        mask = (1 << _FILTER_BITS) - 1
        return value & mask, value >> _FILTER_BITS & mask


class _AllKeys:
    """Any key may be in the database: of a memory that keeps none."""

    def add(self, key: Key) -> None:
        pass

    def __contains__(self, key: Key) -> bool:
        return True


class OpenSessions:
    """``folds``: by key, of one source. ``limit``: how many keys stay between batches.

    ``changed``: what the batch changed. ``rules``: by realm_id. ``failures``: what a fold raised:
    the batch must be rolled back. ``failed_keys``: folded with care; what raises there is added to
    ``set_aside``.
    """

    def __init__(self, limit: int, failed_keys: Collection[AllocationKey] = ()) -> None:
        self._limit = limit
        self._failed_keys = failed_keys
        self.folds: dict[Key, KeyFold] = {}
        self.changed: list[KeyFold] = []
        self.failures: dict[AllocationKey, Exception] = {}
        self.set_aside: list[SetAside] = []
        # Shared by the folds, and updated in place.
        self.rules: dict[int, RealmRules] = {}
        self._gap_positions: list[tuple[int, int]] = []
        # Keys that may have open sessions in the database which are not here; None: there are none.
        self._elsewhere: _KeyFilter | _AllKeys | None = None
        self._is_filled = False
        self._by_channel: dict[int, dict[bytes, tuple[KeyFold, bytes]]] = {}
        self._names: Mapping[bytes, bytes] = {}

    def clear(self) -> None:
        """Forget everything."""
        self.folds = {}
        self.changed = []
        self.failures = {}
        self.set_aside.clear()
        self.rules = {}
        self._elsewhere = None
        self._is_filled = False
        self._by_channel = {}

    def begin(
        self,
        connection: Connection,
        source_id: int,
        rules: Mapping[int, RealmRules],
        gap_positions: Sequence[tuple[int, int]],
    ) -> None:
        """Begin a batch of evidence; fill the memory if it is empty.

        ``rules``: by realm_id. ``gap_positions``: as KeyFold takes them.
        """
        self.add_rules(rules)
        self._gap_positions[:] = gap_positions
        if self._is_filled:
            return
        self._is_filled = True
        if not self._limit:
            self._elsewhere = _AllKeys()
            return
        for key, session in session_queries.read_latest_sessions(
            connection, source_id, self._limit
        ):
            self.fold(key, session.realm_id).resume(session)
        for key in session_queries.read_open_keys(connection, source_id):
            if key not in self.folds:
                self._add_elsewhere(key)

    @property
    def is_complete(self) -> bool:
        """Whether all open sessions of the source are here."""
        return self._elsewhere is None

    def add_rules(self, rules: Mapping[int, RealmRules]) -> None:
        """Add the rules of new realms."""
        for realm_id, of_realm in rules.items():
            self.rules.setdefault(realm_id, of_realm)

    def fold(self, key: Key, realm_id: int) -> KeyFold:
        """The fold of a key. A key that :meth:`may_be_stored` has to be read before."""
        fold = self.folds.get(key)
        if fold is None:
            key = AllocationKey._make(key)
            rules, gap_positions = self.rules[realm_id], self._gap_positions
            fold = (
                CarefulFold(key, realm_id, rules, gap_positions, self.set_aside.append)
                if key in self._failed_keys
                else KeyFold(key, realm_id, rules, gap_positions)
            )
            self.folds[key] = fold
        return fold

    def may_be_stored(self, key: Key) -> bool:
        """Whether the database may have open sessions of a key that are not here."""
        return self._elsewhere is not None and key not in self.folds and key in self._elsewhere

    def read(self, connection: Connection, keys: Iterable[Key]) -> None:
        """Read the open sessions of those keys that may have some which are not here."""
        stored = {AllocationKey._make(key) for key in keys if self.may_be_stored(key)}
        if stored:
            for key, session in session_queries.read_open_sessions(connection, stored):
                self.fold(key, session.realm_id).resume(session)

    def require(self, connection: Connection, keys: Mapping[Key, int]) -> None:
        """Have a fold for each of those keys of evidence, with the realm_id of each."""
        self.read(connection, keys)
        for key, realm_id in keys.items():
            self.fold(key, realm_id)

    def apply(self, fold: KeyFold, evidence: Report | StatusKeySighting) -> None:
        """Apply stored evidence to its key."""
        was_changed = bool(fold.changed)
        try:
            fold.apply(evidence)
        except Exception as error:  # noqa: BLE001  # a bug may raise anything
            self.failures[fold.key] = error
        if fold.changed and not was_changed:
            self.changed.append(fold)

    def by_channel(
        self, database: int, names: Mapping[bytes, bytes]
    ) -> Mapping[bytes, tuple[KeyFold, bytes]]:
        """The folds whose channels are known, each with the identity and id that its rows have.

        By what the channels of a key begin with. ``names``: the identities that this is valid for.
        """
        if names is not self._names:
            self._names, self._by_channel = names, {}
        return self._by_channel.setdefault(database, {})

    def set_channel(self, fold: KeyFold, channel: bytes, identity: bytes) -> None:
        """Add a fold to :meth:`by_channel`, with the identity of its rows from now on."""
        channels = self._by_channel[fold.key.database]
        if fold.channel != channel:
            # Two ways to write the empty realm: each fold has one channel, to be dropped with it.
            channels.pop(fold.channel, None)
            fold.channel = channel
        channels[channel] = fold, identity

    def take_changed(self) -> tuple[list[KeyFold], list[SetAside]]:
        """What the batch changed and set aside; the next one begins."""
        # A careful fold that restored its sessions may be there twice.
        changed, set_aside = list(dict.fromkeys(self.changed)), self.set_aside.copy()
        self.changed = []
        self.set_aside.clear()
        return changed, set_aside

    def end(self, changed: Iterable[KeyFold], unwritten: Iterable[KeyFold] = ()) -> None:
        """End a batch: drop keys without open sessions, and the oldest ones beyond the limit.

        ``changed``: what it changed. The ``unwritten`` folds stay: the database has what they were
        before.
        """
        folds, kept = self.folds, set(unwritten)
        for fold in changed:
            if fold.active is None and fold.pending is None and fold not in kept:
                self._drop(fold)
        excess = len(folds) - self._limit
        if excess > 0:
            written = (fold for fold in folds.values() if fold not in kept)
            for fold in list(islice(written, excess)):
                self._drop(fold)
                self._add_elsewhere(fold.key)

    def _drop(self, fold: KeyFold) -> None:
        self.folds.pop(fold.key, None)
        if fold.channel and (channels := self._by_channel.get(fold.key.database)):
            channels.pop(fold.channel, None)

    def _add_elsewhere(self, key: Key) -> None:
        if self._elsewhere is None:
            self._elsewhere = _KeyFilter()
        self._elsewhere.add(key)
