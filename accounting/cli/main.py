"""The command ``turn-accounting``: the one place where settings, servers and jobs come together.

Data goes to standard output, everything else to standard error. Exit: 0 done, 1 a check failed or
a difference was found, 2 wrong use or configuration, 3 not yet.
"""

import sys
from typing import Any

import typer

from accounting.cli import (
    admin,
    audit,
    billing,
    demo,
    diagnose,
    export_feed,
    realms,
    reports,
    run,
    simulation,
    sources,
)
from accounting.cli.terminal import flush_output, prepare_output, warn
from accounting.config import Settings, load_settings
from accounting.errors import AccountingError, ConfigurationError, NotYet, UsageError
from accounting.logs import configure_logging

WrongUse: type[BaseException] | None = typer.BadParameter.__base__
"""What the command-line library raises for wrong use; it exports this class under no name."""

app = typer.Typer(
    name="turn-accounting",
    help="Usage accounting for coturn: every byte that coturn reports, counted once, in SQL.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _settings(**arguments: object) -> Settings:
    settings = load_settings(**arguments)
    configure_logging(settings.log_level, settings.log_format)
    return settings


for mount in (  # in the order in which help lists them
    admin.mount,
    realms.mount,
    sources.mount,
    run.mount,
    simulation.mount,
    export_feed.mount,
    billing.mount,
    audit.mount,
    diagnose.mount,
    reports.mount,
):
    mount(app, _settings)
demo.mount(app)


def main() -> None:
    """Run the command line; errors of ours end in one line and their exit code."""
    assert WrongUse is not None
    prepare_output()
    try:
        code = app(prog_name="turn-accounting", standalone_mode=False)
        flush_output()
    except WrongUse as error:
        warn(_in_one_line(error))
        sys.exit(2)
    except (ConfigurationError, UsageError) as error:
        warn(str(error))
        sys.exit(2)
    except NotYet as error:
        warn(str(error))
        sys.exit(3)
    except AccountingError as error:
        warn(str(error))
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _in_one_line(error: Any) -> str:
    command = "turn-accounting" if error.ctx is None else error.ctx.command_path
    if type(error).__name__ == "NoArgsIsHelpError":
        return f"no command is given: see `{command} --help`"
    message = " ".join(error.format_message().split()).rstrip(".")
    return f"{message}: see `{command} --help`"
