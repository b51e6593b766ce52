"""The columns of the views, with their types and comments, as the database has them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from accounting.reporting.view_query import ViewQuery

if TYPE_CHECKING:
    from accounting.reporting.reader import DatabaseReader

_COLUMNS: Final = ViewQuery(
    relation="pg_catalog.pg_namespace n JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid"
    " JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid",
    columns=(
        "c.relname AS view",
        "a.attname AS name",
        "format_type(a.atttypid, a.atttypmod) AS type",
        "coalesce(col_description(c.oid, a.attnum), '') AS comment",
    ),
    conditions=("n.nspname = 'reporting'", "c.relkind = 'v'", "a.attnum > 0"),
    order=("c.relname", "a.attnum"),
)


class ViewColumn(NamedTuple):
    """A column of a view. ``type``: as Postgres spells it."""

    name: str
    type: str
    comment: str

    @property
    def may_be_null(self) -> bool:
        """Whether its comment says when it is null: those that never are don't mention it."""
        return "null" in self.comment


def view_columns(reader: "DatabaseReader") -> Mapping[str, list[ViewColumn]]:
    """The columns of every view of ``reporting``, in order, by view."""
    views: dict[str, list[ViewColumn]] = {}
    for row in reader.read_rows(_COLUMNS):
        column = ViewColumn(row["name"], row["type"], row["comment"])
        views.setdefault(row["view"], []).append(column)
    return views
