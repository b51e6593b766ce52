"""Completion of commands and options in bash, zsh and fish.

``turn-accounting --completion SHELL`` prints a script for the shell. It calls the command with the
words so far and with VARIABLE set to the shell's name; what could stand there is printed, a line
each.
"""

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any, Final, NamedTuple

from accounting.cli.help import value_word
from accounting.errors import AccountingError

ANSWER_SECONDS: Final = 0.3
_PLAIN: Final = re.compile(r"\w[\w.-]*")
VARIABLE: Final = "_TURN_ACCOUNTING_COMPLETE"
SCRIPTS: Final[Mapping[str, str]] = {
    "bash": """\
_turn_accounting() {
    local IFS=$'\\n'
    COMPREPLY=($(_TURN_ACCOUNTING_COMPLETE=bash "${COMP_WORDS[0]}" \\
        "${COMP_WORDS[@]:1:$COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _turn_accounting turn-accounting
""",
    "zsh": """\
#compdef turn-accounting
_turn_accounting() {
    local -a found
    found=("${(@f)$(_TURN_ACCOUNTING_COMPLETE=zsh "${words[1]}" \\
        "${(@)words[2,$CURRENT]}" 2>/dev/null)}")
    if [[ -n "${found[1]}" ]]; then
        _describe -V turn-accounting found
    else
        _files
    fi
}
compdef _turn_accounting turn-accounting
""",
    "fish": """\
function __turn_accounting_complete
    set -l words (commandline --tokenize --cut-at-cursor --current-process)
    set -l token (commandline --current-token --cut-at-cursor)
    env _TURN_ACCOUNTING_COMPLETE=fish $words[1] $words[2..] "$token" 2>/dev/null
end
complete --command turn-accounting --no-files --arguments '(__turn_accounting_complete)'
complete --command turn-accounting --force-files \\
    --condition '__fish_seen_subcommand_from reconcile check'
""",
}


class Candidate(NamedTuple):
    """A word that could stand at the cursor, and what it means."""

    word: str
    summary: str


def candidates(
    root: Any,
    summaries: Mapping[str, str],
    words: Sequence[str],
    known_names: Callable[[str], Sequence[str]],
) -> Iterator[Candidate]:
    """What could stand for the last of ``words``, those after the program's name.

    ``root``: the group of all commands; ``summaries``: of its commands, which need not be imported
    to be named. ``known_names``: of the books, realms or sources.
    """
    *before, last = words or ("",)
    command, options, expected, path, arguments = root, [], None, "", 0
    for word in before:
        if expected is not None:
            expected = None
        elif word.startswith("-"):
            expected = _expected_value(command, word)
            options.append(word)
        elif word in getattr(command, "commands", {}):
            command, path = command.commands[word], f"{path} {word}".lstrip()
        else:
            arguments += 1
    if expected is None and not last.startswith("-"):
        expected = _expected_argument(command, arguments)
    if expected is not None:
        choices = _choices(command, path, expected, known_names)
        reverse = "-" if expected.name == "sort" and last.startswith("-") else ""
        found = [Candidate(f"{reverse}{choice}", "") for choice in choices]
    elif last.startswith("-"):
        found = [
            Candidate(name, param.help or "")
            for param in command.params
            if param.param_type_name == "option" and not param.hidden
            for name in param.opts
            if name.startswith("--") and name not in options
        ]
        found.append(Candidate("--help", "Show this page."))
    elif command is root:
        found = [Candidate(name, summary) for name, summary in summaries.items()]
    else:
        found = [
            Candidate(name, child.get_short_help_str(limit=200))
            for name, child in getattr(command, "commands", {}).items()
        ]
    return (candidate for candidate in found if candidate.word.startswith(last))


def _expected_value(command: Any, word: str) -> Any:
    """The option that ``word`` names, if a value follows it."""
    return next(
        (
            param
            for param in command.params
            if word in param.opts and param.param_type_name == "option" and not param.is_flag
        ),
        None,
    )


def _expected_argument(command: Any, number: int) -> Any:
    """The argument of a command that comes after so many others; None for another one."""
    if getattr(command, "commands", None) is not None:
        return None
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    return arguments[number] if number < len(arguments) else None


def _choices(
    command: Any, path: str, param: Any, known_names: Callable[[str], Sequence[str]]
) -> Sequence[str]:
    """The values of an option or argument, as far as they can be named."""
    word = value_word(param)
    if "|" in word:
        return word.split("|")
    group = path.split(" ", maxsplit=1)[0]
    match param.name:
        case "sort":
            listing = getattr(command.callback, "listing", None)
            return () if listing is None else list(listing().sort_names())
        case "name" if group == "job":
            from accounting.cli.admin import ALL_JOB_NAMES

            return ALL_JOB_NAMES
        case "realm" | "source":
            return known_names(param.name)
        case "without":
            return known_names("source")
        case "name" | "old_name" if group in {"realm", "source"}:
            return known_names(group)
        case _:
            return ()


def names_in_books(kind: str) -> Sequence[str]:
    """The names of realms or sources that need no quotes; none of books that don't answer soon.

    Shells insert a name as it is, and run what it says: other ones are left out. Neither creates
    nor starts a database.
    """
    from accounting.config import load_settings
    from accounting.embedded import running_postgres
    from accounting.ops import servers
    from accounting.reporting import view_queries
    from accounting.reporting.reader import DatabaseReader

    found: list[str] = []

    def look_up() -> None:
        with suppress(AccountingError, OSError):
            settings = load_settings()
            url = servers.configured_database_url(settings)
            if url is None:
                server = running_postgres(settings.data_dir)
                if server is None:
                    return
                url = server.url(servers.READER_ROLE)
            query = view_queries.known_realms() if kind == "realm" else view_queries.sources()
            with closing(DatabaseReader(url)) as reader:
                names = [
                    row["name" if kind == "realm" else "source"] for row in reader.read_rows(query)
                ]
            found.extend(name for name in names if _PLAIN.fullmatch(name))

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return tuple(found)


def completion_lines(shell: str, found: Iterator[Candidate]) -> Iterator[str]:
    """The lines that the script of a shell expects."""
    for candidate in found:
        match shell:
            case "zsh":
                word = candidate.word.replace(":", r"\:")
                yield f"{word}:{candidate.summary}" if candidate.summary else word
            case "fish" if candidate.summary:
                yield f"{candidate.word}\t{candidate.summary}"
            case _:
                yield candidate.word
