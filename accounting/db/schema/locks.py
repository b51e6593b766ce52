"""The locks of the jobs, a row for each."""

from sqlalchemy import Column, Table, Text

from accounting.db.schema.columns import metadata

locks = Table(
    "locks",
    metadata,
    Column("name", Text, primary_key=True),
)
