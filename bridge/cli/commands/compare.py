"""``bridge compare``: models, layouts and conventions side by side, per token and per byte."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

from bridge.cli import arguments as options
from bridge.cli.console import Output, make_table, print_json
from bridge.cli.priced import PricedBatch, make_batch, micro_batches
from bridge.config import Config, layout_problems
from bridge.flops import ConfigError, compile_plan
from bridge.flops.conventions import CONVENTIONS
from bridge.flops.reading import read
from bridge.planning.quantities import plain
from bridge.text import count, in_words, with_unit

_EXAMPLES = {
    "two models": "bridge compare llama3-8b qwen3-8b",
    "one model in three conventions": "bridge compare llama3-8b --convention megatron,exact,palm",
    "4,096 tokens in both, 8 layers in tiny": "bridge compare model.seq_length=4096 llama3-8b tiny model.num_layers=8",
}


def add_to(commands: options.Commands[options.Parser]) -> None:
    parser = options.add_command(
        commands,
        "compare",
        run,
        "Compare models, layouts or conventions. Every model starts a column and the options after it belong to it; name a model "
        "again for another layout. All columns use the same sequence length: --sequence-length, or the shortest of the models' "
        "own lengths. Options before the first model apply to all models.",
        _EXAMPLES,
    )
    parser.add_argument("overrides", nargs="+", metavar="MODEL [section.option=value ...]",
                        help="recipes, config.json files or names from `bridge recipes`, each with its options")  # fmt: skip
    parser.add_argument("--convention", type=options.names(CONVENTIONS), metavar="NAME,NAME,...",
                        help=f"conventions, one column each: {', '.join(CONVENTIONS)} (default that of the recipes' "
                             "callbacks where they agree, else megatron)")  # fmt: skip
    parser.add_argument("--bytes-per-token", type=_numbers, metavar="N,N,...",
                        help="average bytes of text per token: one number for all models, or one for each")  # fmt: skip
    options.add_passes(parser)
    options.add_batch(parser)
    options.add_replicas(parser)


@dataclass(frozen=True)
class Compared:
    """One model with its options in one convention.

    Attributes:
        overrides: its own options.
        report: its numbers.
        bytes_per_token: of its text; None where it was not given.
    """

    overrides: Sequence[str]
    report: PricedBatch
    bytes_per_token: Fraction | None

    @property
    def label(self) -> str:
        """The model and its own options."""
        return " ".join([self.report.config.name, *self.overrides])

    @property
    def flops_per_byte(self) -> Fraction | None:
        return None if self.bytes_per_token is None else self.report.flops_per_token / self.bytes_per_token

    @property
    def measure(self) -> Fraction:
        """The number that columns are compared by: FLOPs per byte where they are known, else per token."""
        return self.report.flops_per_token if self.flops_per_byte is None else self.flops_per_byte


def run(arguments: argparse.Namespace) -> int:
    models = [
        (source, own, options.read_config(source, [*shared, *own])) for source, shared, own in _grouped(arguments.overrides)
    ]
    length = _one_length(models, arguments)
    columns = list(_columns(models, length, arguments))
    if arguments.json:
        print_json([_as_json(column, columns[0]) for column in columns])
        return 0
    _show(columns, _conditions(models, length, arguments))
    return 0


Named = tuple[str, Sequence[str], Config]


def _lengths(models: Sequence[Named]) -> set[int]:
    return {config.model.seq_length for _, _, config in models if config.model.seq_length}


def _one_length(models: Sequence[Named], arguments: argparse.Namespace) -> int | None:
    """The length of all columns: the shortest of the models' own lengths, unless another one was asked for."""
    asked = arguments.sequence_length or arguments.sequence_lengths or any(_sets_length(own) for _, own, _ in models)
    return arguments.sequence_length if asked else min(_lengths(models), default=None)


def _sets_length(overrides: Sequence[str]) -> bool:
    return any(override.startswith("model.seq_length=") for override in overrides)


def _conditions(models: Sequence[Named], length: int | None, arguments: argparse.Namespace) -> str:
    """The length that columns have in common, or that they have none."""
    if arguments.sequence_lengths:
        return f"{count(len(arguments.sequence_lengths), 'sequence')}, the same in every column"
    if length is None:
        found = sorted(_lengths(models))
        if len(found) > 1:
            return f"UNEQUAL: sequences of {' and '.join(f'{one:,}' for one in found)} tokens, as asked for"
        return f"sequences of {found[0]:,} tokens" if found else "no sequences"
    others = sorted(_lengths(models) - {length})
    why = ""
    if not arguments.sequence_length and others:
        why = f", the shortest of the models' own lengths (others: {', '.join(f'{one:,}' for one in others)})"
    return f"sequences of {length:,} tokens{why}"


def _columns(models: Sequence[Named], length: int | None, arguments: argparse.Namespace) -> Iterator[Compared]:
    sizes = arguments.bytes_per_token or (None,)
    if len(sizes) not in (1, len(models)):
        raise ConfigError(
            f"--bytes-per-token has {len(sizes)} numbers for {len(models)} models; give one number, or one per model"
        )
    sizes = sizes * len(models) if len(sizes) == 1 else sizes
    named = {options.convention_of(arguments, config) for _, _, config in models}
    conventions = arguments.convention or (tuple(named) if len(named) == 1 else ("megatron",))
    for (source, own, config), bytes_per_token in zip(models, sizes, strict=True):
        for convention in conventions:
            try:
                model = read(config)
                # As `bridge flops` does: without a number format of its own a model runs in BF16.
                plan = compile_plan(replace(model, formats=model.formats.or_on("bf16")), convention)
                batch = make_batch(plan, config, **{**options.batch_of(arguments), "sequence_length": length})
                report = PricedBatch(config, plan, batch, arguments.passes, micro_batches(config, arguments.devices))
                report.stages  # noqa: B018  # errors of the layout come before the first line
            except ConfigError as error:
                raise ConfigError(f"{' '.join([source, *own])}: {error}") from None
            yield Compared(own, report, bytes_per_token)


def _grouped(words: Sequence[str]) -> list[tuple[str, list[str], list[str]]]:
    """(model, options for all, own options) for every model."""
    shared: list[str] = []
    models: list[tuple[str, list[str], list[str]]] = []
    for word in words:
        if "=" not in word:
            models.append((word, shared, []))
        else:
            (models[-1][2] if models else shared).append(word)
    if not models:
        raise ConfigError(f"{words[0]!r} is an option; name a model, for example one from `bridge recipes`")
    return models


def _as_json(column: Compared, first: Compared) -> dict[str, Any]:
    values = column.report.as_json()
    del values["table"]
    return {
        **values,
        "overrides": list(column.overrides),
        "bytes_per_token": plain(column.bytes_per_token),
        "flops_per_byte": plain(column.flops_per_byte),
        "relative": float(column.measure / first.measure),
    }


# ---- the table ------------------------------------------------------------------------------------------------------


def _show(columns: Sequence[Compared], conditions: str) -> None:
    reports = [column.report for column in columns]
    console = Output()
    console.print(f"{conditions}\n", soft_wrap=True)
    headings = {column.label: column.label for column in columns}
    if any(column.overrides for column in columns):  # too long for a heading
        headings = {label: f"({number})" for number, label in enumerate(headings, 1)}
        for label, heading in headings.items():
            console.print(f"{heading} {label}", markup=False, soft_wrap=True)
        console.print()
    table = make_table(("",), [headings[column.label] for column in columns])
    flop = partial(with_unit, unit="FLOP")
    parameters = [report.plan.parameters() for report in reports]
    table.add_row("convention", *(report.plan.convention for report in reports))
    table.add_row("parameters", *(in_words(each["total"]) for each in parameters))
    table.add_row("active", *(in_words(each["active"]) for each in parameters))
    table.add_row(
        "tokens per sample", *(f"{float(Fraction(r.batch.tokens, r.batch.sequences)):,.6g}" for r in reports), end_section=True
    )
    table.add_row("FLOPs per sample", *(flop(report.flops_per_sample) for report in reports))
    table.add_row("FLOPs per token", *(flop(report.flops_per_token) for report in reports), style="bold")
    for component in dict.fromkeys(name for report in reports for name in report.components):
        parts = (report.components.get(component) for report in reports)
        cells = (
            "" if part is None else flop(Fraction(part, report.batch.tokens)) for part, report in zip(parts, reports, strict=True)
        )
        table.add_row(f"  {component}", *cells)
    if any(column.bytes_per_token for column in columns):
        table.add_row("bytes per token", *(f"{float(column.bytes_per_token or 0):g}" for column in columns))
        table.add_row("FLOPs per byte", *(flop(column.measure) for column in columns), style="bold")
    table.add_row("relative", *(f"{float(column.measure / columns[0].measure):.3f}" for column in columns))
    if any(len(report.stages) > 1 for report in reports):
        table.add_row("pipeline stages", *(str(len(report.stages)) for report in reports))
        table.add_row("micro-batches per step", *(str(report.micro_batches) for report in reports))
        table.add_row("max/mean work of stages", *(f"{report.pipeline.imbalance:.3f}" for report in reports))
        table.add_row("idle at least", *(f"{report.pipeline.bubble:.1%}" for report in reports))
    console.show(table)
    console.print(f"\npasses: {reports[0].passes}")
    for name, sentence in dict.fromkeys((report.config.name, text) for report in reports for text in report.plan.not_counted):
        console.print(f"[yellow]not counted in {name}:[/] {sentence}")
    for label, sentence in dict.fromkeys(
        (column.label, text) for column in columns for text in layout_problems(column.report.config)
    ):
        console.print(f"[yellow]cannot be built, {label}:[/] {sentence}")


# ---- arguments ------------------------------------------------------------------------------------------------------


def _numbers(text: str) -> tuple[Fraction, ...]:
    return tuple(Fraction(str(options.number(part))) for part in text.split(","))
