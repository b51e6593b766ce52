"""Advisory locks of the transaction, so that they also work through a pooler."""

from sqlalchemy import Connection, text


def try_lock(connection: Connection, name: str) -> bool:
    """Take the named lock until the transaction ends; False when another session has it."""
    acquired: bool = connection.execute(
        text("SELECT pg_try_advisory_xact_lock(hashtextextended(:name, 0))"),
        {"name": f"accounting.{name}"},
    ).scalar_one()
    return acquired


def lock(connection: Connection, name: str) -> None:
    """Take the named lock until the transaction ends; waits while another session has it."""
    connection.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"),
        {"name": f"accounting.{name}"},
    )


def set_lock_timeout(connection: Connection, seconds: float) -> None:
    """Limit how long each statement of the transaction waits for a lock."""
    connection.execute(
        text("SELECT set_config('lock_timeout', :milliseconds, true)"),
        {"milliseconds": str(max(1, round(seconds * 1000)))},
    )
