"""The numbers of endpoints, by which operators name them."""

from typing import Final

from sqlalchemy import Connection

from accounting.db.queries import Queries
from accounting.errors import UsageError

_QUERIES: Final = Queries("accounting.webhooks")


def read_format(connection: Connection, number: int) -> str:
    """The name of an endpoint's format. Raises UsageError for an unknown endpoint."""
    name: str | None = connection.execute(
        _QUERIES.text("webhook_format"), {"number": number}
    ).scalar()
    if name is None:
        raise unknown_endpoint(connection, number)
    return name


def unknown_endpoint(connection: Connection, number: int) -> UsageError:
    """The error for a number that no endpoint has, with the nearest that one has."""
    numbers = connection.execute(_QUERIES.text("nearest_webhooks"), {"number": number}).scalars()
    nearest = sorted(numbers)
    known = f"the nearest are {', '.join(map(str, nearest))}" if nearest else "there is none yet"
    return UsageError(f"there is no webhook {number}: {known}")
