"""``bridge completion``: a completion script for the shell, made from the commands themselves."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import typing
from collections.abc import Iterator

from bridge.cli import COMMANDS
from bridge.cli import arguments as options
from bridge.config import Config, list_recipes

_SCRIPT = """\
# Completion of `bridge`. Load it with: source <(bridge completion {shell})
{preamble}_bridge() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=
    case "${{COMP_WORDS[1]}} $before" in
{values}
        *) case ${{COMP_WORDS[1]}} in
{commands}
        esac ;;
    esac
    [ "$COMP_CWORD" -eq 1 ] && words={names}
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    [[ ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace 2>/dev/null
    return 0
}}
complete -o default -o bashdefault -F _bridge bridge
"""
_PREAMBLES = {"bash": "", "zsh": "autoload -U +X bashcompinit && bashcompinit\n"}


def add_to(commands: options.Commands[options.Parser]) -> None:
    parser: options.Parser = commands.add_parser(
        "completion",
        help=COMMANDS["completion"],
        description="Print a script that completes commands, options, recipes and configuration keys in a shell: "
        "source <(bridge completion bash)",
    )
    parser.add_argument("shell", choices=tuple(_PREAMBLES))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from bridge.cli.main import commands_of, make_parser  # main imports every command, this one too

    print(script(arguments.shell, commands_of(make_parser())), end="")
    return 0


def script(shell: str, commands: dict[str, options.Parser]) -> str:
    """The script for a shell."""
    recipes, keys = [path.stem for path in list_recipes()], list(_keys(Config))
    values, words = [], []
    for name, parser in commands.items():
        known = list(parser._option_string_actions)
        for action in parser._actions:
            if action.choices and action.option_strings:
                patterns = "|".join(f'"{name} {option}"' for option in action.option_strings)
                values.append(f"        {patterns}) words={_quoted(action.choices)} ;;")
            elif action.choices:
                known += list(action.choices)
            if action.dest == "overrides":
                known += [*recipes, *keys]
        words.append(f"            {name}) words={_quoted(known)} ;;")
    return _SCRIPT.format(
        shell=shell,
        preamble=_PREAMBLES[shell],
        values="\n".join(values),
        commands="\n".join(words),
        names=_quoted(commands),
    )


def _quoted(words: typing.Iterable[str]) -> str:
    return shlex.quote(" ".join(words))


def _keys(section: type, prefix: str = "") -> Iterator[str]:
    """``model.num_layers=``, and so on."""
    hints = typing.get_type_hints(section)
    for item in dataclasses.fields(section):
        kinds = (hints[item.name], *typing.get_args(hints[item.name]))
        inner = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        if inner is None:
            yield f"{prefix}{item.name}="
        else:
            assert isinstance(inner, type)
            yield from _keys(inner, f"{prefix}{item.name}.")
