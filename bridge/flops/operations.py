"""The operation ledger: additions, multiplications, divisions, exponentiations and square roots, and what they cost.

Every matmul and every declaration of element-wise work of a model, counted operation by operation: ``Ledger`` takes any
configuration.  The functions below it are the budget of one published exercise, fine-tuning Qwen2.5-0.5B with LoRA, in its own
simplified architecture (``NOTEBOOK``) or in the one that model has (``TRUE``).

A matmul (m, k) x (k, n) is m k n multiplications and m (k - 1) n additions; a bias is m n additions.  Costs are weighted: an
exponentiation and a square root count ten, everything else one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from operator import add, sub
from typing import Any

from bridge.flops import conventions, model_shape
from bridge.flops.elementwise import ACTIVATIONS, NOTHING, Operations, dot, layer_norm, rms_norm, softmax
from bridge.flops.inference import step_pairs
from bridge.flops.model_shape import ConfigError
from bridge.flops.plan import PASSES, batch_lengths, compile_plan
from bridge.flops.statistics import Statistic
from bridge.flops.terms import Context, Kind, Pass, Term
from bridge.flops.transforms import ADAPTERS

#: What one operation costs.
COSTS = Operations(additions=1, multiplications=1, divisions=1, exponentiations=10, square_roots=10)
OPERATIONS = tuple(field.name for field in fields(Operations))

#: Cost that the exercise allows.
BUDGET = 10**17


@dataclass(frozen=True)
class OperationCost:
    """Costs by operation (not counts), and the part of their sum that LoRA adds."""

    additions: int = 0
    multiplications: int = 0
    divisions: int = 0
    exponentiations: int = 0
    square_roots: int = 0
    lora: int = 0

    @property
    def total(self) -> int:
        """The sum over all operations; ``lora`` is part of it."""
        return self.additions + self.multiplications + self.divisions + self.exponentiations + self.square_roots

    def __add__(self, other: OperationCost) -> OperationCost:
        return OperationCost(*map(add, _values(self), _values(other)))

    def __sub__(self, other: OperationCost) -> OperationCost:
        return OperationCost(*map(sub, _values(self), _values(other)))

    def __mul__(self, factor: int) -> OperationCost:
        return OperationCost(*(value * factor for value in _values(self)))

    __rmul__ = __mul__


def _values(cost: OperationCost) -> tuple[int, ...]:
    return tuple(getattr(cost, field.name) for field in fields(OperationCost))


# ---- any model -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """Equal work of one batch: a line of the ledger.

    Attributes:
        component, name: what it belongs to.
        layers: how many terms of the model do it.
        cost: of all of them.
    """

    component: str
    name: str
    layers: int
    cost: OperationCost


@dataclass(frozen=True)
class _Priced:
    """One term: so many operations for each unit of a statistic."""

    term: Term
    statistic: Statistic
    operations: Operations


class Ledger:
    """What every operation of a model costs.

    The backward pass costs what autograd runs of it: for a matmul one more for each operand that needs a gradient, for
    element-wise work two more where a gradient passes through it.

    Attributes:
        not_counted: parts of the model that are not priced.
    """

    def __init__(
        self,
        cfg: Any,
        convention: str = "executed",
        *,
        framework: str | None = None,
        edit: Callable[[list[Term]], list[Term]] = list,
    ):
        """Compile a configuration.

        Args:
            cfg: as for ``compile_plan``.
            convention: ``executed`` for attention as a dense kernel runs it, the whole square, or ``exact`` for the pairs
                that are seen.
            framework: as for ``compile_plan``.
            edit: changes the terms, for architectures that no configuration describes.
        """
        # The vocabulary as given; a convolution costs what it costs.
        record = replace(conventions.get(convention), padded_vocabulary=False, mamba_convolution=True)
        plan = compile_plan(cfg, record, framework=framework, elementwise=True)
        self._priced = _price(edit(list(plan.terms)), record)
        # A statistic of a step grows by what one more token costs: see ``inference``.
        growing = replace(record, pairs=step_pairs(conventions.get(convention)))
        self._step_terms = lambda: _price(
            edit(list(compile_plan(cfg, growing, framework=framework, elementwise=True).terms)), growing
        )
        shape = model_shape.read(cfg)
        unknown = shape.activation not in ACTIVATIONS
        note = f"activation_func={shape.activation!r}: what this activation costs is not known and not counted"
        self.not_counted = (*plan.not_counted, note) if unknown else plan.not_counted

    def entries(
        self,
        sequence_lengths: Iterable[int],
        image_patches: Iterable[int] = (),
        passes: str = "forward",
        *,
        keep: Callable[[Term], bool] = lambda term: True,
        **inputs: Iterable[int],
    ) -> list[Entry]:
        """The lines of a batch, in the order of the forward pass; equal work of several layers in one.

        Args:
            sequence_lengths, image_patches, inputs: as for ``Plan.measure``.
            passes: ``forward``, ``training`` or ``hardware``.
            keep: which terms to list.
        """
        lengths = batch_lengths(sequence_lengths, image_patches, **inputs)
        amounts = {one.statistic: one.statistic.sum(lengths[one.statistic.over]) for one in self._priced}
        return _entries(self._priced, amounts, PASSES[passes], keep)

    def cost(
        self,
        sequence_lengths: Iterable[int],
        image_patches: Iterable[int] = (),
        passes: str = "forward",
        *,
        keep: Callable[[Term], bool] = lambda term: True,
        **inputs: Iterable[int],
    ) -> OperationCost:
        """The sum of ``entries``."""
        return _sum(self.entries(sequence_lengths, image_patches, passes, keep=keep, **inputs))

    @cached_property
    def _steps(self) -> list[_Priced]:
        return self._step_terms()

    def decode(self, cached: int, new: int = 1) -> OperationCost:
        """The cost of ``new`` tokens, one after the other, behind ``cached`` ones in a KV cache."""

        def growth(statistic: Statistic) -> int:
            if statistic.over != "sequences":
                return 0
            # What a pass does once, it does in every step.
            return new if statistic.kind == "count" else statistic.of(cached + new) - statistic.of(cached)

        return _sum(_entries(self._steps, {one.statistic: growth(one.statistic) for one in self._steps}, PASSES["forward"]))


def _price(terms: Iterable[Term], record: conventions.Convention) -> list[_Priced]:
    priced = []
    for term in terms:
        operations = COUNTED[term.kind](term)
        if operations != NOTHING:
            rows = term.rows
            if isinstance(rows, Context):
                factor, rows = record.statistic(rows)
                operations = _plain(factor) * operations
            priced.append(_Priced(term, rows, operations))
        if term.bias and term.kind in BIASED:
            # Biases are added once a row, whatever the pairs.
            assert isinstance(term.rows, Statistic)
            priced.append(_Priced(term, term.rows, _plain(term.times) * Operations(additions=term.bias)))
    return priced


def _entries(
    priced: Sequence[_Priced],
    amounts: Mapping[Statistic, int],
    flags: tuple[Pass, ...],
    keep: Callable[[Term], bool] = lambda term: True,
) -> list[Entry]:
    counts: dict[tuple[str, str], Operations] = {}
    paths: dict[tuple[str, str], set[str]] = {}
    for one in priced:
        if keep(one.term):
            key = (one.term.component, one.term.name)
            runs = sum(flag in one.term.passes for flag in flags)
            counts[key] = counts.get(key, NOTHING) + runs * amounts[one.statistic] * one.operations
            paths.setdefault(key, set()).add(one.term.path.rpartition(".")[0])
    return [
        Entry(component, name, len(paths[component, name]), _cost(operations, component == ADAPTERS))
        for (component, name), operations in counts.items()
    ]


def _sum(entries: Iterable[Entry]) -> OperationCost:
    return sum((entry.cost for entry in entries), OperationCost())


def _cost(operations: Operations, lora: bool) -> OperationCost:
    weighted = {name: _integer(getattr(operations, name) * getattr(COSTS, name)) for name in OPERATIONS}
    return OperationCost(**weighted, lora=sum(weighted.values()) if lora else 0)


def _integer(count: int | Fraction) -> int:
    # A recurrence of an odd size is priced at half an operation too many or too few in Megatron's count: round it once.
    return count if isinstance(count, int) else round(count)


# ---- what the kinds of terms do to one row -------------------------------------------------------


def _plain(factor: Fraction) -> int | Fraction:
    """An int where it is one: much faster."""
    return factor.numerator if factor.denominator == 1 else factor


def _matmul(term: Term) -> Operations:
    return _plain(term.times) * dot(term.k, term.n)


def _core(term: Term) -> Operations:
    if term.name.endswith("scores_value"):
        # The sum runs over the keys: ``terms.softmax`` takes away the addition that the first key does not need.
        return _products(term)
    return _matmul(term)


def _products(term: Term) -> Operations:
    """An addition with every multiplication."""
    return _plain(term.times * term.k * term.n) * Operations(additions=1, multiplications=1)


def _norm(term: Term) -> Operations:
    return _plain(term.times) * (layer_norm(term.k) if term.bias else rms_norm(term.k))


COUNTED: Mapping[Kind, Callable[[Term], Operations]] = {
    Kind.LINEAR: _matmul,
    Kind.ROUTER: _matmul,
    Kind.GATE: _matmul,
    Kind.CONVOLUTION: _matmul,
    Kind.PATCH_EMBEDDING: _matmul,
    Kind.HYPER_CONNECTION: _matmul,
    Kind.CORE: _core,
    Kind.SCAN: _products,
    Kind.NORM: _norm,
    Kind.LATENT_NORM: _norm,
    Kind.TABLE: lambda term: NOTHING,
    Kind.JOIN: lambda term: NOTHING,
    Kind.ELEMENTWISE: lambda term: term.operations,
}
#: Kinds whose bias is an addition beside the matmul (a norm's is part of the norm).
BIASED = (Kind.LINEAR, Kind.ROUTER, Kind.CONVOLUTION, Kind.PATCH_EMBEDDING)


# ---- the exercise --------------------------------------------------------------------------------


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
    if isinstance(lora_rank, bool) or not isinstance(lora_rank, int) or lora_rank < 0:
        raise ConfigError(f"lora_rank={lora_rank!r} must be an integer of at least 0, which is no LoRA")
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
    return ledger_of(architecture, lora_rank).cost([_positive("tokens", tokens)])


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
    return ledger.cost([_positive("tokens", tokens)], keep=lambda term: wanted(term.path))


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
    sequences = _positive("batch_size", batch_size) * _positive("steps", steps, 0)
    if not architecture.frozen_is_free:
        return 3 * sequences * forward_pass(tokens, lora_rank, architecture=architecture)
    return sequences * ledger_of(architecture, lora_rank).cost([_positive("tokens", tokens)], passes="training")


def evaluation(tokens: int, lora_rank: int = 0, batch_size: int = 1, *, architecture: Architecture = NOTEBOOK) -> OperationCost:
    """A forward pass over a batch of equal sequences."""
    return _positive("batch_size", batch_size) * forward_pass(tokens, lora_rank, architecture=architecture)


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
    given, generated = _positive("tokens_given", tokens_given), _positive("tokens_generated", tokens_generated, 0)
    ledger = ledger_of(architecture, lora_rank)
    if not generated:
        cost = OperationCost()
    elif architecture.kv_cache:
        cost = ledger.cost([given]) + ledger.decode(given, generated - 1)
    else:
        cost = ledger.cost(range(given, given + generated))
    return cost + generated * _cost(softmax(VOCABULARY), lora=False) if stochastic else cost


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
    length = [_positive("tokens", tokens)]
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


def _positive(name: str, value: int, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}={value!r} must be an integer of at least {least}")
    return value
