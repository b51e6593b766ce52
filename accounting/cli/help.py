"""Help pages: what a command does, its arguments and options in plain words, and examples."""

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, Final

from accounting.cli.examples import EXAMPLES
from accounting.cli.output import write

_WORDS: Final = {
    "realm": "REALM",
    "user": "USER",
    "period": "PERIOD",
    "source": "SOURCE",
    "author": "NAME",
    "reason": "TEXT",
    "adjustment": "ID",
    "user_key": "KEY",
    "consumer": "NAME",
    "time_zone": "ZONE",
    "holds_from": "DAY",
    "separator": "TEXT",
    "directory": "DIRECTORY",
    "output": "DIRECTORY",
    "version": "VERSION",
    "without": "SOURCE",
    "seconds": "N",
    "anchor_day": "DAY",
    "grace_seconds": "SECONDS",
}
"""What stands for the value of an option or argument; numbers and others are an N or TEXT."""


def install_help(command: Any, path: str) -> None:
    """Give a command, and those below it, its help page. ``path``: such as ``realm set``."""
    command.format_help = lambda context, formatter: _write_page(command, path, context, formatter)
    own_option = command.get_help_option
    command.get_help_option = lambda context: writing_option(own_option(context))
    for name, child in getattr(command, "commands", {}).items():
        install_help(child, f"{path} {name}")


def writing_option(option: Any) -> Any:
    """The option ``--help``, which then prints like any command: write errors are one line."""
    option.callback = _show_help
    return option


def _show_help(context: Any, _option: Any, is_wanted: bool) -> None:
    if is_wanted and not context.resilient_parsing:
        write(f"{context.get_help()}\n")
        context.exit()


_MORE_HELP: Final = """
`turn-accounting COMMAND -h` explains a command, with examples. Completion:
  source <(turn-accounting --completion bash)      # also zsh
  turn-accounting --completion fish | source
"""


def write_root_page(
    command: Any, context: Any, formatter: Any, groups: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write the page of the program: all commands in their groups, with their summaries."""
    formatter.write_usage(context.command_path, "COMMAND [OPTIONS]")
    formatter.write_paragraph()
    formatter.write_text(command.help)
    for title, group in groups.items():
        entries = [(f"{name:<10}", entry.summary) for name, entry in group.items()]
        _write_section(formatter, title, entries)
    _write_options(command, context, formatter)
    _write_examples(formatter, EXAMPLES[""])
    formatter.write(_MORE_HELP)


def _write_page(command: Any, path: str, context: Any, formatter: Any) -> None:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    children = getattr(command, "commands", {})
    words = ["COMMAND"] if children else [_argument_usage(argument) for argument in arguments]
    formatter.write_usage(context.command_path, " ".join([*words, "[OPTIONS]"]))
    formatter.write_paragraph()
    formatter.write_text(command.help or "")
    commands = [(name, child.get_short_help_str(limit=200)) for name, child in children.items()]
    _write_section(formatter, "Commands", commands)
    entries = [(value_word(argument), argument.help or "") for argument in arguments]
    _write_section(formatter, "Arguments", entries)
    _write_options(command, context, formatter)
    _write_examples(formatter, EXAMPLES.get(path, ()))


def _write_options(command: Any, context: Any, formatter: Any) -> None:
    options = [param for param in command.get_params(context) if param.param_type_name == "option"]
    entries = [(_option_names(option), _option_text(option)) for option in options]
    _write_section(formatter, "Options", entries)


def _write_examples(formatter: Any, examples: Iterable[str]) -> None:
    """Write the section of examples, each uncut on a line of its own."""
    lines = [f"  {example}\n" for example in examples]
    if lines:
        formatter.write("\nExamples:\n" + "".join(lines))


def _write_section(formatter: Any, title: str, entries: Sequence[tuple[str, str]]) -> None:
    if entries:
        with formatter.section(title):
            formatter.write_dl(entries)


def value_word(param: Any) -> str:
    """What stands for the value of a parameter, such as ``REALM`` or ``hour|day|month``."""
    if param.metavar is not None:
        return str(param.metavar)
    if param.param_type_name == "argument":
        return str(param.name).upper()
    word = _WORDS.get(param.name)
    if word is not None:
        return word
    return "N" if isinstance(param.default, int | float) else "TEXT"


def _argument_usage(argument: Any) -> str:
    word = value_word(argument)
    return word if argument.required else f"[{word}]"


def _option_names(option: Any) -> str:
    # The short one first; click has those of --help in no order.
    names = ", ".join(sorted(option.opts, key=lambda name: name.startswith("--")))
    return names if option.is_flag else f"{names} {value_word(option)}"


def _option_text(option: Any) -> str:
    notes = []
    default = option.default
    if option.required:
        notes.append("required")
    elif not option.is_flag and default and not callable(default) and default != "0":
        notes.append(f"default: {default.value if isinstance(default, Enum) else default}")
    return f"{option.help or ''}{f'  [{notes[0]}]' if notes else ''}"
