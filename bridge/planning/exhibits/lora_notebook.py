"""The operation budget of one published exercise: fine-tuning Qwen2.5-0.5B with LoRA.

In the exercise's own simplified architecture (``NOTEBOOK``), or in the one that the model has (``TRUE``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from bridge.flops.elementwise import NOTHING, softmax_row
from bridge.flops.shapes import ConfigError, whole
from bridge.flops.terms import Kind, Term
from bridge.planning.ledger import Ledger, OperationCost, cost_of

#: Cost that the exercise allows.
BUDGET = 10**17


@dataclass(frozen=True)
class Architecture:
    """How to see Qwen2.5-0.5B.

    Attributes:
        name: what reports call it.
        num_query_groups: heads of keys and values.
        dense_rope: RoPE is a matmul with a matrix as wide as the model instead of three operations a number.
        head_bias: the vocabulary projection has a bias.
        kv_cache: generation keeps keys and values instead of running everything again.
        frozen_is_free: training computes no gradient of a weight that LoRA leaves frozen; otherwise a step is three forward
            passes, whatever trains.
    """

    name: str
    num_query_groups: int
    dense_rope: bool
    head_bias: bool
    kv_cache: bool
    frozen_is_free: bool


NOTEBOOK = Architecture("notebook", 14, dense_rope=True, head_bias=True, kv_cache=False, frozen_is_free=False)
TRUE = Architecture("true", 2, dense_rope=False, head_bias=False, kv_cache=True, frozen_is_free=True)

_QWEN = {
    "num_layers": 24,
    "hidden_size": 896,
    "num_attention_heads": 14,
    "ffn_hidden_size": 4864,
    "vocab_size": 151936,
    "gated_linear_unit": True,
    "add_qkv_bias": True,
}
VOCABULARY = 151936
#: LoRA on queries and values.
_TARGETS = ("linear_q", "linear_v")
_FIRST_LAYER = "decoder.layers.0."


@lru_cache(maxsize=64)
def ledger_of(architecture: Architecture, lora_rank: int = 0) -> Ledger:
    """The ledger of Qwen2.5-0.5B in one of its two forms, with adapters of that rank."""
    whole("lora_rank", lora_rank, least=0)  # 0 is no LoRA
    cfg: dict[str, Any] = {"model": _QWEN | {"num_query_groups": architecture.num_query_groups}}
    if lora_rank:
        cfg["peft"] = {"kind": "lora", "dim": lora_rank, "target_modules": _TARGETS}

    def edit(terms: list[Term]) -> list[Term]:
        return [_as_seen(term, architecture) for term in terms]

    return Ledger(cfg, framework="transformers", edit=edit)


def _as_seen(term: Term, architecture: Architecture) -> Term:
    if architecture.dense_rope and term.name in ("rope_query", "rope_key"):
        width = int(term.operations.additions)
        return replace(term, k=width, n=width, kind=Kind.LINEAR, operations=NOTHING)
    if architecture.head_bias and term.name == "output_layer":
        return replace(term, bias=term.n)
    return term


def forward_pass(tokens: int, lora_rank: int = 0, *, architecture: Architecture = NOTEBOOK) -> OperationCost:
    """One pass over a sequence: all layers, the last norm, the vocabulary projection of every position.

    Args:
        tokens: its length.
        lora_rank: rank of the adapters on queries and values; 0 for none.
        architecture: ``NOTEBOOK`` or ``TRUE``.
    """
    return ledger_of(architecture, lora_rank).cost([whole("tokens", tokens)])


def layer(tokens: int, lora_rank: int = 0, *, architecture: Architecture = NOTEBOOK) -> OperationCost:
    """One layer: attention block, MLP block, norms and residuals."""
    return _part(tokens, lora_rank, architecture, lambda path: path.startswith(_FIRST_LAYER))


def attention_block(tokens: int, lora_rank: int = 0, *, architecture: Architecture = NOTEBOOK) -> OperationCost:
    """The attention of one layer, from the normed input to its output projection, adapters included."""
    return _part(tokens, lora_rank, architecture, lambda path: path.startswith(f"{_FIRST_LAYER}self_attention."))


def mlp_block(tokens: int, lora_rank: int = 0, *, architecture: Architecture = NOTEBOOK) -> OperationCost:
    """The MLP of one layer."""
    return _part(tokens, lora_rank, architecture, lambda path: path.startswith(f"{_FIRST_LAYER}mlp."))


def norms_and_residuals(tokens: int, lora_rank: int = 0, *, architecture: Architecture = NOTEBOOK) -> OperationCost:
    """Both norms and both residuals of one layer."""
    blocks = (f"{_FIRST_LAYER}self_attention.", f"{_FIRST_LAYER}mlp.")
    return _part(tokens, lora_rank, architecture, lambda path: path.startswith(_FIRST_LAYER) and not path.startswith(blocks))


def _part(tokens: int, lora_rank: int, architecture: Architecture, wanted: Callable[[str], bool]) -> OperationCost:
    ledger = ledger_of(architecture, lora_rank)
    return ledger.cost([whole("tokens", tokens)], keep=lambda term: wanted(term.path))


def training(
    tokens: int, lora_rank: int = 0, batch_size: int = 1, steps: int = 1, *, architecture: Architecture = NOTEBOOK
) -> OperationCost:
    """Steps of training on batches of equal sequences; with LoRA only the adapters train.

    Args:
        tokens: length of a sequence.
        lora_rank: rank of the adapters; 0 trains all weights.
        batch_size: sequences of a step.
        steps: optimizer steps; the optimizer itself is not counted.
        architecture: ``NOTEBOOK`` or ``TRUE``.
    """
    sequences = whole("batch_size", batch_size) * whole("steps", steps, 0)
    if not architecture.frozen_is_free:
        return 3 * sequences * forward_pass(tokens, lora_rank, architecture=architecture)
    return sequences * ledger_of(architecture, lora_rank).cost([whole("tokens", tokens)], passes="training")


def evaluation(tokens: int, lora_rank: int = 0, batch_size: int = 1, *, architecture: Architecture = NOTEBOOK) -> OperationCost:
    """A forward pass over a batch of equal sequences."""
    return whole("batch_size", batch_size) * forward_pass(tokens, lora_rank, architecture=architecture)


def generation(
    tokens_given: int,
    tokens_generated: int,
    lora_rank: int = 0,
    stochastic: bool = False,
    *,
    architecture: Architecture = NOTEBOOK,
) -> OperationCost:
    """Tokens generated one by one.

    Without a KV cache there is a whole pass for each of them, over what is there so far; with one, a pass over what was given
    and one token more for each after the first.

    Args:
        tokens_given: tokens before the first generated one.
        tokens_generated: how many.
        lora_rank: rank of the adapters.
        stochastic: the next token is drawn from a softmax over the vocabulary at a temperature, instead of the largest logit.
        architecture: ``NOTEBOOK`` or ``TRUE``.
    """
    given, generated = whole("tokens_given", tokens_given), whole("tokens_generated", tokens_generated, 0)
    ledger = ledger_of(architecture, lora_rank)
    if not generated:
        cost = OperationCost()
    elif architecture.kv_cache:
        cost = ledger.cost([given]) + ledger.decode(given, generated - 1)
    else:
        cost = ledger.cost(range(given, given + generated))
    return cost + generated * cost_of(softmax_row(VOCABULARY)) if stochastic else cost


@dataclass(frozen=True)
class Difference:
    """One part of the forward pass in both architectures."""

    part: str
    notebook: int
    true: int
    reason: str

    @property
    def change(self) -> int:
        """What the true architecture adds to it, mostly a negative number."""
        return self.true - self.notebook


#: Why parts differ.
_REASONS = {
    "linear_k": "grouped queries: 2 heads of keys instead of 14",
    "linear_v": "grouped queries: 2 heads of values instead of 14",
    "rope_query": "sparse RoPE: three operations a number instead of a dense matrix",
    "rope_key": "sparse RoPE on 2 heads of keys",
    "output_layer": "no bias on the vocabulary projection",
    "lora_B": "adapters of the values are as narrow as the values",
    "lora_sum": "adapters of the values are as narrow as the values",
}


def differences(tokens: int, lora_rank: int = 0) -> list[Difference]:
    """Where the forward passes of the two architectures differ; the changes add up to the difference of their totals."""
    length = [whole("tokens", tokens)]
    ours, theirs = ({entry.name: 0 for entry in ledger_of(a, lora_rank).entries(length)} for a in (NOTEBOOK, TRUE))
    for totals, architecture in ((ours, NOTEBOOK), (theirs, TRUE)):
        for entry in ledger_of(architecture, lora_rank).entries(length):
            totals[entry.name] += entry.cost.total
    return [Difference(name, ours[name], theirs[name], _REASONS[name]) for name in ours if ours[name] != theirs[name]]


@dataclass(frozen=True)
class Budget:
    """An allowance of cost and what has been spent of it.

    Attributes:
        limit: the allowance.
        spent: cost so far.
    """

    limit: int = BUDGET
    spent: int = 0

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ConfigError("the budget must be at least 1")

    def spend(self, cost: OperationCost) -> Budget:
        """The budget after this."""
        return replace(self, spent=self.spent + cost.total)

    @property
    def remaining(self) -> int:
        """What is left; negative where more was spent."""
        return self.limit - self.spent

    @property
    def percent(self) -> float:
        """The share used."""
        return 100 * self.spent / self.limit

    def share(self, cost: OperationCost) -> float:
        """What this is of the whole budget, in percent."""
        return 100 * cost.total / self.limit

    def steps_left(self, step: OperationCost) -> int:
        """How many times this still fits."""
        if step.total <= 0:
            raise ConfigError("a step that costs nothing fits any number of times: give the cost of one")
        return max(self.remaining, 0) // step.total
