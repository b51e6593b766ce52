"""The open sessions of one source in memory, so that a loader folds without reading them back.

A cache and nothing more: it is valid while only its owner changes the source's open sessions, and
:meth:`OpenSessions.clear` drops it when a transaction failed or somebody else changed them. Any
limit gives the same books: a key that is not here is read from the database.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from sqlalchemy import Connection

from accounting.domain.realm_rules import RealmRules
from accounting.domain.session_fold import AllocationKey
from accounting.sessions import session_queries
from accounting.sessions.key_fold import KeyFold

_FILTER_BITS: Final = 24


class _KeyFilter:
    """A Bloom filter: whether a key may have been added. Two megabytes; a million keys: 1.4 %."""

    def __init__(self) -> None:
        self._bits = bytearray(1 << _FILTER_BITS - 3)

    def add(self, key: AllocationKey) -> None:
        for bit in self._bits_of(key):
            self._bits[bit >> 3] |= 1 << (bit & 7)

    def __contains__(self, key: AllocationKey) -> bool:
        return all(self._bits[bit >> 3] >> (bit & 7) & 1 for bit in self._bits_of(key))

    @staticmethod
    def _bits_of(key: AllocationKey) -> tuple[int, int]:
        value = hash(key)
        mask = (1 << _FILTER_BITS) - 1
        return value & mask, value >> _FILTER_BITS & mask


class _AllKeys:
    """Any key may be in the database: of a memory that keeps none."""

    def add(self, key: AllocationKey) -> None:
        pass

    def __contains__(self, key: AllocationKey) -> bool:
        return True


class OpenSessions:
    """``folds``: by key, of one source. ``limit``: how many keys stay between batches."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.folds: dict[tuple[int, int, bytes, int], KeyFold] = {}
        # Keys that may have open sessions in the database which are not here; None: not known yet.
        self._elsewhere: _KeyFilter | _AllKeys | None = None
        # Shared by the folds, and updated in place.
        self._rules: dict[int, RealmRules] = {}
        self._gap_positions: list[tuple[int, int]] = []

    def clear(self) -> None:
        """Forget everything."""
        self.folds = {}
        self._elsewhere = None
        self._rules = {}

    def begin(
        self,
        connection: Connection,
        source_id: int,
        rules: Mapping[int, RealmRules],
        gap_positions: Sequence[tuple[int, int]],
    ) -> None:
        """Begin a batch of evidence. A changed rule of a realm clears the memory.

        ``rules``: by realm_id. ``gap_positions``: as ``session_fold.apply_report`` takes them.
        """
        if any(rules[realm_id].rules != known.rules for realm_id, known in self._rules.items()):
            self.clear()
        self._rules |= {
            realm_id: of_realm
            for realm_id, of_realm in rules.items()
            if realm_id not in self._rules
        }
        self._gap_positions[:] = gap_positions
        if not self._limit:
            self._elsewhere = _AllKeys()
        elif self._elsewhere is None:
            self._elsewhere = _KeyFilter()
            for key in session_queries.read_open_keys(connection, source_id):
                self._elsewhere.add(key)
            for key, session in session_queries.read_latest_sessions(
                connection, source_id, self._limit
            ):
                self._fold(key).resume(session)

    def require(self, connection: Connection, keys: Iterable[tuple[int, int, bytes, int]]) -> None:
        """Read the open sessions of those keys that are not in ``folds``. Keys as AllocationKey."""
        assert self._elsewhere is not None
        folds = self.folds
        missing = {AllocationKey._make(key) for key in keys if key not in folds}
        for key in missing:
            self._fold(key)
        stored = [key for key in missing if key in self._elsewhere]
        if stored:
            for key, session in session_queries.read_open_sessions(connection, stored):
                self.folds[key].resume(session)

    def end(self, changed: Iterable[KeyFold]) -> None:
        """End a batch: drop keys without open sessions, and the oldest ones beyond the limit.

        ``changed``: the folds that the batch changed.
        """
        assert self._elsewhere is not None
        folds = self.folds
        for fold in changed:
            if fold.state.active is None and fold.state.pending is None:
                folds.pop(fold.key, None)
        while len(folds) > self._limit:
            key = next(iter(folds))
            del folds[key]
            self._elsewhere.add(AllocationKey._make(key))

    def _fold(self, key: AllocationKey) -> KeyFold:
        fold = self.folds.get(key)
        if fold is None:
            fold = self.folds[key] = KeyFold(key, self._rules, self._gap_positions)
        return fold
