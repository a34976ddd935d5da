"""The parser of all commands; a command's module is imported where its options are wanted."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterable
from typing import Any, NoReturn

from bridge import __version__
from bridge.cli import COMMANDS
from bridge.cli.hints import hint
from bridge.flops.errors import ConfigError


class _Parser(argparse.ArgumentParser):
    """Reports a wrong argument like any other configuration error: in one line, with what it might have meant."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            meant = hint(str(value), map(str, action.choices or ()))
            raise argparse.ArgumentError(action, f"{error.message}{meant}") from None


def make_parser(names: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """The commands, those of ``names`` with their options; the others are listed only, and not imported."""
    parser = _Parser(prog="bridge", description="Exact FLOPs and MFU accounting for Megatron-style training.")
    parser.add_argument("--version", action="version", version=f"bridge {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        if name in names:
            importlib.import_module(f"bridge.cli.commands.{name}").add_to(commands)
        else:
            commands.add_parser(name, help=summary)
    return parser


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, by name."""
    return next(dict(action.choices) for action in parser._actions if isinstance(action, argparse._SubParsersAction))
