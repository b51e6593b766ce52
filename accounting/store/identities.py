"""Names become keys: realms, usernames and users as the loader meets them.

Owns the tables ``users`` and ``usernames`` and a bounded memory of what is in them. That memory
may only hold what is committed: :meth:`Identities.begin` and :meth:`Identities.committed` bracket
each transaction.
"""

from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, select
from sqlalchemy.dialects.postgresql import insert

from accounting.model.identity import opaque_key, user_id
from accounting.model.realms import RealmRule, RealmRules
from accounting.model.text import as_text
from accounting.store import realms
from accounting.store.schema import installation, usernames, users

REMEMBERED: Final = 200_000
"""Names kept in memory, at some 400 bytes each; then it starts anew."""


class Identity(NamedTuple):
    """Who a report speaks of: the realm, the username on the wire, the user to bill."""

    realm_id: int
    username_key: bytes
    user_key: bytes


class Identities:
    """Resolves realm and username on the wire, and writes down those that are new."""

    def __init__(self, default_rule: RealmRule) -> None:
        """``default_rule``: the first rule of a realm that nobody set up."""
        self._default_rule = default_rule
        self._key = b""
        self._realms: dict[bytes, int] = {}
        self._rules: dict[int, RealmRules] = {}
        self._known: dict[tuple[bytes, bytes, RealmRule], Identity] = {}
        self._new: dict[tuple[bytes, bytes, RealmRule], Identity] = {}

    def begin(self, connection: Connection) -> None:
        """Start a transaction: rules as they are now, nothing new yet."""
        self._key = bytes(connection.execute(select(installation.c.identity_key)).scalar_one())
        self._realms = realms.realm_ids(connection)
        self._rules = realms.all_rules(connection)
        self._new = {}

    def resolve(
        self, connection: Connection, realm: bytes, username: bytes, received_at: int
    ) -> Identity:
        """The keys of a name as the realm's rule of that time has it."""
        realm_id = self._realms.get(realm)
        if realm_id is None:
            realm_id = self._realms[realm] = realms.add_realm(connection, realm, self._default_rule)
            self._rules[realm_id] = realms.rules_of(connection, realm_id)
        rule = self._rules[realm_id].at(received_at)
        name = realm, username, rule
        known = self._known.get(name) or self._new.get(name)
        if known is None:
            user = user_id(username, rule.username_rule, rule.separator.encode())
            known = self._new[name] = Identity(
                realm_id,
                # The two kinds of key never meet, even where a username is its own user id.
                opaque_key(self._key, realm, b"username\0" + username),
                opaque_key(self._key, realm, b"user\0" + user),
            )
        return known

    def write(self, connection: Connection) -> None:
        """Write the names met since :meth:`begin`, in order of key: loaders can't deadlock."""
        if not self._new:
            return
        user_rows: dict[bytes, dict[str, object]] = {}
        username_rows: dict[bytes, dict[str, object]] = {}
        for (_, username, rule), identity in self._new.items():
            user = user_id(username, rule.username_rule, rule.separator.encode())
            user_rows[identity.user_key] = {
                "user_key": _uuid(identity.user_key),
                "realm_id": identity.realm_id,
                "user_id": as_text(user),
            }
            username_rows[identity.username_key + identity.user_key] = {
                "user_key": _uuid(identity.user_key),
                "username_key": _uuid(identity.username_key),
                "username": as_text(username),
            }
        connection.execute(
            insert(users).on_conflict_do_nothing(), [user_rows[key] for key in sorted(user_rows)]
        )
        connection.execute(
            insert(usernames).on_conflict_do_nothing(),
            [username_rows[key] for key in sorted(username_rows)],
        )

    def committed(self) -> None:
        """The transaction is in the books: its names may be remembered."""
        if len(self._known) + len(self._new) > REMEMBERED:
            self._known = {}
        self._known.update(self._new)
        self._new = {}


def _uuid(key: bytes) -> UUID:
    return UUID(bytes=key)
