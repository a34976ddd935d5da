"""``bridge completion``: a completion script for the shell, made from the commands themselves."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import typing
from collections.abc import Iterable, Iterator

from bridge.cli import COMMANDS
from bridge.cli import arguments as options
from bridge.cli.parser import commands_of, make_parser
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

_EXAMPLES = {
    "for this shell only: source <(...)": "bridge completion bash",
    "for fish": "bridge completion fish",
}


def add_to(commands: options.Commands[options.Parser]) -> None:
    parser = options.add_command(
        commands,
        "completion",
        run,
        "Print a script that completes commands, options, recipes and configuration keys in a shell: "
        "source <(bridge completion bash)",
        _EXAMPLES,
        json=False,
    )
    parser.add_argument("shell", choices=(*_PREAMBLES, "fish"))


def run(arguments: argparse.Namespace) -> int:
    print(script(arguments.shell, commands_of(make_parser())), end="")
    return 0


def script(shell: str, commands: dict[str, options.Parser]) -> str:
    """The script for a shell."""
    offers = {name: _offers(parser) for name, parser in commands.items()}
    return _fish(offers) if shell == "fish" else _bash(shell, offers)


@dataclasses.dataclass(frozen=True)
class _Offers:
    """What may follow a command: options with their values (None: any), and words."""

    options: dict[str, list[str] | None]
    words: list[str]


def _offers(parser: options.Parser) -> _Offers:
    known: dict[str, list[str] | None] = {}
    words: list[str] = []
    for action in parser._actions:
        choices = None if action.choices is None else [str(choice) for choice in action.choices]
        known |= dict.fromkeys(action.option_strings, choices)
        if choices and not action.option_strings:
            words += choices
        if action.dest == "overrides":
            words += [*(path.stem for path in list_recipes()), *_keys(Config)]
    return _Offers(known, words)


def _bash(shell: str, commands: dict[str, _Offers]) -> str:
    values = [
        f'        "{name} {option}") words={_quoted(choices)} ;;'
        for name, offers in commands.items()
        for option, choices in offers.options.items()
        if choices
    ]
    words = [f"            {name}) words={_quoted([*offers.options, *offers.words])} ;;" for name, offers in commands.items()]
    return _SCRIPT.format(
        shell=shell, preamble=_PREAMBLES[shell], values="\n".join(values), commands="\n".join(words), names=_quoted(commands)
    )


def _fish(commands: dict[str, _Offers]) -> str:
    lines = ["# Completion of `bridge`. Load it with: bridge completion fish | source"]
    lines += [f"complete -c bridge -n __fish_use_subcommand -xa {name} -d {shlex.quote(COMMANDS[name])}" for name in commands]
    for name, offers in commands.items():
        only = f"complete -c bridge -n '__fish_seen_subcommand_from {name}'"
        for option, choices in offers.options.items():
            kind = "-l " + option[2:] if option.startswith("--") else "-s " + option[1:]
            lines.append(f"{only} {kind}" + (f" -xa {_quoted(choices)}" if choices else ""))
        if offers.words:
            lines.append(f"{only} -a {_quoted(offers.words)}")
    return "\n".join(lines) + "\n"


def _quoted(words: Iterable[str]) -> str:
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
