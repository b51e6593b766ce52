"""Checks the names in a command's arguments, so that an unknown one is no empty result."""

from sqlalchemy import Engine, func, select

from accounting.errors import unknown_name, unknown_user
from accounting.reporting import view_queries
from accounting.reporting.reader import read_rows


def check_names(
    engine: Engine, *, realm: str | None = None, user: str | None = None, source: str | None = None
) -> None:
    """Raise UsageError for an unknown realm or source, or a user unknown there; None for any.

    ``user``: a user_id or a username. An erased user is unknown.
    """
    if realm is not None:
        realms = func.reporting.known_realms().table_valued("name")
        known = [row["name"] for row in read_rows(engine, select(realms))]
        if realm not in known:
            raise unknown_name("realm", realm, known)
    if user is not None:
        users = func.reporting.known_users(realm, user).table_valued("name")
        known = [row["name"] for row in read_rows(engine, select(users))]
        if user not in known:
            raise unknown_user(realm, user, known)
    if source is not None:
        known = [row["source"] for row in read_rows(engine, view_queries.sources())]
        if source not in known:
            raise unknown_name("source", source, known)
