"""The command ``turn-accounting``: registers all commands and turns errors into exit codes.

Exit codes: 0 done, 1 a check failed or a difference was found, 2 wrong usage or configuration, 3
not complete yet. An error is one line on standard error.
"""

import sys
from typing import NoReturn

import typer

from accounting.cli import (
    admin,
    audit,
    demo,
    diagnose,
    erase,
    export,
    feed,
    periods,
    realms,
    reports,
    run,
    simulate,
    sources,
    statement,
    trace,
)
from accounting.cli.output import flush_output, prepare_output, write_message
from accounting.errors import AccountingError, ConfigurationError, NotYet, UsageError

app = typer.Typer(
    name="turn-accounting",
    help="Usage accounting for coturn: every byte that coturn reports, counted once, in SQL.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

for module in (  # in the order of the help text
    admin,
    realms,
    sources,
    run,
    simulate,
    feed,
    export,
    periods,
    statement,
    audit,
    trace,
    erase,
    diagnose,
    reports,
    demo,
):
    module.register(app)


def main() -> NoReturn:
    """Run the command line and exit."""
    prepare_output()
    try:
        code = app(prog_name="turn-accounting", standalone_mode=False)
        flush_output()
    except typer.TyperException as error:
        write_message(_usage_message(error))
        sys.exit(error.exit_code)
    except (ConfigurationError, UsageError) as error:
        write_message(str(error))
        sys.exit(2)
    except NotYet as error:
        write_message(str(error))
        sys.exit(3)
    except AccountingError as error:
        write_message(str(error))
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _usage_message(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    command = "turn-accounting" if context is None else context.command_path
    # Without a command Typer has printed the help, and its error has no message.
    message = " ".join(error.format_message().split()).rstrip(".") or "no command is given"
    return f"{message}: see `{command} --help`"
