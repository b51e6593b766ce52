"""Views find a user by name along indexes; indexes of the sessions that live or are disputed.

Revision ID: 0011
Revises: 0008
"""

from pathlib import Path

from alembic import op

revision = "0011"
down_revision = "0008"
branch_labels = None
depends_on = None

_SQL = Path(__file__).parent.parent / "sql"


def upgrade() -> None:
    statements = (_SQL / "0011_found_by_name.sql").read_text()
    op.get_bind().exec_driver_sql(statements.replace("%", "%%"))


def downgrade() -> None:
    raise NotImplementedError("books are not taken back: restore a backup instead")
