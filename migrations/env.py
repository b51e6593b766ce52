"""Run Alembic's migrations with a lock timeout, in one transaction.

``accounting.db.migrations`` passes the connection and the metadata that ``alembic check`` compares
with, so that this file imports nothing of the application.
"""

from alembic import context
from sqlalchemy import text

LOCK_TIMEOUT = "10s"
PARTITIONS = ("reports_", "sessions_")


def _is_managed(name: str | None, type_: str, _parents: object) -> bool:
    """Partitions have the columns of their tables; schema reporting only has views."""
    if type_ == "schema":
        return name in {"accounting", "access"}
    return not (type_ == "table" and (name or "").startswith(PARTITIONS))


def run() -> None:
    attributes = context.config.attributes
    connection = attributes["connection"]
    context.configure(
        connection=connection,
        target_metadata=attributes.get("metadata"),
        version_table_schema="accounting",
        include_schemas=True,
        include_name=_is_managed,
        compare_server_default=False,
        transaction_per_migration=False,
    )
    connection.execute(
        text("SELECT set_config('lock_timeout', :timeout, true)"), {"timeout": LOCK_TIMEOUT}
    )
    with context.begin_transaction():
        context.run_migrations()


run()
