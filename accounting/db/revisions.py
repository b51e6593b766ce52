"""The revision of the schema: which one this version needs, and which one a database has.

Without SQLAlchemy and Alembic, so that a process that only reads need not import them.
"""

from pathlib import Path

from accounting.db.connection import connect, lost_connections


def migrations_directory() -> Path:
    """Where the migrations lie: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent.parent
    inside, beside = package / "migrations", package.parent / "migrations"
    return inside if inside.is_dir() else beside


def head_revision() -> str:
    """The revision that this version of the package needs."""
    last = max(path.name for path in (migrations_directory() / "versions").glob("[0-9]*_*.py"))
    return last.partition("_")[0]


def is_at_head(url: str) -> bool:
    """Whether the database at a URL has that revision. Raises NotAllowed and ConnectionLost."""
    with lost_connections(), connect(url, application_name="turn-accounting") as connection:
        table = connection.execute("SELECT to_regclass('accounting.alembic_version')").fetchone()
        if table is None or table[0] is None:
            return False
        row = connection.execute("SELECT version_num FROM accounting.alembic_version").fetchone()
        return row is not None and row[0] == head_revision()
