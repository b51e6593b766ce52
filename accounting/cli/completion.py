"""Completion of commands and options in bash, zsh and fish.

``turn-accounting --completion SHELL`` prints a script for the shell. It calls the command with the
words so far and with VARIABLE set to the shell's name; what could stand there is printed, a line
each.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from accounting.cli.help import value_word

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
    root: Any, summaries: Mapping[str, str], words: Sequence[str]
) -> Iterator[Candidate]:
    """What could stand for the last of ``words``, those after the program's name.

    ``root``: the group of all commands; ``summaries``: of its commands, which need not be imported
    to be named.
    """
    *before, last = words or ("",)
    command, options, expected = root, [], None
    for word in before:
        if expected is not None:
            expected = None
        elif word.startswith("-"):
            expected = _expected_value(command, word)
            options.append(word)
        elif word in getattr(command, "commands", {}):
            command = command.commands[word]
    if expected is not None:
        found = [Candidate(choice, "") for choice in _choices(expected)]
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


def _choices(param: Any) -> Sequence[str]:
    word = value_word(param)
    return word.split("|") if "|" in word else ()


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
