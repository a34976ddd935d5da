"""``bridge check``: which convention a reported throughput was counted in, or which usual mistake it shows."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from inspect import signature
from typing import Any

from bridge.cli import arguments as options
from bridge.cli.commands.flops import sizes
from bridge.cli.console import Output, make_table, print_json
from bridge.config import layout_problems
from bridge.planning.check import Check, CountedWay, check, shown_quantity
from bridge.planning.counting_rules import RULES
from bridge.text import count, with_unit

_EXAMPLES = {
    "a rate: which convention gives 711 TFLOP/s": "bridge check llama3-8b --tokens-per-second 13812 --reported 711TFLOP/s",
    "an MFU": "bridge check llama3-8b --step-time 38s --global-batch-size 64 --device-name H100 --reported 72%",
}


def add_to(commands: options.Commands[options.Parser]) -> None:
    parser = options.add_command(
        commands,
        "check",
        run,
        "Compare a reported throughput with every convention: which one gives it, and what the usual mistakes would give. Give "
        "numbers with all their printed digits: a count agrees within 1% or within their rounding.",
        _EXAMPLES,
    )
    options.add_model(parser)
    lengths = parser.add_mutually_exclusive_group()
    lengths.add_argument("--sequence-length", type=options.length, metavar="N",
                         help="tokens per row, for example 8192 or 8k (default: the recipe's)")  # fmt: skip
    lengths.add_argument(
        "--sequence-lengths", type=options.lengths, default=(), metavar="N,N,...", help="lengths of the packed documents of a row"
    )
    parser.add_argument("--image-patches", type=options.lengths, default=(), metavar="N,N,...", help="patches of each image")
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument("--tokens-per-second", type=options.quantity, metavar="X", help="tokens per second per device")
    speed.add_argument("--step-time", type=options.quantity, metavar="S", help="seconds per step of --global-batch-size rows")
    parser.add_argument("--global-batch-size", type=options.positive, metavar="N", help="rows per step")
    parser.add_argument(
        "--reported", type=options.quantity, metavar="X", help="the reported number: 400TFLOP/s per device, or 41%% of its peak"
    )
    parser.add_argument(
        "--parameters", type=options.quantity, metavar="N", help="reported number of parameters, for example 3.6B"
    )
    parser.add_argument("--whole-job", action="store_true", help="--tokens-per-second and TFLOP/s are totals over all devices")
    parser.add_argument(
        "--recompute", choices=("full", "selective"), help="the reported number includes this recomputation (HFU)"
    )
    parser.add_argument("--assume", type=options.names(RULES), default=(), metavar="NAME,NAME,...",
                        help=f"known differences of the reported number: {', '.join(RULES)}")  # fmt: skip
    options.add_device(parser, options.positive, 1, "devices of the whole job")


def run(arguments: argparse.Namespace) -> int:
    config = options.read_config(arguments.recipe, arguments.overrides)
    given = {name: getattr(arguments, name) for name in signature(check).parameters if name != "cfg"}
    found = check(config, **given)
    if arguments.json:
        print_json(found.to_dict())
        return 0
    verdict = found.verdict  # errors come before the first line
    console = Output()
    console.print(f"[bold]{found.name}[/]: {sizes(found.parameters)}")
    console.print(f"{_what_ran(found)}\n", markup=False)
    console.show(_conventions(found))
    if found.reported is not None and found.mistakes:
        console.print()
        console.show(_mistakes(found))
    console.print(f"\n[bold]{verdict}[/]", soft_wrap=True)
    for sentence in layout_problems(config):
        console.print(f"[yellow]cannot be built:[/] {sentence}")
    return 0


def _what_ran(found: Check) -> str:
    case = found.case
    longest = f"{count(case.lengths[0], 'token')} per row" if len(case.lengths) == 1 else count(len(case.lengths), "document")
    parts = [longest, count(case.devices, "device")]
    if found.tokens_per_second is not None:
        parts.append(f"{float(found.tokens_per_second):,.6g} tokens/s per device")
    if case.peak is not None:
        parts.append(f"peak {with_unit(case.peak, 'FLOP/s')}")
    if found.reported is not None:
        parts.append(f"reported {shown_quantity(found.reported)}")
    parts += [f"with {rule.name}" for rule in found.assumed]
    return ", ".join(parts)


def _cells(found: Check, way: CountedWay) -> list[str]:
    speed = "" if way.flops_per_second is None else with_unit(way.flops_per_second, "FLOP/s")
    share = "" if way.utilisation is None else f"{way.utilisation:.2%}"
    told = [] if way.ratio is None else [f"{way.ratio:.4f}", "fits" if found.agrees(way) else ""]
    return [with_unit(way.flops_per_token, "FLOP"), speed, share, *told]


def _heads(found: Check) -> Sequence[str]:
    kind = "HFU" if found.case.passes == "hardware" else "MFU"
    return ("FLOPs per token", "per device", kind, *(("over reported", "") if found.reported is not None else ()))


def _conventions(found: Check) -> Any:
    table = make_table(("convention",), _heads(found))
    for way in found.conventions:
        table.add_row(way.convention, *_cells(found, way), style="bold" if found.agrees(way) else "")
    return table


def _mistakes(found: Check) -> Any:
    """One line a mistake, on top of the convention that it comes nearest with."""
    table = make_table(("usual difference", "on top of"), _heads(found))
    nearest: dict[str, CountedWay] = {}
    for way in sorted(found.mistakes, key=lambda way: way.distance):
        nearest.setdefault(way.rules[-1], way)
    for name in RULES:
        if name in nearest:
            way = nearest[name]
            table.add_row(name, way.convention, *_cells(found, way), style="bold" if found.agrees(way) else "")
    return table
