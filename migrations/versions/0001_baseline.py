"""The whole schema: tables, functions and triggers of accounting, views of reporting.

Revision ID: 0001
Revises:
"""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"

# In this order: each file may use what the files before it create.
_FILES = (
    "schemas.sql",
    "identities.sql",
    "sources.sql",
    "ingest.sql",
    "sessions.sql",
    "usage.sql",
    "limits.sql",
    "billing.sql",
    "feed.sql",
    "webhooks.sql",
    "audit.sql",
    "ops.sql",
    "access.sql",
    "cell.sql",
    "reporting.sql",
    "front.sql",
)


def upgrade() -> None:
    for name in _FILES:
        # psycopg takes a single % for a parameter. The files themselves run in psql.
        op.get_bind().exec_driver_sql((_SQL / name).read_text().replace("%", "%%"))


def downgrade() -> None:
    raise NotImplementedError("there is no downgrade: restore a backup instead")
