"""``bridge flops``: what a batch of a model costs, as a table or as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from operator import add
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bridge.cli.console import in_words, make_console, with_unit
from bridge.config import Config, from_huggingface, load_recipe, with_overrides
from bridge.flops import ConfigError, Plan, compile_plan
from bridge.flops.moments import Moments

Number = int | Fraction


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "flops",
        help="count the FLOPs of a batch",
        description="Count the FLOPs of one batch: of --batch-size sequences of model.seq_length tokens each, or of "
        "exactly the sequences given by --sequence-lengths.",
    )
    parser.add_argument("recipe", help="a YAML recipe, a Hugging Face config.json, or a name from `bridge recipes`")
    parser.add_argument("overrides", nargs="*", metavar="section.option=value", help="overrides, last one wins")
    parser.add_argument("--convention", default="megatron", help="how to count: megatron (default), exact, executed, ...")
    parser.add_argument("--batch-size", type=_positive, metavar="N", help="sequences of model.seq_length tokens (default 1)")
    parser.add_argument("--sequence-lengths", type=_lengths, metavar="N,N,...", help="tokens of each sequence")
    parser.add_argument("--image-patches", type=_lengths, default=(), metavar="N,N,...", help="patches of each image")
    parser.add_argument("--passes", default="training", choices=("forward", "training", "hardware"),
                        help="forward alone, training (default), or training and what is recomputed")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.batch_size and arguments.sequence_lengths:
        raise ConfigError("--batch-size and --sequence-lengths exclude each other; the lengths say how many there are")
    config = read_config(arguments.recipe, arguments.overrides)
    plan = compile_plan(config, convention=arguments.convention)
    if arguments.sequence_lengths:
        batch = _batch_of_lengths(plan, arguments.sequence_lengths, arguments.image_patches)
    else:
        batch = _batch_of_moments(plan, config, arguments.batch_size or 1, arguments.image_patches)
    report = Report(config, plan, batch, arguments.passes)
    if arguments.json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        report.show(make_console())
    return 0


def read_config(source: str, overrides: Sequence[str]) -> Config:
    """A configuration from a Hugging Face config.json (or its folder), a recipe's path, or a recipe's name."""
    path = Path(source)
    if path.is_dir() and (path / "config.json").is_file():
        path /= "config.json"
    if path.suffix == ".json":
        return with_overrides(from_huggingface(path), overrides)
    return load_recipe(source, overrides, validate=False)


# ---- the batch ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """What is priced: a vector of the plan's statistics and how it came about."""

    vector: Sequence[Number]
    sequences: int
    tokens: int
    images: int


def _batch_of_lengths(plan: Plan, lengths: Sequence[int], patches: Sequence[int]) -> Batch:
    return Batch(plan.measure(lengths, patches), len(lengths), sum(lengths), len(patches))


def _batch_of_moments(plan: Plan, config: Config, batch_size: int, patches: Sequence[int]) -> Batch:
    """Equal sequences by the rules of the public function, which knows count, sum and squares only; images exactly."""
    length = config.model.seq_length
    if length is None:
        raise ConfigError("model.seq_length is not set; add model.seq_length=... or --sequence-lengths")
    tokens = batch_size * length
    sequences = plan.measure_moments(Moments.of(batch_size, tokens, tokens * length, length))
    vector = list(map(add, sequences, plan.measure((), patches)))
    return Batch(vector, batch_size, tokens, len(patches))


# ---- the report -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """One configuration, one batch, one convention."""

    config: Config
    plan: Plan
    batch: Batch
    passes: str

    @cached_property
    def flops(self) -> Number:
        return self.plan.evaluate(self.batch.vector, self.passes)

    @cached_property
    def components(self) -> dict[str, Number]:
        return self.plan.evaluate_components(self.batch.vector, self.passes)

    @cached_property
    def stages(self) -> list[Number]:
        parallel = self.config.parallel
        return self.plan.evaluate_stages(
            self.batch.vector,
            parallel.pipeline_model_parallel_size,
            parallel.virtual_pipeline_model_parallel_size,
            self.passes,
            num_layers_in_first_pipeline_stage=parallel.num_layers_in_first_pipeline_stage,
            num_layers_in_last_pipeline_stage=parallel.num_layers_in_last_pipeline_stage,
        )

    def as_json(self) -> dict[str, Any]:
        """Integers wherever the count is one; FLOPs throughout."""
        return {
            "name": self.config.name,
            "convention": self.plan.convention,
            "passes": self.passes,
            "sequences": self.batch.sequences,
            "tokens": self.batch.tokens,
            "images": self.batch.images,
            "flops": _number(self.flops),
            "flops_per_token": _number(Fraction(self.flops, self.batch.tokens)),
            "parameters": self.plan.parameters(),
            "components": {name: _number(value) for name, value in self.components.items()},
            "stages": [_number(value) for value in self.stages],
            "not_counted": list(self.plan.not_counted),
        }

    def show(self, console: Console) -> None:
        batch, stages = self.batch, self.stages  # errors come before the first line
        console.print(f"[bold]{self.config.name}[/]: {_sizes(self.plan.parameters())}")
        images = f", {batch.images} images" if batch.images else ""
        console.print(
            f"{batch.sequences} sequences, {batch.tokens:,} tokens{images}; "
            f"convention {self.plan.convention}; passes: {self.passes}\n"
        )
        console.print(self._table())
        per_token = with_unit(float(self.flops) / batch.tokens, "FLOP")
        console.print(f"\n[bold]{_exactly(self.flops)} FLOP[/] = {with_unit(self.flops, 'FLOP')}, {per_token} per token")
        if len(stages) > 1:
            shares = ", ".join(f"{float(stage) / float(self.flops):.1%}" for stage in stages)
            console.print(f"pipeline stages: {shares}")
        for sentence in self.plan.not_counted:
            console.print(f"[yellow]not counted:[/] {sentence}")

    def _table(self) -> Table:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for heading in ("component", "matmul"):
            table.add_column(heading, no_wrap=True)
        for heading in ("k x n", "layers", "forward", "passes", "share"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self.plan.tabulate(self.batch.vector):
            passes = (row.forward + row.dgrad + row.wgrad + row.recompute) / Fraction(row.forward or 1)
            table.add_row(
                row.component,
                row.name,
                f"{row.k} x {row.n}",
                str(row.layers),
                with_unit(row.forward, "FLOP"),
                f"{float(passes):.3g}",
                f"{row.share:.1%}",
            )
        return table


def _sizes(parameters: dict[str, int]) -> str:
    total = parameters["total"]
    parts = [f"{in_words(total)} parameters"]
    parts += [f"{in_words(parameters[name])} {name}" for name in ("active", "trainable") if parameters[name] != total]
    return ", ".join(parts)


def _exactly(value: Number) -> str:
    whole = _number(value)
    return f"{whole:,}" if isinstance(whole, int) else f"{whole:,.3f}"


def _number(value: Number) -> int | float:
    return int(value) if Fraction(value).denominator == 1 else float(value)


# ---- arguments ------------------------------------------------------------------------------------------------------


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a positive integer")
    return value


def _lengths(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(","))
