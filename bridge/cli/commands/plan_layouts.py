"""``bridge plan`` with a global batch: which layouts of a model fit on a number of devices, and which of them are fast."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from bridge.cli import arguments as options
from bridge.cli.commands.flops import sizes
from bridge.cli.console import Output, make_table, print_json
from bridge.config import Config
from bridge.flops import ConfigError, compile_plan
from bridge.planning.machines import GIB, Machine, known_machine
from bridge.planning.memory import USABLE
from bridge.planning.search import Candidate, Search, search
from bridge.text import gib, significant

SHOWN = 10
#: Every rank has its slice of the optimizer, which takes its time.
MOST_DEVICES = 2**17


def add_to(parser: options.Parser) -> None:
    """Its options beside those of ``bridge plan``."""
    parser.add_argument(
        "--sequence-length", type=options.length, metavar="N", help="tokens per sequence (default model.seq_length)"
    )


def run(arguments: argparse.Namespace, config: Config) -> int:
    """Search, and print what was found for each device."""
    length, convention = arguments.sequence_length or config.model.seq_length, options.convention_of(arguments, config)
    if length is None:
        raise ConfigError("--sequence-length is missing, and the model sets none")
    if not arguments.device_name:
        raise ConfigError("--device-name is missing: name one from `bridge devices` whose machine is known")
    if not arguments.devices.is_known:
        raise ConfigError("--devices must be a single number when layouts are searched")
    devices, found = int(arguments.devices.low), []
    if devices > MOST_DEVICES:
        raise ConfigError(f"--devices {devices:,}: layouts are searched for at most {MOST_DEVICES:,}")
    for name in arguments.device_name.split(","):
        machine = known_machine(name.strip())
        options.known_peak(name.strip(), arguments.number_format)
        result = search(
            config,
            machine,
            devices=devices,
            sequence_length=length,
            global_batch_size=arguments.global_batch_size,
            convention=convention,
            number_format=arguments.number_format,
        )
        found.append((machine, result))
    if arguments.json:
        reports = [_as_json(config, devices, length, arguments.global_batch_size, *one) for one in found]
        print_json(reports[0] if len(reports) == 1 else reports)
        return 0
    console = Output()
    parameters = compile_plan(config, convention).parameters()
    console.print(f"[bold]{config.name}[/]: {sizes(parameters)}")
    console.print(f"{arguments.global_batch_size:,} sequences of {length:,} tokens per step\n")
    for machine, result in found:
        _show(console, devices, machine, result)
    return 0


def _show(console: Output, devices: int, machine: Machine, result: Search) -> None:
    if not result.candidates and not result.too_large:
        console.print(f"no layout of {devices:,} x {machine.name} divides the sequences of a step evenly\n")
        return
    if not result.candidates:
        lacks = ""
        if result.nearest is not None:
            layout, needed = result.nearest
            lacks = f": the nearest, {layout}, needs {gib(needed)} of {gib(USABLE * machine.capacity)} per device"
        console.print(f"does not fit on {devices:,} x {machine.name}{lacks}\n")
        return
    table = make_table(
        ("layout",),
        ("micro-batch", "recompute", "GiB", "s per step", "at least", "tokens/s", "MFU"),
        ("where the time goes",),
        title=f"{devices:,} x {machine.name}: {len(result.candidates):,} layouts fit, {result.too_large:,} do not",
    )
    for one in result.candidates[:SHOWN]:
        table.add_row(
            str(one.layout),
            str(one.layout.micro_batch_size),
            one.recompute or "no",
            f"{one.needs.total / GIB:,.1f}",
            significant(one.time.estimate, 3),
            significant(one.time.bound, 3),
            f"{one.tokens_per_second:,.0f}",
            f"{one.mfu:.1%}",
            one.reason(),
        )
    console.show(table)
    for sentence in result.candidates[0].needs.unknown:
        console.print(f"[yellow]memory:[/] {sentence}")
    best = result.candidates[0]
    console.print(
        f"Lower bounds assume that everything overlaps; the first layout is bound by {best.time.binds}. tokens/s are "
        "per device.\n"
    )


def _as_json(config: Config, devices: int, length: int, batch: int, machine: Machine, result: Search) -> dict[str, Any]:
    return {
        "name": config.name,
        "device": machine.name,
        "devices": devices,
        "device_bytes": machine.capacity,
        "sequence_length": length,
        "global_batch_size": batch,
        "too_large": result.too_large,
        "nearest": None if result.nearest is None else {"layout": str(result.nearest[0]), "bytes": result.nearest[1]},
        "layouts": [_of_candidate(one) for one in result.candidates],
    }


def _of_candidate(one: Candidate) -> dict[str, Any]:
    layout = {key: value for key, value in asdict(one.layout).items() if key != "pipeline"}
    pipeline = {key: value for key, value in asdict(one.layout.pipeline).items() if value not in (None, False, ())}
    return {
        "layout": layout | pipeline,
        "recompute": one.recompute or None,
        "bytes": one.needs.total,
        "memory": one.needs.parts,
        "not_known": list(one.needs.unknown),
        "seconds": one.time.estimate,
        "seconds_at_least": one.time.bound,
        "binds": one.time.binds,
        "parts": dict(one.time.parts),
        "traffic": [asdict(traffic) for traffic in one.time.traffic],
        "tokens_per_second_per_device": one.tokens_per_second,
        "mfu": one.mfu,
        "reason": one.reason(),
    }
