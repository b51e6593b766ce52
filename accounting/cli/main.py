"""The command ``turn-accounting``: lists all commands and turns errors into exit codes.

Exit codes: 0 done, 1 a check failed or a difference was found, 2 wrong usage or configuration, 3
not complete yet. An error is one line on standard error.

A command's module is imported when the command runs: all of them together take half a second, which
``--help`` does not need.
"""

import gc
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, Final, NamedTuple, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from accounting.cli.output import flush_output, prepare_output, write, write_message
from accounting.errors import AccountingError, ConfigurationError, NotYet, UsageError


class CommandEntry(NamedTuple):
    """A command or group: its module in ``accounting.cli``, and the first line of its help."""

    module: str
    summary: str
    is_hidden: bool = False


COMMANDS: Final[Mapping[str, CommandEntry]] = {  # in the order of the help text
    "up": CommandEntry(
        "run", "Run everything: capture, load and all jobs; embedded servers where no URLs are set."
    ),
    "collect": CommandEntry(
        "run", "Capture from Redis into the spool, and load the spool into Postgres."
    ),
    "schedule": CommandEntry("run", "Run the scheduled jobs, such as settle and rollup."),
    "simulate": CommandEntry(
        "simulate",
        "Publish what a coturn fleet would, and print the exact totals that the books must show.",
    ),
    "feed": CommandEntry(
        "feed", "Print the billing worker's feed: ended sessions, closed periods, adjustments."
    ),
    "adjust": CommandEntry(
        "periods", "Correct a closed period by hand: posted in the open period, apart from usage."
    ),
    "statement": CommandEntry(
        "statement",
        "Show a closed period: its lines, how much is estimated, its gaps and adjustments.",
    ),
    "verify": CommandEntry(
        "audit", "Recompute everything from the reports and compare; exit 1 on any difference."
    ),
    "rebuild": CommandEntry(
        "audit", "Replace sessions and roll-ups by what the reports say; adjusts closed periods."
    ),
    "reconcile": CommandEntry(
        "audit", "Compare the books with coturn's own log; exit 1 when any session differs."
    ),
    "trace": CommandEntry(
        "trace", "Trace a statement's line or an adjustment to its sessions and their reports."
    ),
    "erase": CommandEntry(
        "erase",
        "Erase a person's names and addresses; all figures stay, under a key that hides the name.",
    ),
    "health": CommandEntry(
        "diagnose", "Print what is wrong; exit 1 when anything is.", is_hidden=True
    ),
    "doctor": CommandEntry(
        "diagnose", "Examine Redis, Postgres, spool, clocks and events; exit 1 on errors."
    ),
    "config": CommandEntry(
        "diagnose", "Print the settings in force and the origin of each; secrets are masked."
    ),
    "sessions": CommandEntry(
        "reports",
        "List the sessions that were open in a span of time, newest first; UTC by default.",
    ),
    "usage": CommandEntry(
        "reports",
        "List usage per user or realm; times without an offset are in the realm's time zone.",
    ),
    "demo": CommandEntry(
        "demo", "See it work: servers, a simulated fleet, the books.", is_hidden=True
    ),
    "db": CommandEntry("admin", "Upgrade and check the database's schema."),
    "job": CommandEntry("admin", "Run scheduled jobs by hand."),
    "realm": CommandEntry("realms", "List and set the rules of realms."),
    "source": CommandEntry("sources", "List, rename, retire and reopen sources."),
    "export": CommandEntry("export", "Export usage, sessions, statements or adjustments."),
    "period": CommandEntry("periods", "List and close billing periods."),
}


class _LazyCommands(Mapping[str, "TyperCommand | TyperGroup"]):
    """The commands by name, imported when they are looked up."""

    def __getitem__(self, name: str) -> "TyperCommand | TyperGroup":
        module = import_command(COMMANDS[name].module)
        app = typer.Typer(rich_markup_mode=None)
        app.callback()(lambda: None)  # so that it is a group, also of one command
        module.register(app)
        group = typer.main.get_command(app)
        assert isinstance(group, TyperGroup)
        command = group.commands[name]
        assert isinstance(command, TyperCommand | TyperGroup)
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


def import_command(module: str) -> Any:
    """Import the module of a command.

    Importing creates hardly any garbage, and collecting it took a fifth of a command's start. So
    the collector is off meanwhile; ``freeze`` then exempts the objects, which live to the end.
    """
    gc.disable()
    try:
        return import_module(f"accounting.cli.{module}")
    finally:
        gc.freeze()
        gc.enable()


class _Commands(TyperGroup):
    """The group of all commands."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _LazyCommands()  # type: ignore[assignment]  # nothing is added to it

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, entry.summary) for name, entry in COMMANDS.items() if not entry.is_hidden]
            )


app = typer.Typer(
    cls=_Commands,
    name="turn-accounting",
    help="Usage accounting for coturn: every byte that coturn reports, counted once, in SQL.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        write(f"turn-accounting {version('turn-accounting')}\n")
        raise typer.Exit


@app.callback()
def all_commands(
    *,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Usage accounting for coturn: every byte that coturn reports, counted once, in SQL."""


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
    message = error.format_message()
    if context is not None and message == context.get_help():  # there is no command
        write(f"{message}\n")
        message = "no command is given"
    return f"{' '.join(message.split()).rstrip('.')}: see `{command} --help`"
