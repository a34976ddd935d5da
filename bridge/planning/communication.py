"""The bytes that a rank sends and receives per step, by parallel dimension.

Every linear layer that is cut has its collectives, so the terms of a plan say what travels between tensor-parallel ranks; the
rest follows from the layout.  Bytes are those of the larger of a collective's two buffers; what crosses a rank's link
is ``Traffic.moved``.  Measured on gloo, collective by collective (``tests/planning/test_communication.py``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter

from bridge.flops.plan import Plan
from bridge.flops.shapes import ConfigError, ModelShape
from bridge.flops.terms import Pass, Term
from bridge.planning.activations import of_text
from bridge.planning.buffers import Optimizer, stage_buffers
from bridge.planning.layouts import Layout
from bridge.planning.shards import COLUMN, COLUMN_IF_LOCAL, ROW, is_expert, leaf, terms_of

#: Operation -> how much of the larger buffer crosses a link in a ring of n ranks, but for the factor (n - 1) / n.
_RING = {"all_gather": 1, "reduce_scatter": 1, "all_to_all": 1, "all_reduce": 2}

TENSOR, PIPELINE, DATA, EXPERT, CONTEXT = "tensor", "pipeline", "data", "expert", "context"


@dataclass(frozen=True)
class Traffic:
    """What one kind of collective carries per step.

    Attributes:
        dimension: ``tensor``, ``pipeline``, ``data``, ``expert`` or ``context``.
        operation: ``all_gather``, ``reduce_scatter``, ``all_reduce``, ``all_to_all``, ``send`` or ``recv``.
        ranks: number of ranks that take part.
        bytes: bytes of the larger buffer, summed over all calls of a step.
    """

    dimension: str
    operation: str
    ranks: int
    bytes: int

    @property
    def moved(self) -> float:
        """Bytes that a rank sends over its link, in a ring."""
        if self.operation not in _RING:
            return float(self.bytes) if self.operation == "send" else 0.0
        return self.bytes * _RING[self.operation] * (self.ranks - 1) / self.ranks


@dataclass(frozen=True)
class _Step:
    """The input of the rules below."""

    plan: Plan
    layout: Layout
    optimizer: Optimizer
    stage: int
    tokens: int
    local: bool
    dispatcher: str

    @property
    def shape(self) -> ModelShape:
        return self.plan.model.shape

    @property
    def width(self) -> int:
        """Bytes of one activation."""
        return self.optimizer.weight_bytes

    @property
    def own_tokens(self) -> int:
        """Tokens that a rank holds between its cut layers."""
        layout = self.layout
        return self.tokens // (layout.tensor_model_parallel_size if layout.sequence_parallel else 1)


Found = Iterator[tuple[str, str, int, int]]


def communication(
    plan: Plan,
    layout: Layout,
    optimizer: Optimizer,
    *,
    sequence_length: int,
    stage: int = 0,
    local: bool = False,
    dispatcher: str = "alltoall",
) -> list[Traffic]:
    """What a rank of a stage carries in one step, added up by dimension and operation.

    Experts are taken as evenly chosen; then every rank of a stage carries the same.  What runs on images, sounds or an encoder's
    tokens is left out.

    Args:
        plan: the plan of the model.
        layout: how the model and the batch are split.
        optimizer: the optimizer whose gradients are reduced.
        sequence_length: tokens per sequence.
        stage: pipeline stage, from 0.
        local: megatron-core's own layers with this package's attention, instead of Transformer Engine's.
        dispatcher: megatron-core's ``moe_token_dispatcher_type``: ``alltoall`` or ``allgather``.

    Raises:
        ConfigError: The dispatcher is unknown.
    """
    if dispatcher not in ("alltoall", "allgather"):
        raise ConfigError(f"moe_token_dispatcher_type={dispatcher!r}: its communication is unknown; choose alltoall or allgather")
    tokens = layout.micro_batch_size * sequence_length // layout.context_parallel_size
    step = _Step(plan, layout, optimizer, stage, tokens, local, dispatcher)
    here = _different(plan, layout.cuts, stage)
    found: dict[tuple[str, str, int], int] = defaultdict(int)
    for rule in (_tensor, _weights_once, _experts, _context, _pipeline, _gradients):
        for dimension, operation, ranks, amount in rule(step, here):
            if ranks > 1 and amount:
                found[dimension, operation, ranks] += amount
    return [Traffic(*key, amount) for key, amount in sorted(found.items())]


Terms = list[tuple[Term, int]]
_ALIKE = attrgetter("name", "k", "n", "bias", "weight", "passes", "times")


@lru_cache(maxsize=1024)
def _different(plan: Plan, layout: Layout, stage: int) -> Terms:
    """The terms of a stage that differ in more than their layer, and how many of each there are."""
    trains = plan.trainable
    found: dict[tuple[object, ...], tuple[Term, int]] = {}
    for terms in terms_of(plan, layout, stage):
        for term in filter(of_text, terms):
            key = leaf(term), is_expert(term), trains.weights(term.path), trains.biases(term.path), *_ALIKE(term)
            found[key] = term, found[key][1] + 1 if key in found else 1
    return list(found.values())


# ---- tensor parallelism --------------------------------------------------------------------------


def _tensor(step: _Step, here: Terms) -> Found:
    """What every cut layer gathers, scatters and reduces, micro-batch by micro-batch."""
    ranks = step.layout.tensor_model_parallel_size
    for term, count in here:
        times = count * step.layout.micro_batches
        if not is_expert(term):
            for operation, entries in _of_term(step, term):
                yield TENSOR, operation, ranks, times * step.width * step.tokens * entries
        if leaf(term) == "output_layer" and term.weight:  # the cross-entropy: a maximum and two sums per token
            yield TENSOR, "all_reduce", ranks, times * 3 * 4 * step.tokens


def _of_term(step: _Step, term: Term) -> Iterator[tuple[str, int]]:
    """Operations of one layer, with the numbers per token that they carry."""
    name, spread = leaf(term), step.layout.sequence_parallel
    if name == "word_embeddings":
        yield from _looked_up(term, spread) if step.stage == 0 else ()
    elif name in COLUMN or (step.local and name in COLUMN_IF_LOCAL):
        yield from _column(term, spread)
        yield from _gathered(step, term, name)
        yield from _looked_up(term, spread) if name == "eh_proj" else ()  # multi-token prediction embeds the next tokens
    elif name in ROW:
        yield from _row(term, spread)
    elif name == "linear_kv_down_proj" and spread:  # whole; the rotated part of the key, which all heads share, is gathered
        yield from (("all_gather", step.shape.qk_pos_emb_head_dim), ("reduce_scatter", step.shape.qk_pos_emb_head_dim))


def _looked_up(term: Term, spread: bool) -> Iterator[tuple[str, int]]:
    """Each rank has a part of the vocabulary."""
    yield from [("reduce_scatter", term.n), ("all_gather", term.n)] if spread else [("all_reduce", term.n)]


def _forward(term: Term) -> int:
    """How often it runs forward."""
    return 1 + (Pass.RECOMPUTE in term.passes)


def _column(term: Term, spread: bool) -> Iterator[tuple[str, int]]:
    """The whole input is needed forward, and again for the gradient of the weight; the input's gradient is a sum over ranks."""
    if spread:
        yield "all_gather", term.k * (_forward(term) + (Pass.WGRAD in term.passes))
    if Pass.DGRAD in term.passes:
        yield "reduce_scatter" if spread else "all_reduce", term.k


def _row(term: Term, spread: bool) -> Iterator[tuple[str, int]]:
    """The output is a sum over ranks."""
    yield "reduce_scatter" if spread else "all_reduce", term.n * _forward(term)
    if spread and term.passes & Pass.BACKWARD:
        yield "all_gather", term.n


def _gathered(step: _Step, term: Term, name: str) -> Iterator[tuple[str, int]]:
    """Cut outputs that are made whole again."""
    shape, spread = step.shape, step.layout.sequence_parallel
    if name == "linear_qkv" and shape.key_value_heads < step.layout.tensor_model_parallel_size:
        # Fewer key/value heads than ranks: the projection is gathered, and every rank takes the heads that it needs.
        yield from (("all_gather", term.n), ("reduce_scatter", term.n))
    elif name == "eh_proj" or name in COLUMN_IF_LOCAL:
        yield "all_gather", term.n
        scattered = shape.kv_lora_rank if name == "linear_kv_down_proj" else term.n
        if spread:
            yield "all_gather", scattered
    if name == "linear_kv_down_proj":  # this package's attention adds up the gradient of the part that all heads share
        yield "all_reduce", shape.qk_pos_emb_head_dim


def _weights_once(step: _Step, here: Terms) -> Found:
    """Gradients of weights that every tensor-parallel rank holds whole, each from its own part of the sequence."""
    entries = 0
    trains, spread = step.plan.trainable, step.layout.sequence_parallel
    for term, count in here:
        name = leaf(term)
        if name in ROW and spread and not is_expert(term):
            entries += count * term.bias * trains.biases(term.path)
        elif _summed(step, name) and term.weight:
            entries += count * (term.k * term.n * trains.weights(term.path) + term.bias * trains.biases(term.path))
    yield TENSOR, "all_reduce", step.layout.tensor_model_parallel_size, step.optimizer.gradient_bytes * entries


def _summed(step: _Step, name: str) -> bool:
    if step.layout.sequence_parallel:
        return name.endswith("norm") or name in ("router", "gate_weight")
    return bool(step.shape.qk_layernorm) and name in ("q_layernorm", "k_layernorm")


# ---- experts -------------------------------------------------------------------------------------


def _experts(step: _Step, here: Terms) -> Found:
    """Tokens on their way to their experts and back, forward and backward, with the weights of their choices."""
    layout, shape, width = step.layout, step.shape, step.width
    layers = sum(count for term, count in here if is_expert(term) and leaf(term) == "linear_fc1")
    hidden, experts, topk = shape.moe_latent_size or shape.hidden_size or 0, shape.num_moe_experts or 0, shape.moe_router_topk
    times, both = layers * layout.micro_batches, layout.expert_model_parallel_size * layout.expert_tensor
    one = 2 * hidden * width + width
    if step.dispatcher == "allgather":
        gathered = both * step.own_tokens
        yield EXPERT, "all_gather", both, times * gathered * (2 * hidden * width + experts * (width + 1))
        yield EXPERT, "reduce_scatter", both, times * gathered * (2 * hidden * width + experts * width)
        return
    rows = step.own_tokens * topk
    yield EXPERT, "all_to_all", layout.expert_model_parallel_size, times * 2 * rows * one
    yield EXPERT, "all_gather", both, times * 8 * experts * both
    if layout.expert_tensor > 1:
        yield EXPERT, "all_gather", layout.expert_tensor, times * rows * layout.expert_tensor * one
        yield EXPERT, "reduce_scatter", layout.expert_tensor, times * rows * layout.expert_tensor * one


# ---- sequences -----------------------------------------------------------------------------------


#: Bytes per token that multi-token prediction shifts: its id, position and label, and the mask of its loss.
_NEXT_TOKEN = 8 + 8 + 8 + 4


def _context(step: _Step, here: Terms) -> Found:
    """Keys and values of the other ranks' tokens: all at once here, around a ring with Transformer Engine."""
    layout = step.layout
    ranks = layout.context_parallel_size
    for term, count in here:
        if term.name == "scores_value":
            amount = count * layout.micro_batches * step.width * step.tokens * _key_and_value(step, term)
            if step.local:
                yield CONTEXT, "all_gather", ranks, amount * ranks
                yield CONTEXT, "all_reduce", ranks, amount * ranks
            else:  # forward; backward they go around once more, and their gradients with them
                yield CONTEXT, "send", ranks, 3 * amount * (ranks - 1)
        elif leaf(term) == "eh_proj":  # the next tokens: where a part of the sequence ends, its neighbor's first
            edges = min(ranks - 1, 2) * count * layout.micro_batches * layout.micro_batch_size
            yield CONTEXT, "send", ranks, edges * _NEXT_TOKEN
            yield CONTEXT, "recv", ranks, edges * _NEXT_TOKEN


def _key_and_value(step: _Step, term: Term) -> int:
    """Numbers per token of keys and values on one tensor-parallel rank."""
    shape, ranks = step.shape, step.layout.tensor_model_parallel_size
    heads = term.n // ranks
    if shape.multi_latent_attention:
        return heads * (shape.qk_head_dim + shape.qk_pos_emb_head_dim + shape.v_head_dim)
    groups = max(shape.key_value_heads // ranks, 1)
    return 2 * groups * term.k


# ---- stages and replicas -------------------------------------------------------------------------


def _pipeline(step: _Step, here: Terms) -> Found:
    """Activations to the next stage, their gradients to the one before; a weight that two stages share."""
    layout, stage = step.layout, step.stage
    if layout.stages == 1:
        return
    act = layout.micro_batches * step.width * step.own_tokens * (step.shape.hidden_size or 0)
    first, last = stage == 0, stage == layout.stages - 1
    forward, backward = layout.chunks - last, layout.chunks - first
    yield PIPELINE, "send", layout.stages, act * (forward + backward)
    yield PIPELINE, "recv", layout.stages, act * (forward + backward)
    shared = step.shape.share_embeddings_and_output_weights or step.shape.mtp_num_layers
    if shared and (first or last):
        both = ("word_embeddings", "output_layer")
        table = next((term for term, _ in here if leaf(term) in both and term.weight), None)
        if table is not None and step.plan.trainable.weights("embedding.word_embeddings"):
            entries = table.k * table.n // layout.tensor_model_parallel_size
            yield PIPELINE, "all_reduce", 2, step.optimizer.gradient_bytes * entries


def _gradients(step: _Step, here: Terms) -> Found:
    """Gradients over the ranks that hold the same weights; with the distributed optimizer the new weights too."""
    optimizer = step.optimizer
    found = stage_buffers(step.plan, step.layout, optimizer, step.stage, local=step.local)
    # Without overlap each of the two optimizers, that of the experts and that of the rest, gathers all weights.
    again = 1 if optimizer.overlap_param_gather else len({buffer.expert for buffer in found})
    for buffer in found:
        gradient = optimizer.gradient_bytes * buffer.numel
        if not optimizer.use_distributed_optimizer:
            yield DATA, "all_reduce", buffer.ranks, gradient
            continue
        yield DATA, "reduce_scatter", buffer.ranks, gradient
        yield DATA, "all_gather", buffer.ranks, again * optimizer.weight_bytes * buffer.numel
