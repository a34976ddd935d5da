"""``bridge plan``: how long a training run takes and what it costs, what a budget buys, and which layouts fit."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from math import ceil
from typing import Any

from bridge.cli import arguments as options
from bridge.cli.commands import plan_layouts
from bridge.cli.commands.flops import sizes
from bridge.cli.console import Output, make_table, print_json
from bridge.cli.priced import check_devices, make_batch
from bridge.config import Config, layout_problems
from bridge.flops import ConfigError, Plan, compile_plan
from bridge.planning.machines import Machine, find_machine
from bridge.planning.memory import USABLE
from bridge.planning.quantities import plain, spread
from bridge.planning.states import state_bytes
from bridge.planning.training_run import (
    BUDGETS,
    CHINCHILLA_TOKENS_PER_PARAMETER,
    Cluster,
    Range,
    TrainingRun,
    chinchilla_tokens,
    compute_optimal,
    optimal_batch_tokens,
    steps,
    within_budget,
)
from bridge.planning.typical import typical_mfu
from bridge.text import gib, in_words, significant, with_unit

_EXAMPLES = {
    "what 15 trillion tokens take and cost": "bridge plan llama3-8b --tokens 15T --devices 1024 --device-name H100 --price 2.5",
    "what three million dollars buy": "bridge plan llama3-8b --budget '$3M' --price 2.5 --devices 1024 --device-name H100",
    "the layouts that fit, fastest first": "bridge plan llama3-8b --global-batch-size 32 --devices 8 --device-name H100",
}


def add_to(commands: options.Commands[options.Parser]) -> None:
    parser = options.add_command(
        commands,
        "plan",
        run,
        "Plan a training run: FLOPs, days, device-hours, energy and cost of a number of tokens, or the tokens that a budget "
        "buys. Every number may be a range, such as --mfu 0.35-0.45; the results are then ranges too. Several devices, such as "
        "--device-name H100,B200, are shown side by side. With --global-batch-size and neither --tokens nor --budget, list the "
        "layouts that fit on the devices, fastest first, with reasons.",
        _EXAMPLES,
    )
    options.add_model(parser)
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--tokens", type=options.counts, metavar="N", help="tokens to train on, for example 15T")
    amount.add_argument(
        "--budget", type=_budget, metavar="N[UNIT]", help="available FLOPs (1e24), 30days, 2Mdevice-hours, 500Mkwh or $3M"
    )
    amount.add_argument(
        "--global-batch-size", type=options.positive, metavar="N", help="sequences per step; search layouts for it"
    )
    options.add_device(parser, options.counts)
    parser.add_argument("--mfu", type=options.fractions, metavar="FRACTION",
                        help="fraction of the peak, for example 0.4 (default: what published runs reach, with the "
                             "source)")  # fmt: skip
    parser.add_argument("--price", type=options.money, metavar="MONEY", help="price per device-hour")
    parser.add_argument("--power", type=options.watts, metavar="W",
                        help="power per device, with host and cooling (default: the power limit of the device)")  # fmt: skip
    parser.add_argument("--carbon", type=options.amount, metavar="KG", help="CO2 per kWh, for example 0.4")
    batch = parser.add_mutually_exclusive_group()
    batch.add_argument("--batch-size", type=options.positive, metavar="N",
                       help="sequences per step (default: the batch of lowest loss by arXiv:2401.02954)")  # fmt: skip
    batch.add_argument("--steps", type=options.positive, metavar="N", help="optimizer steps")
    plan_layouts.add_to(parser)
    options.add_counting(parser, None)


@dataclass(frozen=True)
class Schedule:
    """How a run is cut into steps.

    Attributes:
        batch: sequences per step.
        steps: optimizer steps.
        seconds: of one step.
    """

    batch: Range
    steps: Range
    seconds: Range


@dataclass(frozen=True)
class OnDevice:
    """A run on one kind of device.

    Attributes:
        name: as it was given; empty where only a peak was.
        planned, schedule: the run.
        mfu_source: where the MFU is from.
        machine: what the device is part of; None where that is not known.
    """

    name: str
    planned: TrainingRun
    schedule: Schedule
    mfu_source: str
    machine: Machine | None


def run(arguments: argparse.Namespace) -> int:
    config = options.read_config(arguments.recipe, arguments.overrides)
    if arguments.global_batch_size:
        return plan_layouts.run(arguments, config)
    if not arguments.tokens and not arguments.budget:
        raise ConfigError("give --tokens or --budget to plan a run, or --global-batch-size to list the layouts that fit")
    for devices in (arguments.devices.low, arguments.devices.high):
        check_devices(config, int(devices))
    plan = compile_plan(config, options.convention_of(arguments, config), framework=arguments.framework)
    batch = make_batch(plan, config, sequence_length=arguments.sequence_length)
    per_token = Fraction(plan.evaluate(batch.vector), batch.tokens)
    names: Sequence[str] = arguments.device_name.split(",") if arguments.device_name else ("",)
    columns = [_on_device(name.strip(), plan, per_token, batch.tokens, arguments) for name in names]
    if arguments.json:
        reports = [_as_json(config, plan, column, batch.tokens, arguments.carbon) for column in columns]
        print_json(reports[0] if len(reports) == 1 else reports)
    else:
        _show(Output(), config, plan, columns, batch.tokens, arguments.carbon)
    return 0


def _on_device(name: str, plan: Plan, per_token: Fraction, length: int, arguments: argparse.Namespace) -> OnDevice:
    cluster, source = _cluster(name, plan, arguments)
    if arguments.tokens:
        planned = TrainingRun(per_token, arguments.tokens.map(int), cluster)
    else:
        budget, unit = arguments.budget
        planned = within_budget(per_token, budget, unit, cluster)
    return OnDevice(name, planned, _schedule(planned, length, arguments), source, find_machine(name) if name else None)


def _cluster(name: str, plan: Plan, arguments: argparse.Namespace) -> tuple[Cluster, str]:
    """The devices, and where their MFU is from."""
    own_peak = arguments.peak_flops
    if own_peak is None and not name:
        raise ConfigError("--device-name is missing: name one from `bridge devices`, or give --peak-flops")
    peak = own_peak or options.known_peak(name, arguments.number_format)
    mfu, source = arguments.mfu, "as given"
    if mfu is None:
        typical = typical_mfu(bool(plan.model.shape.num_moe_experts), arguments.number_format)
        if typical is None:
            raise ConfigError(f"--mfu is missing: there are no published runs for {arguments.number_format}")
        mfu, source = typical.mfu, typical.source
    machine = find_machine(name) if name else None
    power = arguments.power or (Range.of(machine.power) if machine else None)
    return Cluster(arguments.devices, peak, mfu, arguments.price, power), source


def _schedule(planned: TrainingRun, length: int, arguments: argparse.Namespace) -> Schedule:
    """By --batch-size, by --steps, or by the batch of lowest loss."""

    def sequences(tokens: Range) -> Range:
        return (tokens / length).map(lambda value: max(ceil(value), 1))

    if arguments.steps:
        batch, count = sequences(planned.tokens / arguments.steps), Range.of(arguments.steps)
    else:
        batch = Range.of(arguments.batch_size) if arguments.batch_size else sequences(optimal_batch_tokens(planned.flops))
        # More tokens come with larger batches, so the lower ends of both ranges go together, and the upper ends.
        ends = zip((planned.tokens.low, planned.tokens.high), (batch.low, batch.high), strict=True)
        count = Range(*sorted(steps(Range.of(tokens), int(size) * length).low for tokens, size in ends))
    seconds = batch * length * planned.flops_per_token / (planned.cluster.flops_per_device_hour * planned.cluster.devices) * 3600
    return Schedule(batch, count, seconds)


def _memory(plan: Plan, column: OnDevice) -> str:
    """The size of the states, and whether all devices together hold them."""
    needed, machine, devices = state_bytes(plan), column.machine, int(column.planned.cluster.devices.low)
    size = f"{significant(needed / 1e12, 3)} TB of states"
    if machine is None:
        return size
    verdict = "fits in" if needed <= USABLE * devices * machine.capacity else "does not fit in"
    return f"{size}, {verdict} {devices:,} x {gib(machine.capacity, 0)}"


def _as_json(config: Config, plan: Plan, column: OnDevice, length: int, carbon: Range | None) -> dict[str, Any]:
    """A range is a list of its two ends."""
    planned, schedule, parameters = column.planned, column.schedule, plan.parameters()
    best, needed = compute_optimal(planned.flops), state_bytes(plan)
    capacity = None if column.machine is None else column.machine.capacity
    return {
        "name": config.name,
        "convention": plan.convention,
        "parameters": parameters,
        "seq_length": length,
        "flops_per_token": plain(planned.flops_per_token),
        "tokens": plain(planned.tokens),
        "flops": plain(planned.flops),
        "device": column.name or None,
        "devices": plain(planned.cluster.devices),
        "peak_flops": planned.cluster.peak_flops,
        "mfu": plain(planned.cluster.mfu),
        "mfu_source": column.mfu_source,
        "days": plain(planned.days),
        "device_hours": plain(planned.device_hours),
        "energy_kwh": plain(planned.energy),
        "co2_kg": plain(_co2(planned, carbon)),
        "cost": plain(planned.cost),
        "state_bytes": needed,
        "device_bytes": capacity,
        "fits": None if capacity is None else bool(needed <= USABLE * capacity * planned.cluster.devices.low),
        "batch_size": plain(schedule.batch),
        "batch_tokens": plain(schedule.batch * length),
        "steps": plain(schedule.steps),
        "step_seconds": plain(schedule.seconds),
        "tokens_per_parameter": plain(planned.tokens / parameters["total"]),
        "tokens_per_active_parameter": plain(planned.tokens / parameters["active"]),
        "chinchilla_ratio": plain(planned.tokens / chinchilla_tokens(parameters["total"])),
        "chinchilla_tokens": chinchilla_tokens(parameters["total"]),
        "compute_optimal": {"parameters": plain(best.parameters), "tokens": plain(best.tokens)},
        "not_counted": list(plan.not_counted),
        "layout_problems": layout_problems(config),
    }


def _co2(planned: TrainingRun, carbon: Range | None) -> Range | None:
    """kg."""
    return None if carbon is None or planned.energy is None else planned.energy * carbon


def _show(console: Output, config: Config, plan: Plan, columns: Sequence[OnDevice], length: int, carbon: Range | None) -> None:
    parameters = plan.parameters()
    console.print(f"[bold]{config.name}[/]: {sizes(parameters)}")
    per_token = with_unit(columns[0].planned.flops_per_token, "FLOP")
    console.print(f"sequences of {length:,} tokens; convention {plan.convention}; {per_token} per token\n")
    several = len(columns) > 1
    table = make_table(("",), texts=[column.name for column in columns] if several else [""])
    table.show_header = several
    for label, value in _rows(plan, length, carbon):
        cells = [value(column) for column in columns]
        if any(cells):
            table.add_row(label, *(cell or "not known" for cell in cells), style="bold" if label == "days" else None)
    console.show(table)
    for source in dict.fromkeys(column.mfu_source for column in columns if column.mfu_source != "as given"):
        console.print(f"MFU: {source}; give --mfu to use your own")
    for sentence in plan.not_counted:
        console.print(f"[yellow]not counted:[/] {sentence}")
    for sentence in layout_problems(config):
        console.print(f"[yellow]cannot be built:[/] {sentence}")


def _number(value: Range) -> str:
    return spread(value, significant)


def _whole(value: Range) -> str:
    return spread(value, lambda number: f"{float(number):,.0f}")


def _rows(plan: Plan, length: int, carbon: Range | None) -> list[tuple[str, Callable[[OnDevice], str]]]:
    """Lines of the table: what they are called, and their text for one kind of device; empty where there is nothing to say."""
    flop, total = partial(with_unit, unit="FLOP"), plan.parameters()["total"]

    def flops(column: OnDevice) -> str:
        value = column.planned.flops
        return f"{spread(value, significant)} = {spread(value, flop)}"

    def energy(column: OnDevice) -> str:
        value = column.planned.energy
        return "" if value is None else spread(value * 1000, lambda one: with_unit(one, "Wh"))

    def co2(column: OnDevice) -> str:
        value = _co2(column.planned, carbon)
        return "" if value is None else spread(value, lambda one: f"{significant(one / 1000)} t")

    def cost(column: OnDevice) -> str:
        return "" if column.planned.cost is None else _whole(column.planned.cost)

    def batch(column: OnDevice) -> str:
        return f"{_whole(column.schedule.batch)} sequences = {spread(column.schedule.batch * length, in_words)} tokens"

    def a_parameter(column: OnDevice) -> str:
        ratio = spread(column.planned.tokens / chinchilla_tokens(total), partial(significant, digits=3))
        return f"{_number(column.planned.tokens / total)}, {ratio} times Chinchilla's {CHINCHILLA_TOKENS_PER_PARAMETER}"

    def optimal(column: OnDevice) -> str:
        best = compute_optimal(column.planned.flops)
        return f"{spread(best.parameters, in_words)} dense parameters on {spread(best.tokens, in_words)} tokens"

    return [
        ("tokens", lambda column: spread(column.planned.tokens, in_words)),
        ("FLOPs", flops),
        ("MFU", lambda column: spread(column.planned.cluster.mfu, partial(significant, digits=3))),
        ("days", lambda column: _number(column.planned.days)),
        ("device-hours", lambda column: _whole(column.planned.device_hours)),
        ("energy", energy),
        ("CO2", co2),
        ("cost", cost),
        ("memory", lambda column: _memory(plan, column)),
        ("batch", batch),
        ("steps", lambda column: f"{_whole(column.schedule.steps)} of {_number(column.schedule.seconds)} s"),
        ("tokens per parameter", a_parameter),
        ("compute-optimal", optimal),
    ]


_UNITS = {"": "flop", "flops": "flop", "day": "days", "$": "money"} | {unit: unit for unit in BUDGETS}
_BUDGET = re.compile(rf"({options.RANGE})((?i:{'|'.join(map(re.escape, _UNITS))}))")


def _budget(text: str) -> tuple[Range, str]:
    """``1e24``, ``30days``, ``$3M``, ``0.5M-1Mdevice-hours``: an amount and a key of BUDGETS."""
    found = _BUDGET.fullmatch(text[1:] + "$" if text.startswith("$") else text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number or a range, alone or with a unit: {', '.join(BUDGETS)} or $")
    return options.amount(found.group(1)), _UNITS[found.groups()[-1].lower()]
