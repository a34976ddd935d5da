"""``bridge ledger``: every operation of a model, what it costs, and what that is of a budget."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from bridge.cli import arguments as options
from bridge.cli.console import Output, make_table, print_json
from bridge.flops import ConfigError
from bridge.flops.elementwise import softmax_row
from bridge.planning.exhibits.lora_notebook import (
    BUDGET,
    NOTEBOOK,
    TRUE,
    Budget,
    Difference,
    differences,
    evaluation,
    generation,
    ledger_of,
    training,
)
from bridge.planning.ledger import OPERATIONS, Entry, Ledger, OperationCost, cost_of
from bridge.text import count, with_unit

#: The published exercise on Qwen2.5-0.5B: as it simplifies the model, and as the model is.
EXERCISE = {architecture.name: architecture for architecture in (NOTEBOOK, TRUE)}
_CONVENTIONS = ("executed", "exact")
#: In the order of OPERATIONS.
_HEADINGS = ("add", "multiply", "divide", "exp", "root")
#: Its length of a sequence.
EXERCISE_TOKENS = 512

_EXAMPLES = {
    "every operation of a forward pass": "bridge ledger llama3-8b",
    "what 1,000 training steps take of a budget": "bridge ledger qwen2.5-0.5b --tokens 512 --steps 1000 --budget 1e18",
    "the exercise, and how it simplifies the model": "bridge ledger notebook --lora-rank 4 --differences",
}


def add_to(commands: options.Commands[options.Parser]) -> None:
    parser = options.add_command(
        commands,
        "ledger",
        run,
        "Count the additions, multiplications, divisions, exponentiations and square roots of a forward pass. Costs are "
        "weighted: an exponentiation or a square root counts ten, any other operation one. Then show the share of a budget that "
        "training, evaluation and generation use.",
        _EXAMPLES,
    )
    options.add_model(
        parser,
        "a recipe, a config.json, or the exercise on Qwen2.5-0.5B with LoRA: 'notebook' as it simplifies the model, "
        "'true' as the model is",
    )
    parser.add_argument("--tokens", type=options.length, metavar="N",
                        help=f"tokens per sequence (default model.seq_length; {EXERCISE_TOKENS} in the exercise)")  # fmt: skip
    parser.add_argument(
        "--lora-rank", type=options.positive, default=0, metavar="N", help="rank of the adapters (default: no LoRA)"
    )
    parser.add_argument("--batch-size", type=options.positive, default=1, metavar="N", help="sequences per step (default 1)")
    parser.add_argument("--steps", type=options.positive, default=0, metavar="N", help="training steps to charge")
    parser.add_argument("--evaluations", type=options.positive, default=0, metavar="N", help="evaluated batches to charge")
    parser.add_argument("--generate", type=options.length, default=0, metavar="N", help="generated tokens to charge")
    parser.add_argument(
        "--stochastic", action="store_true", help="draw tokens from a softmax instead of taking the largest logit"
    )
    parser.add_argument("--budget", type=options.number, default=float(BUDGET), metavar="COST", help="the budget (default 1e17)")
    parser.add_argument("--spent", type=options.number, default=0, metavar="COST", help="cost already spent")
    parser.add_argument("--convention", choices=_CONVENTIONS,
                        help="attention over the whole square or over the pairs that are seen (default that of the recipe's "
                             "callback if it is one of these, else executed)")  # fmt: skip
    parser.add_argument(
        "--differences", action="store_true", help="show where the exercise's architecture differs from the true one"
    )


@dataclass(frozen=True)
class Bill:
    """The costs of what was asked for.

    Attributes:
        name, tokens: the model and the length of a sequence.
        entries: lines of one forward pass.
        step: one training step.
        spent: each kind of work that was asked for; a forward pass where nothing was.
        not_counted: parts of the model that are not priced.
    """

    name: str
    tokens: int
    entries: Sequence[Entry]
    step: OperationCost
    spent: dict[str, OperationCost]
    not_counted: Sequence[str]

    @property
    def forward(self) -> OperationCost:
        return _sum(entry.cost for entry in self.entries)

    def budget(self, limit: int, before: int) -> Budget:
        return Budget(limit, before).spend(_sum(self.spent.values()))


def run(arguments: argparse.Namespace) -> int:
    bill = _exercise(arguments) if arguments.recipe in EXERCISE else _any_model(arguments)
    items = differences(bill.tokens, arguments.lora_rank) if arguments.differences else []
    budget = bill.budget(int(arguments.budget), int(arguments.spent))
    if arguments.json:
        print_json(_as_json(bill, budget, items))
    else:
        _show(Output(), bill, budget, items)
    return 0


def _exercise(arguments: argparse.Namespace) -> Bill:
    if arguments.overrides:
        raise ConfigError(
            f"{arguments.recipe!r} has no options ({arguments.overrides[0]}); name a recipe, for example qwen2.5-0.5b"
        )
    architecture, rank, batch = EXERCISE[arguments.recipe], arguments.lora_rank, arguments.batch_size
    tokens = arguments.tokens or EXERCISE_TOKENS
    ledger = ledger_of(architecture, rank)
    asked = {
        "training": training(tokens, rank, batch, arguments.steps, architecture=architecture),
        "evaluation": arguments.evaluations * evaluation(tokens, rank, batch, architecture=architecture),
        "generation": generation(tokens, arguments.generate, rank, arguments.stochastic, architecture=architecture),
    }
    step = training(tokens, rank, batch, architecture=architecture)
    return _bill(f"{architecture.name} architecture of Qwen2.5-0.5B", tokens, ledger, step, asked)


def _any_model(arguments: argparse.Namespace) -> Bill:
    if arguments.differences:
        raise ConfigError(
            f"--differences is for the exercise: {' or '.join(map(repr, EXERCISE))} instead of {arguments.recipe!r}"
        )
    adapters = [f"peft={{kind: lora, dim: {arguments.lora_rank}}}"] if arguments.lora_rank else []
    config = options.read_config(arguments.recipe, [*adapters, *arguments.overrides])
    tokens = arguments.tokens or config.model.seq_length
    if tokens is None:
        raise ConfigError("model.seq_length is not set; add --tokens")
    named = options.convention_of(arguments, config)
    ledger, batch = Ledger(config, named if named in _CONVENTIONS else _CONVENTIONS[0]), arguments.batch_size
    forward, step = ledger.cost([tokens]), batch * ledger.cost([tokens], passes="training")
    written = OperationCost()
    if arguments.generate:
        written = forward + ledger.decode(tokens, arguments.generate - 1)
        if arguments.stochastic:
            written += arguments.generate * cost_of(softmax_row(config.model.vocab_size or 0))
    asked = {"training": arguments.steps * step, "evaluation": arguments.evaluations * batch * forward, "generation": written}
    return _bill(config.name, tokens, ledger, step, asked)


def _bill(name: str, tokens: int, ledger: Ledger, step: OperationCost, asked: dict[str, OperationCost]) -> Bill:
    entries = ledger.entries([tokens])
    spent = {work: cost for work, cost in asked.items() if cost.total} or {"forward pass": _sum(entry.cost for entry in entries)}
    return Bill(name, tokens, entries, step, spent, ledger.not_counted)


def _sum(costs: Iterable[OperationCost]) -> OperationCost:
    return sum(costs, OperationCost())


# ---- output ---------------------------------------------------------------------------------------------------------


def _as_json(bill: Bill, budget: Budget, items: Sequence[Difference]) -> dict[str, Any]:
    def values(cost: OperationCost) -> dict[str, int]:
        return {**asdict(cost), "total": cost.total}

    return {
        "name": bill.name,
        "tokens": bill.tokens,
        "entries": [
            {"component": entry.component, "name": entry.name, "layers": entry.layers, **values(entry.cost)}
            for entry in bill.entries
        ],
        "forward": values(bill.forward),
        "step": values(bill.step),
        "spent": {work: values(cost) for work, cost in bill.spent.items()},
        "budget": {
            "limit": budget.limit,
            "spent": budget.spent,
            "percent": budget.percent,
            "remaining": budget.remaining,
            "steps_left": budget.steps_left(bill.step),
        },
        "differences": [{**asdict(item), "change": item.change} for item in items],
        "not_counted": list(bill.not_counted),
    }


def _show(console: Output, bill: Bill, budget: Budget, items: Sequence[Difference]) -> None:
    console.print(f"[bold]{bill.name}[/]: the cost of a forward pass over {count(bill.tokens, 'token')}\n")
    total, amount = bill.forward.total, partial(with_unit, unit="")
    table = make_table(("component", "work"), ("layers", *_HEADINGS, "cost", "share"))
    for entry in bill.entries:
        if entry.cost.total:
            costs = [amount(getattr(entry.cost, name)) if getattr(entry.cost, name) else "" for name in OPERATIONS]
            share = f"{entry.cost.total / total:.1%}"
            table.add_row(entry.component, entry.name, str(entry.layers), *costs, f"{entry.cost.total:,}", share)
    table.add_row("total", "", "", *(amount(getattr(bill.forward, name)) for name in OPERATIONS), f"{total:,}", "", style="bold")
    console.show(table)
    if bill.forward.lora:
        console.print(f"LoRA adds {bill.forward.lora:,}")
    if items:
        _show_differences(console, items)
    console.print(f"\nBudget of {budget.limit:.3g}")
    table = make_table(("",), ("cost", "LoRA", "of the budget"))
    for work, cost in bill.spent.items():
        table.add_row(work, f"{cost.total:,}", f"{cost.lora:,}", f"{budget.share(cost):.4g}%")
    table.add_row("spent", f"{budget.spent:,}", "", f"{budget.percent:.4g}%", style="bold")
    table.add_row("a training step", f"{bill.step.total:,}", f"{bill.step.lora:,}", f"{budget.share(bill.step):.4g}%")
    console.show(table)
    console.print(
        f"{count(budget.steps_left(bill.step), 'such step')} still {'fits' if budget.steps_left(bill.step) == 1 else 'fit'}"
    )
    for sentence in bill.not_counted:
        console.print(f"[yellow]not counted:[/] {sentence}")


def _show_differences(console: Output, items: Sequence[Difference]) -> None:
    console.print("\nDifferences of the true architecture")
    table = make_table(("work",), ("notebook", "true", "change"), ("because of",))
    for item in items:
        table.add_row(item.part, f"{item.notebook:,}", f"{item.true:,}", f"{item.change:,}", item.reason)
    sums = (sum(item.notebook for item in items), sum(item.true for item in items), sum(item.change for item in items))
    table.add_row("total", *(f"{value:,}" for value in sums), "", style="bold")
    console.show(table)
