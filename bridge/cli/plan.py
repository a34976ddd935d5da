"""``bridge plan``: how long a training run takes and what it costs, or what a budget buys."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from math import ceil
from typing import Any

from bridge.cli import arguments as options
from bridge.cli.console import Output, in_words, make_table, plain, print_json, spread, with_unit
from bridge.cli.flops import sizes
from bridge.cli.priced import make_batch
from bridge.config import Config
from bridge.flops import ConfigError, Plan, compile_plan
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


def add_to(commands: options.Commands[options.Parser]) -> None:
    parser = options.add_command(
        commands,
        "plan",
        run,
        "time and cost of a training run",
        "Plan a training run: FLOPs, days, device-hours, energy and cost of so many tokens, or the tokens that a budget buys. "
        "Every number may be a range, such as --mfu 0.35-0.45; then so are the results.",
    )
    options.add_model(parser)
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument("--tokens", type=options.amount, metavar="N", help="to train on, for example 15T")
    amount.add_argument("--budget", type=_budget, metavar="N[UNIT]",
                        help="what there is: FLOPs (1e24), 30days, 2Mdevice-hours, 500Mkwh or $3M")  # fmt: skip
    options.add_device(parser, options.amount)
    parser.add_argument("--mfu", type=options.amount, required=True, metavar="FRACTION", help="of the peak, for example 0.4")
    parser.add_argument("--price", type=options.amount, metavar="MONEY", help="of one device for an hour")
    parser.add_argument("--power", type=options.amount, metavar="W", help="of one device, with its share of host and cooling")
    batch = parser.add_mutually_exclusive_group()
    batch.add_argument("--batch-size", type=options.positive, metavar="N",
                       help="sequences per step (default: the batch of lowest loss by arXiv:2401.02954)")  # fmt: skip
    batch.add_argument("--steps", type=options.positive, metavar="N", help="optimizer steps")
    options.add_counting(parser)


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


def run(arguments: argparse.Namespace) -> int:
    config = options.read_config(arguments.recipe, arguments.overrides)
    plan = compile_plan(config, arguments.convention, framework=arguments.framework)
    batch = make_batch(plan, config)
    per_token = Fraction(plan.evaluate(batch.vector), batch.tokens)
    cluster = _cluster(arguments)
    if arguments.tokens:
        planned = TrainingRun(per_token, arguments.tokens.map(int), cluster)
    else:
        budget, unit = arguments.budget
        planned = within_budget(per_token, budget, unit, cluster)
    schedule = _schedule(planned, batch.tokens, arguments)
    if arguments.json:
        print_json(_as_json(config, plan, planned, schedule))
    else:
        _show(Output(), config, plan, planned, schedule)
    return 0


def _cluster(arguments: argparse.Namespace) -> Cluster:
    name, own_peak = arguments.device_name, arguments.peak_flops
    if own_peak is None and name is None:
        raise ConfigError("--device-name is missing: name one from `bridge devices`, or give --peak-flops")
    peak = own_peak or options.known_peak(name, arguments.number_format)
    return Cluster(arguments.devices, peak, arguments.mfu, arguments.price, arguments.power)


def _schedule(planned: TrainingRun, length: int, arguments: argparse.Namespace) -> Schedule:
    """By --batch-size, by --steps, or by the law."""

    def sequences(tokens: Range) -> Range:
        return (tokens / length).map(lambda value: max(ceil(value), 1))

    if arguments.steps:
        batch, count = sequences(planned.tokens / arguments.steps), Range.of(arguments.steps)
    else:
        batch = Range.of(arguments.batch_size) if arguments.batch_size else sequences(optimal_batch_tokens(planned.flops))
        # More tokens bring larger batches: the ends of both ranges belong together.
        ends = zip((planned.tokens.low, planned.tokens.high), (batch.low, batch.high), strict=True)
        count = Range(*sorted(steps(Range.of(tokens), int(size) * length).low for tokens, size in ends))
    seconds = batch * length * planned.flops_per_token / (planned.cluster.flops_per_device_hour * planned.cluster.devices) * 3600
    return Schedule(batch, count, seconds)


def _as_json(config: Config, plan: Plan, planned: TrainingRun, schedule: Schedule) -> dict[str, Any]:
    """A range is a list of its two ends."""
    parameters = plan.parameters()
    best = compute_optimal(planned.flops)
    return {
        "name": config.name,
        "convention": plan.convention,
        "parameters": parameters,
        "seq_length": config.model.seq_length,
        "flops_per_token": plain(planned.flops_per_token),
        "tokens": plain(planned.tokens),
        "flops": plain(planned.flops),
        "devices": plain(planned.cluster.devices),
        "peak_flops": planned.cluster.peak_flops,
        "mfu": plain(planned.cluster.mfu),
        "days": plain(planned.days),
        "device_hours": plain(planned.device_hours),
        "energy_kwh": plain(planned.energy),
        "cost": plain(planned.cost),
        "batch_size": plain(schedule.batch),
        "batch_tokens": plain(schedule.batch * (config.model.seq_length or 0)),
        "steps": plain(schedule.steps),
        "step_seconds": plain(schedule.seconds),
        "tokens_per_parameter": plain(planned.tokens / parameters["total"]),
        "tokens_per_active_parameter": plain(planned.tokens / parameters["active"]),
        "chinchilla_ratio": plain(planned.tokens / chinchilla_tokens(parameters["total"])),
        "chinchilla_tokens": chinchilla_tokens(parameters["total"]),
        "compute_optimal": {"parameters": plain(best.parameters), "tokens": plain(best.tokens)},
        "not_counted": list(plan.not_counted),
    }


def _show(console: Output, config: Config, plan: Plan, planned: TrainingRun, schedule: Schedule) -> None:
    parameters, length = plan.parameters(), config.model.seq_length or 0
    best, flop = compute_optimal(planned.flops), partial(with_unit, unit="FLOP")

    def days(value: Range) -> str:
        return spread(value, lambda number: f"{float(number):,.4g}")

    def whole(value: Range) -> str:
        return spread(value, lambda number: f"{float(number):,.0f}")

    console.print(f"[bold]{config.name}[/]: {sizes(parameters)}")
    console.print(f"sequences of {length:,} tokens; convention {plan.convention}; {flop(planned.flops_per_token)} per token\n")
    table = make_table(("", ""))
    table.show_header = False
    table.add_row("tokens", spread(planned.tokens, in_words))
    table.add_row("FLOPs", f"{spread(planned.flops, lambda value: f'{float(value):.4g}')} = {spread(planned.flops, flop)}")
    table.add_row("days", days(planned.days), style="bold")
    table.add_row("device-hours", whole(planned.device_hours))
    if planned.energy is not None:
        table.add_row("energy", spread(planned.energy * 1000, lambda value: with_unit(value, "Wh")))
    if planned.cost is not None:
        table.add_row("cost", whole(planned.cost))
    tokens = schedule.batch * length
    table.add_row("batch", f"{whole(schedule.batch)} sequences = {spread(tokens, in_words)} tokens")
    table.add_row("steps", f"{whole(schedule.steps)} of {days(schedule.seconds)} s")
    ratio = spread(planned.tokens / parameters["total"], lambda value: f"{float(value):,.4g}")
    to_best = spread(planned.tokens / chinchilla_tokens(parameters["total"]), lambda value: f"{float(value):,.3g}")
    table.add_row("tokens a parameter", f"{ratio}, {to_best} times Chinchilla's {CHINCHILLA_TOKENS_PER_PARAMETER}")
    table.add_row(
        "compute-optimal", f"{spread(best.parameters, in_words)} dense parameters on {spread(best.tokens, in_words)} tokens"
    )
    console.show(table)
    for sentence in plan.not_counted:
        console.print(f"[yellow]not counted:[/] {sentence}")


_UNITS = {"": "flop", "flops": "flop", "day": "days", "$": "money"} | {unit: unit for unit in BUDGETS}
_BUDGET = re.compile(rf"({options.RANGE})((?i:{'|'.join(map(re.escape, _UNITS))}))")


def _budget(text: str) -> tuple[Range, str]:
    """``1e24``, ``30days``, ``$3M``, ``0.5M-1Mdevice-hours``: an amount and a key of BUDGETS."""
    found = _BUDGET.fullmatch(text[1:] + "$" if text.startswith("$") else text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number or a range, alone or with a unit: {', '.join(BUDGETS)} or $")
    return options.amount(found.group(1)), _UNITS[found.groups()[-1].lower()]
