"""What one forward pass keeps for its backward pass, in bytes, by component of the model.

A linear layer whose weight trains keeps its input; attention, norms and activations keep what their kernels ask for, and that
differs between implementations: a record each.  ``LOCAL`` is megatron-core's own layers without fusions, measured tensor by
tensor (``tests/planning/test_activations.py``); ``TRANSFORMER_ENGINE`` is read from its sources, with FlashAttention (Dao et al.,
arXiv:2205.14135).  Korthikanti et al., arXiv:2205.05198, have the same sums for GPT-3's layers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from bridge.flops.plan import Plan
from bridge.flops.statistics import Over
from bridge.flops.terms import Kind, Pass, Term
from bridge.planning.layouts import Layout
from bridge.planning.shards import COLUMN, ROW, is_expert, leaf

#: Line of the logits and of what the loss keeps of them.
LOGITS = "logits"
#: Line of what recomputed layers keep: their inputs.
RECOMPUTED = "recomputed_layers"
#: Bytes per token: of its id, and of what the cross-entropy keeps beside the probabilities (a number and a flag).
TOKEN, LOSS = 8, 9


@dataclass(frozen=True)
class Implementation:
    """What the kernels of a layer keep in addition to the inputs of its linear layers.

    Attributes:
        name: megatron-core's ``transformer_impl``.
        rms_norm: bytes that an RMSNorm keeps per number that it reads; 0: one copy in the model's type.
        gated, plain: numbers that a gated or a plain activation function keeps per output, without the output itself.
        weighted: further numbers per output in experts, whose outputs are weighted.
        fused_attention: attention keeps a sum of exponentials per query, and no scores.
        tables: numbers per position and channel that RoPE keeps in every layer.
        routed, chosen: bytes that routing keeps per token and expert, and per chosen expert.
    """

    name: str
    rms_norm: int
    gated: int
    plain: int
    weighted: int
    fused_attention: bool
    tables: int
    routed: int
    chosen: int


LOCAL = Implementation("local", 8, 4, 1, 1, False, 4, 3, 22)
TRANSFORMER_ENGINE = Implementation("transformer_engine", 0, 2, 1, 0, True, 0, 9, 16)
IMPLEMENTATIONS = {one.name: one for one in (LOCAL, TRANSFORMER_ENGINE)}


@dataclass(frozen=True)
class Batch:
    """One micro-batch on one rank.

    Attributes:
        sequences: number of sequences.
        length: tokens of each sequence on this rank, which is a part of it under context parallelism.
        width: bytes per number.
    """

    sequences: int
    length: int
    width: int

    @property
    def tokens(self) -> int:
        """Tokens of the micro-batch."""
        return self.sequences * self.length


def activations(
    plan: Plan, terms: Sequence[Term], layout: Layout, batch: Batch, implementation: Implementation = TRANSFORMER_ENGINE
) -> dict[str, int]:
    """Bytes that a forward pass of one model chunk keeps, by component.

    Args:
        plan: the plan of the model, for its heads and what is recomputed.
        terms: the terms of the chunk, in the order in which they run, with their passes.
        layout: how they are cut.
        batch: the micro-batch.
        implementation: the kernels.
    """
    chunk = _Chunk(plan, layout, batch, implementation)
    found: dict[str, int] = defaultdict(int)
    for is_layer, block in _layers(terms):
        for component, amount in chunk.of_block(block, is_layer):
            found[component] += amount
    for component, amount in chunk.once(terms, RECOMPUTED in found):
        found[component] += amount
    return {component: amount // chunk.unit for component, amount in found.items() if amount}


def working(
    plan: Plan, terms: Sequence[Term], layout: Layout, batch: Batch, implementation: Implementation = TRANSFORMER_ENGINE
) -> int:
    """Bytes that the backward pass needs for a while beside what is kept; arguments as for ``activations``.

    A recomputed layer holds for a while all that it would have kept, and logits exist beside their probabilities.
    """
    chunk, most = _Chunk(plan, layout, batch, implementation), 0
    for is_layer, block in _layers(terms):
        if is_layer and any(Pass.RECOMPUTE in term.passes for term in block):
            plain = [term.changed(passes=term.passes & ~Pass.RECOMPUTE) for term in block]
            kept, all_of_it = (sum(amount for _, amount in chunk.of_block(one, True)) for one in (block, plain))
            most = max(most, all_of_it * (chunk.together if chunk.is_run_again(block) else 1) - kept)
    vocabulary = max((term.n for term in terms if leaf(term) == "output_layer"), default=0)
    return max(most, chunk.cut * batch.width * vocabulary) // chunk.unit


#: Products of attention that are known; what others, such as those of indexers, keep is unknown.
_PRODUCTS = ("query_key", "scores_value")
#: Work whose kernels keep what is not known either.
_KERNELS = (Kind.SCAN, Kind.CONVOLUTION, Kind.HYPER_CONNECTION, Kind.STREAM_MIXING)


def of_text(term: Term) -> bool:
    """Whether a term runs on the tokens of the sequences, not on images, sounds or an encoder's tokens."""
    return term.rows.over is Over.SEQUENCES


def not_kept(terms: Sequence[Term]) -> tuple[str, ...]:
    """A sentence for each component of which it is not known, or not from lengths alone, what it keeps."""
    other = dict.fromkeys(term.component for term in terms if term.weight and term.k and not of_text(term) and term.inputs)
    odd = dict.fromkeys(
        term.component
        for term in terms
        if term.kind in _KERNELS or (term.kind is Kind.CORE and of_text(term) and term.name not in _PRODUCTS)
    )
    return (
        *(f"{name}: its activations depend on more than the sequences' length; they are not in the memory" for name in other),
        *(f"{name}: what its kernels keep is not known; the memory is a lower bound" for name in odd if name not in other),
    )


def _layers(terms: Sequence[Term]) -> Iterator[tuple[bool, list[Term]]]:
    """The terms of each layer, and those outside of layers as one group: (whether it is a layer, its terms)."""
    blocks: dict[str, list[Term]] = {}
    for term in filter(of_text, terms):
        parts = term.path.split(".", 3)
        inside = len(parts) == 4 and parts[1] == "layers" and leaf(term) != "output_layer"
        blocks.setdefault(".".join(parts[:3]) if inside else "", []).append(term)
    yield from ((bool(layer), block) for layer, block in blocks.items())


Kept = Iterator[tuple[str, int]]


@dataclass(frozen=True)
class _Chunk:
    plan: Plan
    layout: Layout
    batch: Batch
    kernels: Implementation

    # ---- tokens, in parts of a token so small that every division is exact -------------------------------

    @cached_property
    def together(self) -> int:
        """Layers that are recomputed from one input."""
        shape = self.plan.model.shape
        return max(shape.recompute_num_layers or 1, 1) if shape.recompute_method == "uniform" else 1

    @cached_property
    def unit(self) -> int:
        """Parts per token."""
        return self.layout.tensor_model_parallel_size * self.layout.expert_tensor * self.together

    @cached_property
    def all(self) -> int:
        """Tokens of the micro-batch."""
        return self.batch.tokens * self.unit

    @cached_property
    def own(self) -> int:
        """Tokens that a rank holds between cut layers."""
        return self.all // (self.layout.tensor_model_parallel_size if self.layout.sequence_parallel else 1)

    @cached_property
    def cut(self) -> int:
        """Tokens over the ranks that share what is as wide as the heads, the MLP or the vocabulary."""
        return self.all // self.layout.tensor_model_parallel_size

    def _inputs(self, term: Term) -> int:
        """Rows of a term's whole input that a rank has."""
        name = leaf(term)
        if is_expert(term):
            return self.own if name in COLUMN else self.own // self.layout.expert_tensor
        if name in ROW or (term.kind is Kind.NORM and term.times > 1):
            return self.cut
        return self.own

    # ---- what keeps what -----------------------------------------------------------------------------

    def once(self, terms: Sequence[Term], recomputed: bool) -> Kept:
        """What all layers share: the attention mask, and RoPE's angles for layers that are recomputed."""
        attends = any(term.name == "query_key" for term in terms)
        if attends and not self.kernels.fused_attention:
            yield "core_attention", self.unit * self.batch.length**2
        if attends and recomputed:
            width = next(term.k for term in terms if term.name == "query_key")
            yield RECOMPUTED, self.unit * 4 * self.batch.length * width

    def of_block(self, block: Sequence[Term], is_layer: bool) -> Kept:
        """Component and bytes of everything that a layer keeps."""
        shape = self.plan.model.shape
        if is_layer and self.is_run_again(block):
            yield RECOMPUTED, self.own // self.together * self.batch.width * (shape.hidden_size or 0)
            return
        writers: dict[str, int] = defaultdict(int)
        kept: set[tuple[str, int, bool]] = set()
        inner = 0
        for term in block:
            if term.kind in (Kind.NORM, Kind.LATENT_NORM):
                yield term.component, self._norm(term)
            elif term.kind is Kind.CORE:
                yield from self._core(term) if term.name in _PRODUCTS else ()
            elif term.name == "word_embeddings":
                yield term.component, TOKEN * self.all
            elif term.weight and term.kind is not Kind.TABLE:
                name = term.inputs[0] if term.inputs else ""
                source = name, writers[name], is_expert(term)  # tokens on their way to experts are copied
                if source not in kept and self._keeps_input(term):
                    kept.add(source)
                    yield term.component, self._inputs(term) * self.batch.width * term.k * int(term.times)
                yield from self._around(term, inner)
                inner = term.n
            for name in term.outputs:
                writers[name] += 1

    def is_run_again(self, block: Sequence[Term]) -> bool:
        """Whether a layer is recomputed as a whole."""
        whole = self.plan.model.shape.recompute_granularity == "full"
        return whole and any(Pass.RECOMPUTE in term.passes for term in block)

    def _keeps_input(self, term: Term) -> bool:
        """Whether the input is kept: the weight trains, and no recomputed region produces the input again."""
        made = Pass.RECOMPUTE in term.passes and leaf(term) == "linear_fc2"
        routed = Pass.RECOMPUTE in term.passes and is_expert(term)  # tokens are sent to their experts again
        return Pass.WGRAD in term.passes and not made and not routed

    def _norm(self, term: Term) -> int:
        """Its input, and one or two numbers of each row."""
        shape, width, times = self.plan.model.shape, self.batch.width, int(term.times)
        layer_norm = shape.normalization == "LayerNorm"
        row = 8 if layer_norm else 4
        if layer_norm and leaf(term) == "k_layernorm" and not self.kernels.fused_attention:
            # The keys are a part of the projection's output, all of which stays.
            return self.cut * (width * (shape.num_attention_heads or 0) * term.k + (2 * width * term.k + row) * times)
        each = width if layer_norm else self.kernels.rms_norm or width
        return self._inputs(term) * (each * term.k + row) * times

    def _around(self, term: Term, inner: int) -> Kept:
        """What is kept around a linear layer: by the activation function, the routing, the loss."""
        again = Pass.RECOMPUTE in term.passes
        if leaf(term) == "linear_fc2" and not again:
            numbers = self.kernels.gated if inner == 2 * term.k else self.kernels.plain
            numbers += self.kernels.weighted if is_expert(term) else 0
            yield term.component, self._inputs(term) * self.batch.width * term.k * int(term.times) * numbers
        elif term.kind is Kind.ROUTER and not again:
            chosen = self.kernels.chosen * self.plan.model.shape.moe_router_topk
            yield term.component, self.own * (self.kernels.routed * term.n + chosen)
        elif term.name == "eh_proj":
            yield "embedding", TOKEN * self.all
        elif leaf(term) == "output_layer":
            yield LOGITS, self.cut * 4 * term.n + LOSS * self.all

    def _core(self, term: Term) -> Kept:
        """Queries and keys of the first product, values of the second, and the scores between them."""
        shape, width, heads = self.plan.model.shape, self.batch.width, term.n
        latent, again = shape.multi_latent_attention, Pass.RECOMPUTE in term.passes
        groups = heads if latent else min(shape.key_value_heads, heads)
        grouped, fused = groups < heads, self.kernels.fused_attention
        if term.name == "scores_value":
            # Values that are not copied for their heads are a part of the projection's output, all of which stays.
            whole = not fused and not latent and (again or not grouped)
            numbers = (heads + 2 * groups) if whole else groups if fused or again else heads
            yield term.component, self.cut * width * term.k * numbers
            return
        keys = groups if fused or again else heads
        yield term.component, self.cut * width * term.k * (heads + keys)
        yield "self_attention", self.unit * self.kernels.tables * self.batch.length * term.k * width
        if fused:
            yield term.component, self.cut * 4 * heads
        elif not again:
            pairs = self.cut * self.batch.length * heads
            yield term.component, pairs * (4 + (width if width < 4 else 0))
