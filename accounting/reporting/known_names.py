"""Checks the names in a command's arguments, so that an unknown one is no empty result."""

from typing import TYPE_CHECKING

from accounting.errors import unknown_name, unknown_user
from accounting.reporting import view_queries

if TYPE_CHECKING:
    from accounting.reporting.reader import DatabaseReader


def check_names(
    reader: "DatabaseReader",
    *,
    realm: str | None = None,
    user: str | None = None,
    source: str | None = None,
) -> None:
    """Raise UsageError for an unknown realm or source, or a user unknown there; None for any.

    ``user``: a user_id or a username. An erased user is unknown.
    """
    if realm is not None:
        known = [row["name"] for row in reader.read_rows(view_queries.known_realms())]
        if realm not in known:
            raise unknown_name("realm", realm, known)
    if user is not None:
        known = [row["name"] for row in reader.read_rows(view_queries.known_users(realm, user))]
        if user not in known:
            raise unknown_user(realm, user, known)
    if source is not None:
        known = [row["source"] for row in reader.read_rows(view_queries.sources())]
        if source not in known:
            raise unknown_name("source", source, known)
