"""Who asks, and what part of the books that one may read."""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from accounting.reporting.view_query import ViewQuery


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """All of the books, those of one realm, or those of one user of a realm.

    ``token``: the number of the token, ``label``: its label; None where no log-in is asked for.
    """

    token: int | None = None
    label: str | None = None
    realm: str | None = None
    user_key: UUID | None = None

    @property
    def reads_all(self) -> bool:
        return self.realm is None

    @property
    def reads_realm(self) -> bool:
        """Whether it is about more than one user: all realms, or a whole one."""
        return self.user_key is None

    def may_read_realm(self, realm: str) -> bool:
        return self.realm is None or self.realm == realm

    def asks_for_others(self, query: ViewQuery) -> bool:
        """Whether a query names a realm or a user whom this reader may not read.

        It needs no answer of the database, which would take longer for a name that is there.
        """
        realm, user_key = query.values.get("realm"), query.values.get("user_key")
        return (self.realm is not None and realm not in {None, self.realm}) or (
            self.user_key is not None and user_key not in {None, self.user_key}
        )

    def restrict(self, query: ViewQuery, *, by_user: bool) -> ViewQuery:
        """Limit a query on a view to what this reader may read.

        ``by_user``: whether the view has ``user_key``; one without it has nothing for a user. Every
        query of the web passes here, whatever else was asked for.
        """
        if self.realm is not None:
            query = query.where("realm = %(own_realm)s", own_realm=self.realm)
        if self.user_key is not None:
            own = "user_key = %(own_user_key)s" if by_user else "false"
            query = query.where(own, own_user_key=self.user_key)
        return query


NOBODY: Final = Reader(token=0, realm="", user_key=UUID(int=0))
"""The reader before a log-in: of a user that no realm has, as no hash is all zeros."""
