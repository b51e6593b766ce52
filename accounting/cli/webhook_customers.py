"""The command ``webhook customers``: whom an engine bills for its users."""

from typing import Annotated

import typer

from accounting.cli.arguments import JsonOption
from accounting.cli.output import write_csv, write_json, write_message
from accounting.cli.resources import command_settings, writer_engine
from accounting.cli.webhook_arguments import Number, opened
from accounting.errors import UsageError
from accounting.plurals import counted


def customers(
    number: Number,
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE",
            help="CSV with realm,user,customer or user_key,customer, or as printed; - for stdin.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Set whom an engine bills for its users; without FILE print that, as CSV.

    A row with an empty customer removes the user's.
    """
    from accounting.webhooks.customers import list_customers, set_customers

    if file is None:
        with writer_engine(command_settings()) as engine:
            rows = list_customers(engine, number)
        if as_json:
            write_json(rows)
        else:
            write_csv(rows, ("realm", "user", "user_key", "customer"))
        return
    if as_json:
        raise UsageError("--json goes without FILE")
    with opened(file, "FILE") as lines, writer_engine(command_settings()) as engine:
        changes = set_customers(engine, number, lines)
    message = f"{counted(changes.set, 'customer')} set, {changes.removed} removed"
    if changes.unknown:
        message += f"; {counted(changes.unknown, 'user')} of these have no usage so far"
    write_message(message)
