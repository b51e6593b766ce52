"""Checks names: each key is the digest of the name that is stored for it, unless it was erased.

A wrong name would send a right statement to somebody else. The reports have no names, so a rebuild
takes a user's name from the usernames, and a username from the user; what neither gives is to be
restored from a backup.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, bindparam, select, update

from accounting.audit.differences import Difference, DifferenceFactory
from accounting.db.queries import Queries
from accounting.db.schema import installation, realms, usernames, users
from accounting.domain.identity import billed_user, user_key, username_key
from accounting.domain.realm_rules import RealmRules
from accounting.domain.text_escaping import escape, unescape

_QUERIES: Final = Queries("accounting.audit")
_ROWS: Final = 10_000
"""Names read at once."""


class RealmNames:
    """The stored names of a realm, and the keys that they should have."""

    def __init__(self, connection: Connection, realm_id: int) -> None:
        self._connection = connection
        self._realm_id = realm_id
        self._key = bytes(connection.execute(select(installation.c.identity_key)).scalar_one())
        self._realm = bytes(
            connection.execute(
                select(realms.c.realm_bytes).where(realms.c.realm_id == realm_id)
            ).scalar_one()
        )

    def check(self, differences: DifferenceFactory) -> Iterator[Difference]:
        """The users without a row, and the names that are not those of their keys."""
        for key in self._missing():
            yield differences.timeless(self._realm_id, what="users", kind="missing", user_key=key)
        for key, column, stored, expected in self._wrong_users():
            yield differences.timeless(
                self._realm_id,
                what="users",
                kind="differs",
                user_key=key,
                column=column,
                booked=stored,
                recomputed=expected,
            )
        for key, _, username in self._wrong_usernames():
            yield differences.timeless(
                self._realm_id,
                what="usernames",
                kind="differs",
                user_key=key,
                column="username",
                booked=username,
            )

    def restore(self, rules: RealmRules) -> None:
        """Restore the names that follow from others."""
        wrong = {*self._missing(), *(row[0] for row in self._wrong_users() if row[1] == "user_id")}
        found = dict(self._users_of_usernames(rules, wrong))
        if found:
            self._connection.execute(
                _QUERIES.text("restore_users"),
                {
                    "realm_id": self._realm_id,
                    "user_keys": list(found),
                    "user_ids": list(found.values()),
                },
            )
        self._connection.execute(
            _QUERIES.text("restore_radacct_suffixes"), {"realm_id": self._realm_id}
        )
        rows = [
            {"of_user": key, "of_username": of_username, "name": name}
            for key, of_username, _ in list(self._wrong_usernames())
            for name in self._user_names(key)
            if username_key(self._key, self._realm, unescape(name)) == of_username.bytes
        ]
        if rows:
            self._connection.execute(
                update(usernames)
                .where(
                    usernames.c.user_key == bindparam("of_user"),
                    usernames.c.username_key == bindparam("of_username"),
                )
                .values(username=bindparam("name")),
                rows,
            )

    def _missing(self) -> list[UUID]:
        return list(
            self._connection.execute(
                _QUERIES.text("find_missing_users"), {"realm_id": self._realm_id}
            ).scalars()
        )

    def _wrong_users(self) -> Iterator[tuple[UUID, str, str, str]]:
        """(user_key, column, stored, expected) of the names that are wrong."""
        for row in self._rows("read_user_names"):
            if not self._is_name_of(row.user_key, row.user_id, is_erased=row.is_erased):
                yield row.user_key, "user_id", row.user_id, ""
            elif row.stored_suffix != row.radacct_suffix and not row.is_erased:
                yield row.user_key, "radacct_suffix", row.stored_suffix, row.radacct_suffix

    def _is_name_of(self, key: UUID, name: str, *, is_erased: bool) -> bool:
        if not name and is_erased:
            return True
        return user_key(self._key, self._realm, unescape(name)) == key.bytes

    def _wrong_usernames(self) -> Iterator[tuple[UUID, UUID, str]]:
        for row in self._rows("read_usernames"):
            key = username_key(self._key, self._realm, unescape(row.username))
            if key != row.username_key.bytes and (row.username or not row.is_erased):
                yield row.user_key, row.username_key, row.username

    def _rows(self, statement: str) -> Iterable[Any]:
        return self._connection.execute(
            _QUERIES.text(statement),
            {"realm_id": self._realm_id},
            execution_options={"yield_per": _ROWS},
        )

    def _users_of_usernames(
        self, rules: RealmRules, keys: Iterable[UUID]
    ) -> Iterator[tuple[UUID, str]]:
        rows = self._connection.execute(
            _QUERIES.text("usernames_of_users"), {"user_keys": list(keys)}
        )
        for key, username in rows:
            for rule in rules.rules:
                user = billed_user(unescape(username), rule.username_rule, rule.separator.encode())
                if user_key(self._key, self._realm, user) == key.bytes:
                    yield key, escape(user)

    def _user_names(self, key: UUID) -> list[str]:
        return list(
            self._connection.execute(
                select(users.c.user_id).where(users.c.user_key == key)
            ).scalars()
        )
