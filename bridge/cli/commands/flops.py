"""``bridge flops``: what a batch of a model costs, matmul by matmul, stage by stage."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import asdict, replace
from fractions import Fraction
from itertools import groupby
from typing import TYPE_CHECKING

from bridge.cli import arguments as options
from bridge.cli.console import Output, make_table, print_json
from bridge.cli.flops_memory import held
from bridge.cli.priced import COLUMNS, PricedBatch, make_batch, micro_batches
from bridge.config import Config, layout_problems
from bridge.flops import compile_plan
from bridge.flops.formats import BASES, RECIPES
from bridge.flops.plan import FLOPS_PER_MAC, TableRow
from bridge.flops.reading import read
from bridge.text import count, exactly, in_words, with_unit

if TYPE_CHECKING:
    from rich.table import Table

    from bridge.planning.provenance import Origin

_EXAMPLES = {
    "one sequence of the model's own length, matmul by matmul": "bridge flops llama3-8b",
    "a packed batch, counted to the last pair of tokens": "bridge flops llama3-8b --sequence-lengths 4096,512 --convention exact",
    "where every number comes from": "bridge flops qwen3-30b-a3b --explain",
}


def add_to(commands: options.Commands[options.Parser]) -> None:
    parser = options.add_command(
        commands,
        "flops",
        run,
        "Count the FLOPs of one batch: of --batch-size sequences of --sequence-length tokens each, or of exactly the sequences "
        "given by --sequence-lengths.",
        _EXAMPLES,
    )
    options.add_model(parser, or_trace=True)
    options.add_counting(parser, None)
    options.add_passes(parser)
    options.add_batch(parser)
    options.add_replicas(parser)
    parser.add_argument("--number-format", choices=(*BASES, *RECIPES),
                        help="show the work by number format, as if it ran in this format or recipe")  # fmt: skip
    parser.add_argument("--device-name", metavar="NAME", help="device for the ideal time: a name from `bridge devices`")
    parser.add_argument("--explain", action="store_true", help="show every matmul as an equation, with the fields it uses")


def run(arguments: argparse.Namespace) -> int:
    config = options.read_or_traced(arguments)
    model, name, convention = read(config), arguments.device_name, options.convention_of(arguments, config)
    formats = model.formats.named(arguments.number_format) if arguments.number_format else model.formats
    plan = compile_plan(replace(model, formats=formats.or_on("bf16")), convention, framework=arguments.framework)
    batch = make_batch(plan, config, **options.batch_of(arguments))
    peaks = {one: rate * 1e12 for one, rate in options.known_device(name).tflops.items()} if name else {}
    report = PricedBatch(config, plan, batch, arguments.passes, micro_batches(config, arguments.devices), peaks)
    origins = _explained(config, convention, arguments.framework) if arguments.explain else []
    length = arguments.sequence_length or max(arguments.sequence_lengths, default=None)
    needs = None if arguments.passes == "forward" else held(config, plan, arguments.devices, length)
    if arguments.json:
        values = report.as_json() | {"rank_memory": needs and needs.as_json()}
        for row, origin in zip(values["table"], origins, strict=False):
            row["origin"] = {name: value for name, value in asdict(origin).items() if name != "row"}
        print_json(values)
        return 0
    stages = report.stages  # errors come before the first line
    console = Output()
    found = ", traced" if getattr(config, "source", "read") == "traced" else ""
    console.print(f"[bold]{config.name}[/]: {sizes(plan.parameters())}{found}")
    images = f", {count(batch.images, 'image')}" if batch.images else ""
    console.print(
        f"{count(batch.sequences, 'sequence')}, {count(batch.tokens, 'token')}{images}; "
        f"convention {plan.convention}; passes: {arguments.passes}\n"
    )
    if origins:
        _show_equations(console, report, origins)
    else:
        console.show(_table(report))
    console.print(f"\n[bold]{exactly(report.flops)} FLOP[/] = {with_unit(report.flops, 'FLOP')}")
    console.print(
        f"{with_unit(report.flops_per_token, 'FLOP')} per token, {with_unit(report.flops_per_sample, 'FLOP')} per sample, "
        f"{with_unit(report.flops_per_step, 'FLOP')} per step of {count(config.train.global_batch_size, 'sample')}"
    )
    if needs is not None:
        console.print(needs.text())
    if arguments.number_format or name or plan.formats.recipe:
        _show_formats(console, report)
    if len(stages) > 1:
        _show_pipeline(console, report)
    for sentence in plan.not_counted:
        console.print(f"[yellow]not counted:[/] {sentence}")
    for sentence in layout_problems(config):
        console.print(f"[yellow]cannot be built:[/] {sentence}")
    return 0


def _explained(config: Config, convention: str, framework: str | None) -> list[Origin]:
    from bridge.planning.provenance import explain

    return explain(config, convention, framework=framework)


def sizes(parameters: dict[str, int]) -> str:
    """``30.5 billion parameters, 3.34 billion active``."""
    total = parameters["total"]
    parts = [f"{in_words(total)} parameters"]
    parts += [f"{in_words(parameters[name])} {name}" for name in ("active", "trainable") if parameters[name] != total]
    return ", ".join(parts)


# ---- the table ------------------------------------------------------------------------------------------------------


def _table(report: PricedBatch) -> Table:
    columns = COLUMNS[report.passes]
    repeated = any(row.times != 1 for row in report.rows)
    heads = ("times", "layers") if repeated else ("layers",)
    table = make_table(("component / matmul",), ("k x n", *heads, *columns, "share"))

    def costs(rows: Iterable[TableRow]) -> list[str]:
        rows = list(rows)
        work = [with_unit(sum(getattr(row, column) for row in rows), "FLOP") for column in columns]
        return [*work, f"{sum(map(report.share, rows)):.1%}"]

    by_component = sorted(report.rows, key=lambda row: list(report.components).index(row.component))
    for component, group in groupby(by_component, key=lambda row: row.component):
        rows = list(group)
        table.add_row(component, "", *("" for _ in heads), *costs(rows), style="bold")
        for row in rows:
            counts = (f"{float(row.times):.3g}", str(row.layers)) if repeated else (str(row.layers),)
            table.add_row(f"  {row.name}", f"{row.k} x {row.n}", *counts, *costs([row]))
    return table


# ---- equations ------------------------------------------------------------------------------------------------------


def _show_equations(console: Output, report: PricedBatch, origins: list[Origin]) -> None:
    statistics = {statistic.name: statistic for statistic in report.plan.statistics}
    values = dict(zip(statistics, report.batch.vector, strict=True))
    for row, origin in zip(report.rows, origins, strict=True):
        passes = " + ".join(column for column in COLUMNS["hardware"] if getattr(row, column)) or "nothing in this batch"
        console.print(f"[bold]{row.component} {row.name}[/] {report.share(row):.1%}, {passes}")
        console.print(f"  {_equation(row, values[row.rows])} FLOP per pass", soft_wrap=True)
        numbers = (row.k, row.n, row.times, *statistics[row.rows].sizes)
        formulas = (origin.k, origin.n, origin.times, *origin.rows)
        lines = [f"{number} = {formula}" for number, formula in zip(numbers, formulas, strict=True) if formula != str(number)]
        lines += [f"shaped by {', '.join(origin.switches)}"] if origin.switches else []
        for line in dict.fromkeys(lines):
            console.print(f"  {line}", soft_wrap=True, markup=False)


def _equation(row: TableRow, value: int | Fraction) -> str:
    """``2 x 8,192 tokens x 4096 x 6144 x 32 layers = 13,194,139,533,312``."""
    factors = [f"{exactly(value)} {row.rows}", str(row.k), str(row.n), count(row.layers, "layer")]
    product = FLOPS_PER_MAC * row.layers * row.k * row.n * value
    work = Fraction(row.forward or row.dgrad)
    # What rows repeat (experts of a token) and what a convention takes of the pairs.
    scale = work / product if product and work else row.times
    factors += [str(scale)] if scale != 1 else []
    return f"{' x '.join([str(FLOPS_PER_MAC), *factors])} = {exactly(product * scale)}".replace("[", r"\[")


# ---- number formats -------------------------------------------------------------------------------------------------


def _show_formats(console: Output, report: PricedBatch) -> None:
    """FLOPs by number format, and the time they take at the peaks of one device."""
    console.print()
    timed = bool(report.peaks)
    recipe = report.plan.formats.recipe
    table = make_table(("format",), ("work", "share", *(("peak", "ideal time") if timed else ())),
                       title=f"Number formats{f' of {recipe.name}' if recipe else ''}")  # fmt: skip

    def seconds(value: float | None) -> str:
        return "unknown" if value is None else with_unit(value, "s")

    for name, flops in report.formats.items():
        peak = report.peaks.get(name)
        times = ("unknown" if peak is None else with_unit(peak, "FLOP/s"), seconds(float(flops) / peak if peak else None))
        table.add_row(name, with_unit(flops, "FLOP"), f"{float(flops) / float(report.flops or 1):.2%}", *(times if timed else ()))
    console.show(table)
    if timed:
        console.print(f"ideal time of one device: {seconds(report.ideal_seconds)}")


# ---- the pipeline ---------------------------------------------------------------------------------------------------


def _show_pipeline(console: Output, report: PricedBatch) -> None:
    bound = report.pipeline
    console.print()
    table = make_table((), ("stage", "work", "share"), title="Pipeline")
    for number, stage in enumerate(report.stages):
        table.add_row(str(number), with_unit(stage, "FLOP"), f"{float(stage) / float(report.flops or 1):.2%}")
    console.show(table)
    console.print(
        f"max/mean work of the stages {bound.imbalance:.3f}; with {count(bound.micro_batches, 'micro-batch', 'micro-batches')} "
        f"per step at least {bound.bubble:.1%} of the devices' time is idle"
    )
