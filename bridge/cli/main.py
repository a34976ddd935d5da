"""The commands of ``bridge``: arguments, errors and exit codes."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence

from bridge.cli.hints import hint
from bridge.cli.parser import commands_of, make_parser
from bridge.flops.errors import ConfigError

EXIT_RUN_TIME = 1
EXIT_CONFIGURATION = 2
EXIT_INTERRUPTED = 130  # as shells report SIGINT


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
        _drop_output()
        return 0
    except OSError as error:  # a full disk, for example
        _drop_output()
        return _fail(f"error: {error}", EXIT_RUN_TIME)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)


def _drop_output() -> None:
    """What standard output does not take is dropped, or Python's last flush would fail too and set the exit code to 120."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _take_overrides(parser: argparse.ArgumentParser, arguments: argparse.Namespace, rest: list[str]) -> None:
    """argparse gives up on positionals that follow an option; they are overrides as well."""
    options = [text for text in rest if text.startswith("-")]
    if options:
        parser.error(f"unknown argument {options[0]}{hint(options[0], parser._option_string_actions)}")
    if rest and "overrides" not in arguments:
        parser.error(f"unknown argument {rest[0]}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]


#: Characters of an error, and of one word in it; what was typed may have thousands.
LONGEST_ERROR, LONGEST_WORD = 2000, 200


def _fail(message: str, code: int) -> int:
    from bridge.text import shortened

    if os.environ.get("RANK", "0") == "0":  # one message a job
        short = re.sub(r"\S+", lambda word: shortened(word[0], LONGEST_WORD), message)
        print(f"bridge: {shortened(short, LONGEST_ERROR)}", file=sys.stderr, flush=True)
    return code
