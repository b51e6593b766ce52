"""``make reference``: what docs/reference lists of the code, written from the code.

Commands come from their help pages, settings from their fields, views from the comments of the
database, metrics from a scrape, routes from the API's own description.
"""

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import typer
from prometheus_client.parser import text_string_to_metric_families
from pydantic_core import PydanticUndefined
from typer.testing import CliRunner

from accounting.cli.main import COMMAND_GROUPS, app
from accounting.config import SECRETS, Settings, environment_variable
from accounting.ops.monitoring.metrics import render_metrics
from accounting.web.app import create_app
from accounting.web.render import API_PREFIX
from tests.support.asgi import request
from tests.support.books import (
    Books,
    cloned_database,
    make_template,
)
from tests.support.monitoring import fill_every_metric, read_snapshot, with_cell
from tests.support.servers import PostgresServer

DIRECTORY: Final = Path(__file__).resolve().parents[2] / "docs/reference"
HEADS: Final = {
    "commands.md": """\
# Commands

`turn-accounting COMMAND -h` prints the same. Data goes to standard output, everything else to
standard error. Exit codes: 0 done, 1 a check failed or a server is away, 2 wrong use or
configuration, 3 not yet.
""",
    "settings.md": """\
# Settings

Environment variables, or keys of a TOML file: the same names in lower case and without the prefix.
`turn-accounting config` prints those in force and where each came from, without passwords. The
rules of a realm are in the database: [`realm set`](commands.md#realm-set).
""",
    "views.md": """\
# Views

Schema `reporting`, as `\\d+` in psql shows it. [Queries](../sql.md) has examples,
[the glossary](../glossary.md) the words. A column is never null unless its content says when.
""",
    "metrics.md": """\
# Metrics

What `/metrics` serves, besides the `process_*` metrics of prometheus-client.
[Operations](../operations.md#metrics) says how.
""",
    "api.md": """\
# API routes

All are `GET`. `/api/openapi.json` describes the answers too, with every field.
[The API](../web.md#the-api) has what they share: pages, formats, errors, tokens.
""",
}


def main() -> None:
    """Write every page."""
    with (
        tempfile.TemporaryDirectory(prefix="ta-reference-") as directory,
        PostgresServer() as server,
    ):
        make_template(server)
        with cloned_database(server) as name:
            books = Books(server, name, Path(directory))
            for page in PAGES:
                (DIRECTORY / page).write_text(page_text(page, books))
            books.close()


def page_text(page: str, books: Books) -> str:
    """The whole page."""
    head = f"{HEADS[page]}\n<!-- Written by `make reference`. -->"
    return "\n\n".join([head, *PAGES[page](books)]) + "\n"


def commands(_books: Books) -> Iterator[str]:
    """The help page of the program, and of every command."""
    root = typer.main.get_command(app)
    yield help_page("")
    for title, group in COMMAND_GROUPS.items():
        yield f"## {title}"
        for path in command_paths(root, group):
            yield f"### {path}"
            yield help_page(path)


def command_paths(command: Any, names: Iterable[str], path: str = "") -> Iterator[str]:
    """Every command that can be run, such as ``usage`` and ``realm set``."""
    for name in names:
        child = command.commands[name]
        below = f"{path} {name}".strip()
        if children := getattr(child, "commands", None):
            yield from command_paths(child, children, below)
        else:
            yield below


def help_page(path: str) -> str:
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(
        app, [*path.split(), "-h"], prog_name="turn-accounting", catch_exceptions=False
    )
    return f"```text\n{shown.output.strip()}\n```"


def settings(_books: Books) -> Iterator[str]:
    """Every setting with its default."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.default
        if isinstance(default, bool):
            default = str(default).lower()
        shown = "" if default in (None, PydanticUndefined, "", ()) else f"`{default}`"
        also = f" (or `{environment_variable(name)}_FILE`)" if name in SECRETS else ""
        rows.append((f"`{environment_variable(name)}`{also}", shown, str(field.description)))
    yield table(("variable", "default", "what it is"), rows)


def views(books: Books) -> Iterator[str]:
    """Every view of ``reporting`` with its columns, and every function."""
    columns: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
    for row in books.query(_COLUMNS):
        key = row["view"], row["view_comment"]
        columns.setdefault(key, []).append((f"`{row['name']}`", row["type"], row["comment"]))
    functions = [
        (f"`{row['call']}`", row["comment"])
        for row in books.query(_FUNCTIONS)
        if row["name"] in PUBLIC_FUNCTIONS
    ]
    assert len(functions) == len(PUBLIC_FUNCTIONS)
    yield table(
        ("view", "what it has"), [(f"[`{view}`](#{view})", comment) for view, comment in columns]
    )
    for (view, _), rows in columns.items():
        yield f"## {view}"
        yield table(("column", "type", "content"), rows)
    yield "## Functions"
    yield "Those for everyone. The others of the schema serve the page and the API."
    yield table(("function", "result"), functions)


PUBLIC_FUNCTIONS: Final = {
    "feed_advance", "feed_cursor", "feed_history", "feed_source", "known_realms",
    "nearest_to_limit", "possible_user_keys", "user_peak_sessions",
}  # fmt: skip
_COLUMNS: Final = """
SELECT c.relname AS view, obj_description(c.oid) AS view_comment, a.attname AS name,
    replace(format_type(a.atttypid, a.atttypmod), 'timestamp with time zone', 'timestamptz')
        AS type,
    col_description(c.oid, a.attnum) AS comment
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = 'reporting'::regnamespace AND c.relkind = 'v' AND a.attnum > 0
ORDER BY c.relname, a.attnum
"""
_FUNCTIONS: Final = """
SELECT proname AS name, obj_description(oid) AS comment, format(
        '%s(%s)', proname,
        replace(pg_get_function_arguments(oid), 'timestamp with time zone', 'timestamptz')
    ) AS call
FROM pg_proc WHERE pronamespace = 'reporting'::regnamespace ORDER BY proname
"""


def metrics(books: Books) -> Iterator[str]:
    """Every metric with its labels, as a scrape of busy books shows them."""
    fill_every_metric(books)
    page = render_metrics(with_cell(read_snapshot(books)))
    rows = []
    for family in text_string_to_metric_families(page.decode()):
        if family.name.startswith("process_"):
            continue
        assert family.samples, f"these books have nothing for {family.name}: its labels are unknown"
        sample = family.samples[0]
        rows.append(
            (f"`{sample.name}`", family.type, ", ".join(sample.labels), family.documentation)
        )
    yield table(("metric", "type", "labels", "what it is"), rows)


def routes(books: Books) -> Iterator[str]:
    """Every route of the API with its parameters."""
    document = json.loads(request(create_app(books.reader), "/api/openapi.json"))
    operations = {path: route["get"] for path, route in document["paths"].items()}
    of_lists = parameter_rows(operations[f"{API_PREFIX}/realms"])
    yield "Each list takes"
    yield parameter_table(of_lists)
    for path, operation in operations.items():
        yield f"## {path.removeprefix(f'{API_PREFIX}/')}"
        yield operation["description"]
        rows = [row for row in parameter_rows(operation) if row not in of_lists]
        if rows:
            yield parameter_table(rows)


def parameter_rows(operation: Mapping[str, Any]) -> list[tuple[str, str]]:
    parameters = operation.get("parameters", [])
    return [(f"`{parameter['name']}`", parameter["description"]) for parameter in parameters]


def parameter_table(rows: Iterable[Sequence[str]]) -> str:
    return table(("parameter", "what it is"), rows)


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines
    )


PAGES: Final[Mapping[str, Callable[[Books], Iterator[str]]]] = {
    "commands.md": commands,
    "settings.md": settings,
    "views.md": views,
    "metrics.md": metrics,
    "api.md": routes,
}


if __name__ == "__main__":
    main()
