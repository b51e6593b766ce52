"""Advisory locks, always for one transaction, so that a pooler between us does no harm."""

from sqlalchemy import Connection, text


def try_lock(connection: Connection, name: str) -> bool:
    """Take the lock of that name until the transaction ends; False when somebody else has it."""
    taken: bool = connection.execute(
        text("SELECT pg_try_advisory_xact_lock(hashtextextended(:name, 0))"),
        {"name": f"accounting.{name}"},
    ).scalar_one()
    return taken


def lock(connection: Connection, name: str) -> None:
    """Take the lock of that name until the transaction ends, however long somebody has it."""
    connection.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"),
        {"name": f"accounting.{name}"},
    )


def set_lock_timeout(connection: Connection, seconds: float) -> None:
    """Let no statement of the transaction wait longer than that for a lock."""
    connection.execute(
        text("SELECT set_config('lock_timeout', :milliseconds, true)"),
        {"milliseconds": str(max(1, round(seconds * 1000)))},
    )
