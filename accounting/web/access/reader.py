"""Who asks, and what part of the books that one may read."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Select, Uuid, column, false


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """All of the books, those of one realm, or those of one user of a realm.

    ``token``: the number of the token; None where no log-in is asked for.
    """

    token: int | None = None
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

    def restrict(self, query: Select[Any], *, by_user: bool) -> Select[Any]:
        """Limit a query on a view to what this reader may read.

        ``by_user``: whether the view has ``user_key``; one without it has nothing for a user. Every
        query of the web passes here, whatever else was asked for.
        """
        if self.realm is not None:
            query = query.where(column("realm") == self.realm)
        if self.user_key is not None:
            query = query.where(column("user_key", Uuid) == self.user_key if by_user else false())
        return query
