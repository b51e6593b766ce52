"""The command ``turn-accounting``: lists all commands and turns errors into exit codes.

Exit codes: 0 done, 1 a check failed or a difference was found, 2 wrong usage or configuration, 3
not complete yet. An error is one line on standard error.

A command's module is imported when the command runs: all of them together take half a second, which
``--help`` does not need.
"""

import gc
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any, Final, NamedTuple, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from accounting.cli.completion import (
    SCRIPTS,
    VARIABLE,
    candidates,
    completion_lines,
    names_in_books,
)
from accounting.cli.help import install_help, value_word, write_root_page, writing_option
from accounting.cli.output import (
    flush_output,
    is_incomplete,
    prepare_output,
    write,
    write_message,
)
from accounting.errors import (
    AccountingError,
    ConfigurationError,
    NotYet,
    StopRequested,
    UsageError,
)
from accounting.plurals import listed


class CommandEntry(NamedTuple):
    """A command or group: its module in ``accounting.cli``, and the first line of its help."""

    module: str
    summary: str


COMMAND_GROUPS: Final[Mapping[str, Mapping[str, CommandEntry]]] = {  # as the help shows them
    "Run": {
        "up": CommandEntry("run", "Run everything; embedded servers where no URLs are set."),
        "collect": CommandEntry("run", "Capture from Redis and load into Postgres."),
        "schedule": CommandEntry("run", "Run the scheduled jobs, such as settle and rollup."),
        "simulate": CommandEntry(
            "simulate", "Publish what a coturn fleet would, and print the exact totals."
        ),
        "serve": CommandEntry("serve", "Serve the page and the HTTP API."),
        "demo": CommandEntry("demo", "See it work: servers, a simulated fleet, the books."),
    },
    "Read": {
        "usage": CommandEntry("reports", "List usage per user, realm, server or transport."),
        "sessions": CommandEntry("reports", "List sessions, newest first."),
        "top": CommandEntry("top", "Show live sessions, users and realms with rates, refreshed."),
        "rates": CommandEntry("rates", "List what each server does now, by realm."),
        "export": CommandEntry(
            "export", "Export usage, sessions, statements, adjustments, FOCUS, reports."
        ),
    },
    "Bill": {
        "period": CommandEntry("periods", "List and close billing periods."),
        "statement": CommandEntry(
            "statement", "Show a closed period: lines, total, gaps and adjustments."
        ),
        "adjust": CommandEntry("periods", "Correct a closed period by hand."),
        "limit": CommandEntry(
            "limits", "Set, list and remove limits of usage, and show how much is used."
        ),
        "feed": CommandEntry("feed", "Print the billing worker's events."),
        "webhook": CommandEntry(
            "webhook", "Deliver the feed to other servers, signed and in order."
        ),
    },
    "Audit": {
        "gaps": CommandEntry("gaps", "List when messages may have been lost, and why."),
        "verify": CommandEntry(
            "audit", "Recompute everything from the reports; exit 1 on a difference."
        ),
        "reconcile": CommandEntry(
            "audit", "Compare with coturn's own log; exit 1 when a session differs."
        ),
        "trace": CommandEntry("trace", "Trace a statement's line or a session to its reports."),
        "rebuild": CommandEntry("audit", "Replace sessions and roll-ups by what the reports say."),
        "doctor": CommandEntry(
            "diagnose", "Examine servers, spool, clocks and events; exit 1 on errors."
        ),
        "health": CommandEntry(
            "diagnose", "Print problems, which exit 1, and warnings, which do not."
        ),
    },
    "Administer": {
        "realm": CommandEntry("realms", "List, set and remove the rules of realms."),
        "source": CommandEntry("sources", "List, rename, retire and reopen sources."),
        "config": CommandEntry(
            "diagnose", "Print the settings in force and where each comes from."
        ),
        "token": CommandEntry("token", "Create, list and revoke tokens for the page and the API."),
        "erase": CommandEntry("erase", "Erase a person's names and addresses; all figures stay."),
        "front": CommandEntry("front", "Read and bill many cells as one."),
        "db": CommandEntry("admin", "Upgrade and check the database's schema."),
        "job": CommandEntry("admin", "Run scheduled jobs by hand."),
    },
}
COMMANDS: Final[Mapping[str, CommandEntry]] = {
    name: entry for group in COMMAND_GROUPS.values() for name, entry in group.items()
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
        install_help(command, name)
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


_OPTIONS_OF_THE_PROGRAM: Final = {
    "version": "--version",
    "completion": "--completion bash",
    "help": "--help",
}


class _Commands(TyperGroup):
    """The group of all commands."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _LazyCommands()  # type: ignore[assignment]  # nothing is added to it

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] in _OPTIONS_OF_THE_PROGRAM:
            raise UsageError(
                f"{args[0]} is an option: `turn-accounting {_OPTIONS_OF_THE_PROGRAM[args[0]]}`"
            )
        return super().resolve_command(ctx, args)

    def get_help_option(self, ctx: Any) -> Any:
        return writing_option(super().get_help_option(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        write_root_page(self, ctx, formatter, COMMAND_GROUPS)


app = typer.Typer(
    cls=_Commands,
    name="turn-accounting",
    help="Usage accounting for coturn: every byte that coturn reports, counted once, in SQL.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_completion(shell: str | None) -> None:
    if shell is None:
        return
    if shell not in SCRIPTS:
        raise UsageError(f"--completion {shell!r}: expected {listed(SCRIPTS)}")
    write(SCRIPTS[shell])
    raise typer.Exit


def _print_version(wanted: bool) -> None:
    if wanted:
        from accounting.installation import version  # --help does not need it

        write(f"turn-accounting {version()}\n")
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
    _completion: Annotated[
        str | None,
        typer.Option(
            "--completion",
            metavar="bash|zsh|fish",
            callback=_print_completion,
            is_eager=True,
            help="Print a script for completion.",
        ),
    ] = None,
) -> None:
    """Usage accounting for coturn: every byte that coturn reports, counted once, in SQL."""


def main() -> NoReturn:
    """Run the command line and exit."""
    prepare_output()
    if shell := os.environ.get(VARIABLE):
        _complete(shell)
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
    except StopRequested as error:
        write_message(str(error))
        sys.exit(0)
    except AccountingError as error:
        write_message(str(error))
        sys.exit(1)
    sys.exit((code if isinstance(code, int) else 0) or (3 if is_incomplete() else 0))


def _complete(shell: str) -> NoReturn:
    """Print what could stand for the last argument."""
    summaries = {name: entry.summary for name, entry in COMMANDS.items()}
    root = typer.main.get_command(app)
    found = candidates(root, summaries, sys.argv[1:], names_in_books)
    for line in completion_lines(shell, found):
        write(f"{line}\n")
    flush_output()
    os._exit(0)  # a connection that is not answered would delay it


def _usage_message(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    command = "turn-accounting" if context is None else context.command_path
    if said := _wrong_value(error):
        return said
    message = error.format_message()
    param = getattr(error, "param", None)
    if param is not None and param.param_type_name == "argument":
        message = message.replace(f"'{param.name}'", f"'{value_word(param)}'")
    if context is not None and message == context.get_help():  # there is no command
        write(f"{message}\n")
        message = "no command is given"
    return f"{' '.join(message.split()).rstrip('.')}: see `{command} --help`"


_EXPECTATIONS: Final = (
    (re.compile(r"Input should be greater than or equal to (\S+)"), r"\1 or more"),
    (re.compile(r"Input should be less than or equal to (\S+)"), r"\1 or less"),
    (re.compile(r"Input should be a valid integer.*"), "an integer"),
    (re.compile(r"Input should be a valid number.*"), "a number"),
)
_NOT_A_CHOICE: Final = re.compile(r".* is not one of (.+)", re.DOTALL)


def _wrong_value(error: typer.TyperException) -> str:
    """What is wrong with an option's value, as other messages say it; '' for another error."""
    param = getattr(error, "param", None)
    if param is None or param.param_type_name != "option":
        return ""
    message = str(getattr(error, "message", "")).rstrip(".")
    expected = next(
        (match.expand(text) for form, text in _EXPECTATIONS if (match := form.fullmatch(message))),
        "",
    )
    if match := _NOT_A_CHOICE.fullmatch(message):
        expected = listed([choice.strip(" '") for choice in match[1].split(",")])
    return f"{_option_and_value(param.opts)}: expected {expected}" if expected else ""


def _option_and_value(names: Sequence[str]) -> str:
    """The option as it was given, with the value that follows it."""
    for index, word in reversed(list(enumerate(sys.argv))):
        name, equals, value = word.partition("=")
        if name in names and (equals or sys.argv[index + 1 :]):
            return f"{name} {value if equals else sys.argv[index + 1]!r}"
    return names[0]
