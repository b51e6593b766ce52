"""Marks of touched hours say by how much; the peaks of realms are counted in slices.

Revision ID: 0012
Revises: 0011
"""

from pathlib import Path

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    statements = (_SQL / "0012_usage_changes.sql").read_text()
    op.get_bind().exec_driver_sql(statements.replace("%", "%%"))


def downgrade() -> None:
    raise NotImplementedError("books are not taken back: restore a backup instead")
