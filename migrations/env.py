"""How Alembic runs here: as the owner role, with a lock timeout, in one transaction.

The connection comes from ``accounting.db.migrations``; this file imports nothing of the
application, except for ``alembic check``, which hands over the metadata to compare with.
"""

from alembic import context
from sqlalchemy import text

LOCK_TIMEOUT = "10s"


def _ours(name: str | None, type_: str, _parents: object) -> bool:
    """Partitions of reports are made by day, not by migrations; reporting holds views only."""
    if type_ == "schema":
        return name == "accounting"
    return not (type_ == "table" and (name or "").startswith("reports_"))


def run() -> None:
    attributes = context.config.attributes
    connection = attributes["connection"]
    context.configure(
        connection=connection,
        target_metadata=attributes.get("metadata"),
        version_table_schema="accounting",
        include_schemas=True,
        include_name=_ours,
        compare_server_default=False,
        transaction_per_migration=False,
    )
    connection.execute(
        text("SELECT set_config('lock_timeout', :timeout, true)"), {"timeout": LOCK_TIMEOUT}
    )
    with context.begin_transaction():
        context.run_migrations()


run()
