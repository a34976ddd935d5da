"""The commands of ``bridge``: arguments, errors and exit codes."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from bridge import __version__
from bridge.cli import COMMANDS
from bridge.cli.hints import hint
from bridge.flops.shapes import ConfigError

EXIT_RUN_TIME = 1
EXIT_CONFIGURATION = 2
EXIT_INTERRUPTED = 130  # as shells report SIGINT


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
            importlib.import_module(f"bridge.cli.{name}").add_to(commands)
        else:
            commands.add_parser(name, help=summary)
    return parser


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, by name."""
    return next(dict(action.choices) for action in parser._actions if isinstance(action, argparse._SubParsersAction))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 (run time) or 2 (configuration)."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = make_parser(argv[:1])
    try:
        arguments, rest = parser.parse_known_args(argv)
        _take_overrides(commands_of(parser)[arguments.command], arguments, rest)
        code = int(arguments.run(arguments))
        sys.stdout.flush()
        return code
    except ConfigError as error:
        return _fail(f"error: {error}", EXIT_CONFIGURATION)
    except BrokenPipeError:  # the reader of our output, `head` for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python's last flush is quiet too
        return 0
    except OSError as error:  # a full disk, for example
        return _fail(f"error: {error}", EXIT_RUN_TIME)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)


def _take_overrides(parser: argparse.ArgumentParser, arguments: argparse.Namespace, rest: list[str]) -> None:
    """argparse gives up on positionals that follow an option; they are overrides as well."""
    options = [text for text in rest if text.startswith("-")]
    if options:
        parser.error(f"unknown argument {options[0]}{hint(options[0], parser._option_string_actions)}")
    if rest and "overrides" not in arguments:
        parser.error(f"unknown argument {rest[0]}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]


def _fail(message: str, code: int) -> int:
    if os.environ.get("RANK", "0") == "0":  # one message a job
        print(f"bridge: {message}", file=sys.stderr, flush=True)
    return code
