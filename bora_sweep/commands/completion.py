"""`bora-sweep completion`: scripts for shells, and the answers that they ask for.

A script hands the words of the line to `bora-sweep completion answer`, which prints a candidate a line. A blank after
it says that the word is whole. No shell needs to know the keys, and no script is made anew with a release.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from glob import escape, iglob

from bora_sweep.commands.common import DONE
from bora_sweep.errors import InputError

TEXT = """Print a script that completes commands, options, keys, their values and files in a shell.

bash:  eval "$(bora-sweep completion bash)"          in ~/.bashrc
zsh:   eval "$(bora-sweep completion zsh)"           in ~/.zshrc, after compinit
fish:  bora-sweep completion fish | source           in ~/.config/fish/config.fish"""
SCRIPTS = {
    "bash": """\
_bora_sweep() {
    local line=${COMP_LINE:0:COMP_POINT} words current breaks= kept= answer IFS=$' \\t\\n'
    read -r -a words <<< "$line"  # at blanks alone: bash splits at = and : too
    [[ $line == *[[:blank:]] ]] && words+=("")
    current=${words[${#words[@]} - 1]}
    [[ $COMP_WORDBREAKS == *=* ]] && breaks+='='
    [[ $COMP_WORDBREAKS == *:* ]] && breaks+=':'
    [[ -n $breaks ]] && kept=${current%"${current##*[$breaks]}"}  # what bash leaves as it is
    COMPREPLY=()
    while IFS= read -r answer; do
        COMPREPLY+=("${answer#"$kept"}")
    done < <("${words[0]}" completion answer -- "${words[@]:1}" 2> /dev/null)
}
complete -o nospace -o nosort -F _bora_sweep bora-sweep 2> /dev/null || complete -o nospace -F _bora_sweep bora-sweep
""",
    "zsh": """\
#compdef bora-sweep
_bora_sweep() {
    local answer
    local -a whole part
    for answer in ${(f)"$("${words[1]}" completion answer -- "${(@)words[2,CURRENT]}" 2> /dev/null)"}; do
        if [[ $answer == *' ' ]]; then whole+=("${answer% }"); else part+=("$answer"); fi
    done
    (( $#whole )) && compadd -V whole -- "${whole[@]}"
    (( $#part )) && compadd -V part -S '' -- "${part[@]}"
    (( $#whole + $#part ))
}
compdef _bora_sweep bora-sweep
""",
    "fish": """\
function __bora_sweep_answer
    set --local before (commandline --tokenize --cut-at-cursor --current-process)
    set --local current (commandline --current-token --cut-at-cursor)
    set --append before "$current"
    $before[1] completion answer -- $before[2..-1] 2> /dev/null | string trim --right
end
complete --command bora-sweep --no-files --keep-order --arguments '(__bora_sweep_answer)'
""",
}
FILES = (
    "data.path", "data.validation_path", "data.test_path", "data.groups_path",
    "data.split_from", "data.chat_template", "model.name",
    "init_from", "output",
)  # fmt: skip
"""Keys whose values are files or folders."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("shell", type=_shell, metavar="|".join(SCRIPTS), help="the shell of the script")
    parser.add_argument("words", nargs="*", default=[], help=argparse.SUPPRESS)


def _shell(word: str) -> str:
    """A shell, or what its script says; the latter is no choice of a user's."""
    if word not in (*SCRIPTS, "answer"):
        raise argparse.ArgumentTypeError(f"{word!r}: no such shell; give one of {', '.join(SCRIPTS)}")
    return word


def run(parsed: argparse.Namespace) -> int:
    """Print a script, or candidates for the last of the words."""
    if parsed.shell != "answer":
        if parsed.words:
            raise InputError(f"completion {parsed.shell} {parsed.words[0]}: takes no more words; drop it")
        print(SCRIPTS[parsed.shell], end="")
        return DONE
    words = parsed.words or [""]
    shown: dict[str, str] = {}
    for candidate in _candidates(parsed.parser, words):
        if candidate.startswith(words[-1]) and candidate.split() == [candidate.rstrip(" ")]:
            shown.setdefault(candidate.rstrip(" /"), candidate)  # a run is whole, and a folder too
    print(*shown.values(), sep="\n", end="\n" if shown else "")
    return DONE


def _candidates(parser: argparse.ArgumentParser, words: Sequence[str]) -> Iterator[str]:
    """What the last word could become, and more; a blank ends what is whole."""
    *before, current = words
    given: list[str] = []
    awaited: argparse.Action | None = None
    for word in before:
        option = parser._option_string_actions.get(word)
        commands = _commands(parser)
        if awaited is not None:
            awaited = None
        elif option is not None:
            awaited = option if option.nargs != 0 else None
        elif word in commands:
            parser = commands[word]
        else:
            given.append(word)
    if awaited is not None:
        yield from _values(awaited, given, current)
    elif current.startswith("-"):
        yield from (f"{name} " for name in parser._option_string_actions if name.startswith("--"))
    elif commands := _commands(parser):
        yield from (f"{name} " for name in commands)
    else:
        places = [action for action in parser._actions if not action.option_strings and action.metavar]
        if places:
            place = places[min(len(given), len(places) - 1)]
            if len(given) < len(places) or place.nargs == "*":
                yield from _values(place, given, current)


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return {name: each for action in found for name, each in action.choices.items()}


def _values(action: argparse.Action, given: Sequence[str], current: str) -> Iterator[str]:
    """Values of an argument, by its choices, else by what its metavar says that it takes."""
    kinds = str(action.metavar).replace("|", " ").split()
    if action.choices is not None:
        yield from (f"{choice} " for choice in action.choices)
    if {*SCRIPTS} <= {*kinds}:
        yield from (f"{shell} " for shell in SCRIPTS)
    if "RUN" in kinds and not given:
        yield from _runs()
    if "ID" in kinds and given:
        yield from ("best ", *_trials(given[0]))
    if "NAME" in kinds and "SIZE" in kinds:
        from bora_sweep.cards import GIGABYTES_OF

        yield from (f"{name} " for name in GIGABYTES_OF)
    if "key=value" in kinds:
        yield from _settings(current)
    if "WORD" in kinds:
        from bora_sweep.config.help import all_keys

        yield from dict.fromkeys(f"{key.section} " for key in all_keys())
        yield from (f"{key.name} " for key in all_keys())
    if any(kind.startswith("FILE") for kind in kinds):
        yield from _files(current)
    elif {"RUN", "OUT"} & {*kinds}:
        yield from (path for path in _files(current) if path.endswith("/"))


def _settings(current: str) -> Iterator[str]:
    """Keys, or the values of the key that is there."""
    from bora_sweep.config.help import all_keys

    name, assigned, value = current.partition("=")
    for key in all_keys():
        if not assigned:
            yield f"{key.name}="
        elif key.name == name and value.startswith("["):
            head = value[: max(value.rfind(","), 0) + 1]
            yield from (f"{name}={head}{choice}" for choice in key.choices if choice != "null")
        elif key.name == name:
            yield from (f"{name}={choice} " for choice in key.choices)
    if assigned and name == "output":
        yield from (f"{name}={run}" for run in _runs())
    if assigned and name in FILES:
        yield from (f"{name}={path}" for path in _files(value))


def _runs() -> Iterator[str]:
    """Folders of runs in `runs/`, the newest first."""
    yield from (f"{os.path.dirname(file)} " for file in sorted(iglob("runs/*/config.yaml"), reverse=True))


def _trials(run: str) -> Iterator[str]:
    files = sorted(iglob(os.path.join(escape(run), "results", "trials", "*.parquet")))
    yield from (f"{os.path.basename(file).removesuffix('.parquet')} " for file in files)


def _files(beginning: str) -> Iterator[str]:
    """Files and folders whose paths begin so; `~` stays as it is written."""
    folder, _, _ = beginning.rpartition("/")
    written = f"{folder}/" if "/" in beginning else ""
    for path in sorted(iglob(f"{escape(os.path.expanduser(written))}*")):
        yield f"{written}{os.path.basename(path)}{'/' if os.path.isdir(path) else ' '}"
