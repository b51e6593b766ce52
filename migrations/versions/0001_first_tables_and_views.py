"""The first tables, and the views of schema reporting.

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


def upgrade() -> None:
    for name in ("0001_tables.sql", "0001_views.sql"):
        # As it stands, not as a statement with parameters: the files are for psql too.
        op.get_bind().exec_driver_sql((_SQL / name).read_text().replace("%", "%%"))


def downgrade() -> None:
    raise NotImplementedError("books are not taken back: restore a backup instead")
