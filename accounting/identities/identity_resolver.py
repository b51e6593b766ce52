"""Resolve realms and usernames to keys, for the loader, and store names that are new.

The resolver caches what is in ``users`` and ``usernames`` once the batches that resolved it are
committed: a caller that fails to commit one drops the resolver. An erased name is only restored by
a message received after the erasure.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final

from sqlalchemy import Connection, select

from accounting.db.queries import Queries
from accounting.db.schema import installation
from accounting.domain.calendar import TIME_MAX, TIME_MIN
from accounting.domain.coturn_messages import MessageRejected, parse_channel_prefix
from accounting.domain.identity import billed_user, user_key, username_key
from accounting.domain.realm_rules import RealmRule, RealmRules
from accounting.domain.text_escaping import escape
from accounting.identities import erasure_queries, realm_queries, user_queries

_QUERIES: Final = Queries("accounting.identities")

CACHE_BYTES: Final = 96 << 20
"""The size at which the cache is cleared."""
_ENTRY_OVERHEAD_BYTES: Final = 240
"""Of an entry in the cache, besides the name."""

MAX_REALMS: Final = 10_000
"""A message that would add another realm is rejected: any publisher can name one, and each has
rules, periods and hours of its own."""

_IDENTITY: Final = Struct(
    "!ii"  # realm_id
    "i16s"  # username_key
    "i16s"  # user_key
    "i"  # the length of the next field, as ingest.report_rows expects it
)
IDENTITY_BYTES: Final = _IDENTITY.size


_IDENTITY_VALUES: Final = Struct("!4xi4x16s4x16s4x")


def unpack_identity(identity: bytes) -> tuple[int, bytes, bytes]:
    """The realm_id, username_key and user_key in a packed identity."""
    realm_id, username_key, user_key = _IDENTITY_VALUES.unpack(identity)
    return realm_id, username_key, user_key


@dataclass(frozen=True, slots=True, kw_only=True)
class NewNames:
    """The names that a batch adds: (realm_id, username_key, username, user_key, user_id).

    ``restored``: those of erased users. ``pruned_count``: how many usernames were pruned when they
    were resolved; names of the cache that were pruned since then are missing here.
    """

    added: Sequence[tuple[int, bytes, bytes, bytes, bytes]]
    restored: Sequence[tuple[int, bytes, bytes, bytes, bytes]]
    pruned_count: int


class IdentityResolver:
    """Resolves realm and username, and collects new names.

    The cache's keys are channel prefixes (:func:`accounting.domain.coturn_messages.split_channel`)
    and its values identities packed as fields of a binary COPY row. So most messages, which have a
    known name, cost one lookup.
    """

    def __init__(self, default_rule: RealmRule, max_realms: int = MAX_REALMS) -> None:
        """``default_rule``: the first rule of a realm that has none."""
        self._default_rule = default_rule
        self._max_realms = max_realms
        self._key = b""
        self._realms: dict[bytes, int] = {}
        self._rules: dict[int, RealmRules] = {}
        self._cache_period = TIME_MAX, TIME_MAX
        self._cache: dict[bytes, bytes] = {}
        self._free_bytes = CACHE_BYTES
        self._pending: dict[bytes, tuple[int, bytes, bytes, bytes, bytes]] = {}
        self._erasure_count = 0
        self._pruned_count = 0
        self._erased: Mapping[bytes, int] = {}

    def begin(self, connection: Connection) -> None:
        """Read what changed.

        The caller holds the lock of its source: names are only pruned while nobody holds one.
        """
        if not self._key:  # never changes
            self._key = bytes(connection.execute(select(installation.c.identity_key)).scalar_one())
        self._realms = realm_queries.realm_ids(connection)
        rules = realm_queries.all_rules(connection)
        rules_changed = {realm_id: of_realm.rules for realm_id, of_realm in rules.items()} != {
            realm_id: of_realm.rules for realm_id, of_realm in self._rules.items()
        }
        if rules_changed:
            self._clear_cache()
        self._rules = rules
        pruned_count = user_queries.pruned_username_count(connection)
        if pruned_count != self._pruned_count:
            self._pruned_count = pruned_count
            self._clear_cache()
        erasure_count = erasure_queries.erasure_count(connection)
        if erasure_count != self._erasure_count:
            self._erasure_count = erasure_count
            self._erased = erasure_queries.erasure_times(connection)
            self._clear_cache()

    @property
    def pending_count(self) -> int:
        """How many names were resolved since :meth:`take_names`."""
        return len(self._pending)

    def has_realm(self, realm: bytes) -> bool:
        """Whether the realm is in the database."""
        return realm in self._realms

    @property
    def rules(self) -> Mapping[int, RealmRules]:
        """The rules of the realms, by realm_id."""
        return self._rules

    @property
    def has_room_for_realm(self) -> bool:
        """Whether another realm may be added."""
        return len(self._realms) < self._max_realms

    def add_realm(self, connection: Connection, realm: bytes) -> None:
        """Insert a realm, unless it is stored."""
        realm_id = self._realms[realm] = realm_queries.add_realm(
            connection, realm, self._default_rule
        )
        self._rules[realm_id] = realm_queries.read_rules(connection, realm_id)
        self._clear_cache()

    def cache_at(self, time: int) -> tuple[Mapping[bytes, bytes], int]:
        """The cached identities by the realms' rules of that time, and until when they are valid.

        A channel prefix that is missing needs :meth:`resolve`, which adds it to the cache.
        """
        if not self._cache_period[0] <= time < self._cache_period[1]:
            self._clear_cache()
            changes = {rule.holds_from for rules in self._rules.values() for rule in rules.rules}
            bounds = sorted({TIME_MIN, TIME_MAX, *changes})
            after = bisect_right(bounds, time)
            self._cache_period = bounds[after - 1], bounds[after]
        return self._cache, self._cache_period[1]

    def resolve(
        self, channel_prefix: bytes, realm: bytes, username: bytes, received_at: int
    ) -> bytes:
        """The packed identity of a name that is not cached, by the realm's rule of that time."""
        user, user_key = self._user(realm, username, received_at)
        realm_id, username_key = self.username_key(realm, username)
        packed = _IDENTITY.pack(4, realm_id, 16, username_key, 16, user_key, 8)
        if self._is_erased(user_key, received_at):
            nameless = realm_id, username_key, b"", user_key, b""
            self._pending.setdefault(username_key + user_key, nameless)
            return packed
        self._pending[username_key + user_key] = realm_id, username_key, username, user_key, user
        self._cache[channel_prefix] = packed
        self._free_bytes -= len(channel_prefix) + _ENTRY_OVERHEAD_BYTES
        return packed

    def username_key(self, realm: bytes, username: bytes) -> tuple[int, bytes]:
        """The realm_id and the username_key of a name in a known realm, which is not stored."""
        return self._realms[realm], username_key(self._key, realm, username)

    def is_erased(self, identity: bytes, received_at: int) -> bool:
        """Whether a packed identity is of a user that was erased after that time."""
        return bool(self._erased) and self._is_erased(unpack_identity(identity)[2], received_at)

    def names_erased_user(self, channel: bytes, received_at: int) -> bool:
        """Whether a channel contains the name of a user that was erased after that time."""
        if not self._erased:
            return False
        try:
            realm, username = parse_channel_prefix(channel.rpartition(b"/allocation/")[0])
        except MessageRejected:
            return False
        if realm not in self._realms:
            return False
        return self._is_erased(self._user(realm, username, received_at)[1], received_at)

    def _user(self, realm: bytes, username: bytes, received_at: int) -> tuple[bytes, bytes]:
        """The user to bill for a username, by the realm's rule of that time, and the user's key."""
        rule = self._rules[self._realms[realm]].rule_at(received_at)
        user = billed_user(username, rule.username_rule, rule.separator.encode())
        return user, user_key(self._key, realm, user)

    def _is_erased(self, user_key: bytes, received_at: int) -> bool:
        return received_at <= self._erased.get(user_key, received_at - 1)

    def take_names(self) -> NewNames:
        """The names resolved since the last call, and those of erased users to restore."""
        names = list(self._pending.values())
        self._pending = {}
        if self._free_bytes < 0:
            self._clear_cache()
        restored = [name for name in names if name[3] in self._erased and name[4]]
        return NewNames(added=names, restored=restored, pruned_count=self._pruned_count)

    def _clear_cache(self) -> None:
        self._cache = {}
        self._free_bytes = CACHE_BYTES
        self._cache_period = TIME_MAX, TIME_MAX


def write_names(connection: Connection, names: NewNames) -> None:
    """Store the names of a batch."""
    if not names.added:
        return
    realm_ids, username_keys, usernames, user_keys, user_ids = _columns(names.added)
    connection.execute(
        _QUERIES.text("add_users"),
        {"realm_ids": realm_ids, "user_keys": user_keys, "user_ids": user_ids},
    )
    connection.execute(
        _QUERIES.text("add_usernames"),
        {"user_keys": user_keys, "username_keys": username_keys, "usernames": usernames},
    )
    if names.restored:
        _, username_keys, usernames, user_keys, user_ids = _columns(names.restored)
        connection.execute(
            _QUERIES.text("restore_names"),
            {
                "user_keys": user_keys,
                "user_ids": user_ids,
                "username_keys": username_keys,
                "usernames": usernames,
            },
        )


def _columns(names: Sequence[tuple[int, bytes, bytes, bytes, bytes]]) -> Iterable[list[object]]:
    rows = (
        (realm_id, username_key.hex(), escape(username), user_key.hex(), escape(user))
        for realm_id, username_key, username, user_key, user in names
    )
    return map(list, zip(*rows, strict=True))
