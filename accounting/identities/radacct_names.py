"""How the view ``radacct`` names the users of a realm: ``user@realm``, or ``user`` in one realm."""

from typing import Final

from sqlalchemy import Connection, Engine

from accounting.db.engine import lost_connections
from accounting.db.queries import Queries
from accounting.domain.identity import RadacctUsername
from accounting.errors import UsageError, unknown_name
from accounting.identities import realm_queries
from accounting.identities.writer_locks import lock_out_loaders

_QUERIES: Final = Queries("accounting.identities")


def set_radacct_username(engine: Engine, realm: str, form: RadacctUsername) -> None:
    """Name the users of a realm so in ``radacct``, also in all sessions that are over.

    Waits until no loader adds users. Raises UsageError for an unknown realm, and where another
    realm's users are named without it: equal names would then be of two users.
    """
    with lost_connections(), engine.begin() as connection:
        lock_out_loaders(connection)
        name_users(connection, realm, form)


def name_users(connection: Connection, realm: str, form: RadacctUsername) -> None:
    """As :func:`set_radacct_username`, in a transaction that has locked out the loaders."""
    if form is RadacctUsername.USER:
        other = connection.execute(_QUERIES.text("not_named_in_radacct")).scalar()
        if other is not None and other != realm:
            raise UsageError(
                f"radacct names the users of realm {other!r} without it already, and equal "
                "names of two realms would be one: only one realm can be `user`"
            )
    realm_id = connection.execute(
        _QUERIES.text("name_realm_in_radacct"),
        {"realm": realm, "is_named": form is RadacctUsername.USER_AT_REALM},
    ).scalar()
    if realm_id is None:
        raise unknown_name("realm", realm, realm_queries.names_by_id(connection).values())
    connection.execute(_QUERIES.text("rename_users_in_radacct"), {"realm_id": realm_id})
