"""``bridge integrations``: which training loops are installed here, and the lines that put the callback into each."""

from __future__ import annotations

import argparse

from bridge.cli import arguments as options
from bridge.cli.console import Output, make_table, print_json
from bridge.flops import ConfigError
from bridge.integrations.catalogue import ADAPTERS, Adapter

_EXAMPLES = {
    "all frameworks, and which are installed": "bridge integrations",
    "the lines for one of them": "bridge integrations accelerate",
}


def add_to(commands: options.Commands[options.Parser]) -> None:
    parser = options.add_command(
        commands,
        "integrations",
        run,
        "List the training loops that the callback supports, with the versions that are installed here. With a name, print the "
        "lines that add it to a script of that framework.",
        _EXAMPLES,
    )
    parser.add_argument(
        "name",
        nargs="?",
        metavar="FRAMEWORK",
        help="a framework or adapter, for example Megatron-LM, accelerate, lightning_trainer",
    )


def run(arguments: argparse.Namespace) -> int:
    found = ADAPTERS if arguments.name is None else (_named(arguments.name),)
    if arguments.json:
        print_json([_as_json(adapter) for adapter in found])
    elif arguments.name is not None:
        print(found[0].lines)
    else:
        table = make_table(("framework", "installed", "adapter"))
        for adapter in found:
            table.add_row(adapter.framework, _installed(adapter), f"bridge.integrations.{adapter.module}")
        console = Output()
        console.show(table)
        console.print("\n`bridge integrations FRAMEWORK` prints the lines to paste.")
    return 0


def _named(name: str) -> Adapter:
    wanted = _spelling(name)
    for adapter in ADAPTERS:
        if wanted in map(_spelling, (adapter.framework, adapter.module, adapter.package)):
            return adapter
    known = ", ".join(adapter.framework for adapter in ADAPTERS)
    meant = options.hint(name, [adapter.framework for adapter in ADAPTERS])
    raise ConfigError(f"{name!r} is not a framework with an adapter{meant}; choose from {known}")


def _spelling(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _installed(adapter: Adapter) -> str:
    version = adapter.version()
    return "no" if version is None else version or "yes"


def _as_json(adapter: Adapter) -> dict[str, str | None]:
    return {
        "framework": adapter.framework,
        "installed": adapter.version(),
        "adapter": f"bridge.integrations.{adapter.module}",
        "lines": adapter.lines,
    }
