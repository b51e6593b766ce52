"""Dropping reports after their time: proofs, carried lives, sealed sessions; and erasures.

Revision ID: 0007
Revises: 0006
"""

from pathlib import Path

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    statements = (_SQL / "0007_retention.sql").read_text()
    op.get_bind().exec_driver_sql(statements.replace("%", "%%"))


def downgrade() -> None:
    raise NotImplementedError("books are not taken back: restore a backup instead")
