"""One block by itself: what its terms cost, and what torch counts while the real one runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from oracle.counter import count
from torch import Tensor, nn

from bridge.flops import conventions, frameworks
from bridge.flops.build import Build
from bridge.flops.components.registry import CHANNELS, MIXERS
from bridge.flops.layer_pattern import decoder_layers
from bridge.flops.plan import Plan
from bridge.flops.reading import read
from bridge.flops.terms import Kind, Term
from bridge.flops.transforms import Rule, differentiate, everything

SMALL = {"num_layers": 1, "hidden_size": 12, "ffn_hidden_size": 20, "num_attention_heads": 4, "vocab_size": 50}
#: Forward, forward and backward, parameters.
Work = tuple[Any, Any, int]


def plan_of(
    terms: Iterable[Term], convention: str = "executed", framework: str = "transformers", trains: Rule = everything
) -> Plan:
    """A model of these terms alone, whose inputs need no gradient."""
    matmuls = [term.under("") for term in terms if term.kind is not Kind.ELEMENTWISE]
    passes = differentiate(matmuls, trains, frameworks.get(framework))
    return Plan(conventions.get(convention), passes, (), trains, lambda how: passes)


def priced(terms: Iterable[Term], *, convention: str = "executed", framework: str = "transformers", **lengths: Any) -> Work:
    """What the terms cost on a batch given by the lengths of ``Plan.measure``."""
    plan = plan_of(terms, convention, framework)
    lengths.setdefault("sequence_lengths", [])
    return plan.flops(passes="forward", **lengths), plan.flops(**lengths), plan.parameters()["total"]


def executed(module: nn.Module, run: Callable[[], Tensor]) -> Work:
    """What torch counts while ``run`` calls the module on tensors that need no gradient."""
    return count(run), count(lambda: run().sum().backward()), sum(parameter.numel() for parameter in module.parameters())


def trained_alone(
    terms: Iterable[Term], module: nn.Module, run: Callable[[], Tensor], paths: Mapping[str, str], **lengths: Any
) -> tuple[dict[str, Any], dict[str, int]]:
    """FLOPs with a single module in training, as priced and as counted; ``paths`` are of modules: torch's name -> the plan's."""
    block, found, ran = list(terms), {}, {}
    lengths.setdefault("sequence_lengths", [])
    for name, path in paths.items():
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        module.get_submodule(name).requires_grad_(True)
        found[name] = plan_of(block, trains=path.__eq__).flops(**lengths)
        ran[name] = count(lambda: run().sum().backward())
    return found, ran


def macs(terms: Iterable[Term], tokens: int, convention: str = "exact") -> Any:
    """Forward multiply-accumulates of one sequence."""
    return plan_of(terms, convention).flops([tokens], passes="forward") / 2


def linears(module: nn.Module, tokens: int) -> int:
    """What torch counts while every linear layer of the module runs once on so many tokens."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    return count(lambda: [layer(torch.zeros(tokens, layer.in_features)) for layer in layers])


def in_layer(fields: dict[str, Any], *, layer: int = 0, framework: str = "transformers", convention: str = "executed",
             channel: bool = False) -> list[Term]:  # fmt: skip
    """The mixer of a layer (its channel mixer), built by its row from the fields of a small model."""
    shape = read(SMALL | fields).shape
    build = Build(shape, conventions.get(convention), frameworks.get(framework))
    found = decoder_layers(shape)[layer]
    row = CHANNELS[found.channel] if channel else MIXERS[found.mixer]
    return row.terms(build, found)


def turns(tokens: int, size: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines that turn nothing, for heads of this size."""
    return torch.ones(1, tokens, size), torch.zeros(1, tokens, size)
