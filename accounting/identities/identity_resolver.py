"""Names become keys: realms, usernames and users as the loader meets them.

Owns the tables ``users`` and ``usernames`` and a bounded memory of what is in them. That memory
may only hold what is committed: :meth:`Identities.begin` and :meth:`Identities.committed` bracket
each transaction. A name that was erased comes back only with what was received afterwards.
"""

from bisect import bisect_right
from collections.abc import Mapping
from struct import Struct
from typing import Final, NamedTuple, Self

from sqlalchemy import Connection, select

from accounting.db.queries import Queries
from accounting.db.schema import installation
from accounting.domain.calendar import TIME_MAX, TIME_MIN
from accounting.domain.coturn_messages import WireError, parse_channel_prefix
from accounting.domain.identity import billed_user, pseudonym, user_key
from accounting.domain.realm_rules import RealmRule, RealmRules
from accounting.domain.text_escaping import escape
from accounting.identities import erasure_queries, realm_queries

_QUERIES: Final = Queries("accounting.identities")

CACHE_BYTES: Final = 96 << 20
"""What names kept in memory may take; then it starts anew."""
_ENTRY_OVERHEAD_BYTES: Final = 240
"""Of a name in that memory, beside its own bytes."""

# With the length of the field after it, as store.reports wants it.
_IDENTITY: Final = Struct("!ii i16s i16s i".replace(" ", ""))
IDENTITY_BYTES: Final = _IDENTITY.size


class Identity(NamedTuple):
    """Who a report speaks of: the realm, the username on the wire, the user to bill."""

    realm_id: int
    username_key: bytes
    user_key: bytes

    @classmethod
    def unpack(cls, fields: bytes) -> Self:
        """Out of its fields in a row of binary COPY."""
        _, realm_id, _, username_key, _, user_key, _ = _IDENTITY.unpack(fields)
        return cls(realm_id, username_key, user_key)


class IdentityResolver:
    """Resolves realm and username on the wire, and writes down those that are new.

    Identities are packed as fields of a row in binary COPY, and names are asked for as channels
    have them (:func:`accounting.domain.coturn_messages.split_channel`): most reports speak of a
    known name, and
    cost one look into a dictionary then.
    """

    def __init__(self, default_rule: RealmRule) -> None:
        """``default_rule``: the first rule of a realm that nobody set up."""
        self._default_rule = default_rule
        self._key = b""
        self._realms: dict[bytes, int] = {}
        self._rules: dict[int, RealmRules] = {}
        self._cache_period = TIME_MAX, TIME_MAX
        self._cache: dict[bytes, bytes] = {}
        self._free_bytes = CACHE_BYTES
        self._pending: dict[bytes, tuple[int, bytes, bytes, bytes, bytes]] = {}
        self._erasures = 0
        self._erased: Mapping[bytes, int] = {}

    def begin(self, connection: Connection) -> None:
        """Start a transaction: rules as they are now, nothing new yet."""
        if not self._key:  # the same for as long as the books are
            self._key = bytes(connection.execute(select(installation.c.identity_key)).scalar_one())
        self._realms = realm_queries.realm_ids(connection)
        rules = realm_queries.all_rules(connection)
        changed = {one: of.rules for one, of in rules.items()} != {
            one: of.rules for one, of in self._rules.items()
        }
        if self._pending or changed:  # the last transaction was lost, or names mean other users now
            self._clear_cache()
        self._rules = rules
        self._pending = {}
        erasures = erasure_queries.erasure_count(connection)
        if erasures != self._erasures:
            self._erasures, self._erased = erasures, erasure_queries.erasure_times(connection)
            self._clear_cache()

    @property
    def pending_count(self) -> int:
        """How many names were met since :meth:`begin`."""
        return len(self._pending)

    def has_realm(self, realm: bytes) -> bool:
        """Whether the realm is in the database."""
        return realm in self._realms

    def add_realm(self, connection: Connection, realm: bytes) -> None:
        """Make a realm, if nobody did yet."""
        realm_id = self._realms[realm] = realm_queries.add_realm(
            connection, realm, self._default_rule
        )
        self._rules[realm_id] = realm_queries.read_rules(connection, realm_id)
        self._clear_cache()

    def cache_at(self, time: int) -> tuple[Mapping[bytes, bytes], int]:
        """Owners that need no :meth:`resolve`, as the rules of that time have it; until when."""
        if not self._cache_period[0] <= time < self._cache_period[1]:
            self._clear_cache()
            changes = {rule.holds_from for of in self._rules.values() for rule in of.rules}
            borders = sorted({TIME_MIN, TIME_MAX, *changes})
            after = bisect_right(borders, time)
            self._cache_period = borders[after - 1], borders[after]
        return self._cache, self._cache_period[1]

    def resolve(
        self, channel_prefix: bytes, realm: bytes, username: bytes, received_at: int
    ) -> bytes:
        """The packed identity of an owner who is not known, as the realm's rule then has it."""
        user, user_key = self._user(realm, username, received_at)
        # The two kinds of key never meet, even where a username is its own user id.
        username_key = pseudonym(self._key, realm, b"username\0" + username)
        realm_id = self._realms[realm]
        known = _IDENTITY.pack(4, realm_id, 16, username_key, 16, user_key, 8)
        if self._is_erased(user_key, received_at):
            nameless = realm_id, username_key, b"", user_key, b""
            self._pending.setdefault(username_key + user_key, nameless)
            return known
        self._pending[username_key + user_key] = realm_id, username_key, username, user_key, user
        self._cache[channel_prefix] = known
        self._free_bytes -= len(channel_prefix) + _ENTRY_OVERHEAD_BYTES
        return known

    def names_erased_user(self, channel: bytes, received_at: int) -> bool:
        """Whether a channel names a user whose name was erased since."""
        if not self._erased:
            return False
        try:
            realm, username = parse_channel_prefix(channel.rpartition(b"/allocation/")[0])
        except WireError:
            return False
        if realm not in self._realms:
            return False
        return self._is_erased(self._user(realm, username, received_at)[1], received_at)

    def _user(self, realm: bytes, username: bytes, received_at: int) -> tuple[bytes, bytes]:
        """Whom to bill for a username, by the realm's rule of that time: user_id and key."""
        rule = self._rules[self._realms[realm]].rule_at(received_at)
        user = billed_user(username, rule.username_rule, rule.separator.encode())
        return user, user_key(self._key, realm, user)

    def _is_erased(self, user_key: bytes, received_at: int) -> bool:
        return received_at <= self._erased.get(user_key, received_at - 1)

    def write(self, connection: Connection) -> None:
        """Write the names met since :meth:`begin`, in order of key: loaders can't deadlock."""
        if not self._pending:
            return
        rows = [
            (realm_id, username_key.hex(), escape(username), user_key.hex(), escape(user))
            for realm_id, username_key, username, user_key, user in self._pending.values()
        ]
        realm_ids, username_keys, names, user_keys, user_ids = map(list, zip(*rows, strict=True))
        connection.execute(
            _QUERIES.text("add_users"),
            {"realm_ids": realm_ids, "user_keys": user_keys, "user_ids": user_ids},
        )
        connection.execute(
            _QUERIES.text("add_usernames"),
            {"user_keys": user_keys, "username_keys": username_keys, "usernames": names},
        )
        back = [
            (user_key.hex(), escape(user), username_key.hex(), escape(username))
            for _, username_key, username, user_key, user in self._pending.values()
            if user_key in self._erased and user
        ]
        if back:
            keys, ids, of_names, their_names = map(list, zip(*back, strict=True))
            connection.execute(
                _QUERIES.text("name_again"),
                {
                    "user_keys": keys,
                    "user_ids": ids,
                    "username_keys": of_names,
                    "usernames": their_names,
                },
            )

    def committed(self) -> None:
        """The transaction is in the books: its names may be remembered."""
        self._pending = {}
        if self._free_bytes < 0:
            self._clear_cache()

    def _clear_cache(self) -> None:
        self._cache = {}
        self._free_bytes = CACHE_BYTES
        self._cache_period = TIME_MAX, TIME_MAX
