"""Creates, lists and revokes tokens: for the command line, with the writer's rights."""

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection, Engine

from accounting.db.engine import lost_connections
from accounting.db.queries import Queries
from accounting.errors import UsageError
from accounting.identities.realm_queries import find_realm
from accounting.identities.user_queries import find_user_key, unknown_user_error
from accounting.web.access.secret_texts import digest, new_token

Row = Mapping[str, Any]
LABEL_CHARACTERS: Final = 200
_QUERIES: Final = Queries("accounting.web.access")


def create_token(
    engine: Engine,
    *,
    realm: str | None = None,
    user: str | None = None,
    label: str = "",
    days: int | None,
) -> tuple[str, Row]:
    """Create a token that reads all, a realm or a user of it; returns it and its row.

    The token is nowhere else: only its digest is stored. ``days``: None for one that does not
    expire. Raises UsageError for an unknown realm or user: a token for a name that was mistyped
    would read nothing, or one day another customer's books.
    """
    if user is not None and realm is None:
        raise UsageError("--user goes with --realm: each realm has users of its own")
    if len(label) > LABEL_CHARACTERS or not label.isprintable():
        raise UsageError(f"--label: expected at most {LABEL_CHARACTERS} printable characters")
    token = new_token()
    with lost_connections(), engine.begin() as connection:
        user_key = None
        if realm is not None:
            realm_id = find_realm(connection, realm)
            if user is not None:
                user_key = find_user_key(connection, realm_id, user)
                if user_key is None:
                    raise unknown_user_error(connection, realm, user)
        values = {
            "label": label,
            "digest": digest(token),
            "realm": realm,
            "user_key": user_key,
            "days": days,
        }
        row = connection.execute(_QUERIES.text("create_token"), values).mappings().one()
        return token, dict(row)


def list_tokens(engine: Engine) -> list[Row]:
    """All tokens, oldest first."""
    with lost_connections(), engine.connect() as connection:
        return _all_tokens(connection)


def revoke_token(engine: Engine, number: int) -> bool:
    """Revoke a token, and end its browser sessions; False if it was revoked already.

    Raises UsageError for an unknown number.
    """
    with lost_connections(), engine.begin() as connection:
        values = {"number": number}
        revoked: bool | None = connection.execute(
            _QUERIES.text("revoke_token"), values
        ).scalar_one_or_none()
        if revoked is None:
            raise _unknown_token(number, _all_tokens(connection))
        connection.execute(_QUERIES.text("close_sessions"), values)
        return revoked


def _all_tokens(connection: Connection) -> list[Row]:
    return [dict(row) for row in connection.execute(_QUERIES.text("list_tokens")).mappings()]


def _unknown_token(number: int, tokens: list[Row]) -> UsageError:
    numbers = [int(row["number"]) for row in tokens]
    nearest = sorted(sorted(numbers, key=lambda known: abs(known - number))[:3])
    known = f"the nearest are {', '.join(map(str, nearest))}" if nearest else "there is none yet"
    return UsageError(f"there is no token {number}: {known}")
