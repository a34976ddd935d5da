"""The part of a model that one rank holds: every parameter, cut as megatron-core cuts it, in the order of its modules.

The order decides how the distributed optimizer slices its buffers, so it is part of the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from bridge.flops.pipeline import PipelineLayout
from bridge.flops.plan import Plan, compile_plan
from bridge.flops.terms import Term, TermPlace
from bridge.planning.four_bits import in_four_bits
from bridge.planning.layouts import Layout


def _named(text: str) -> dict[str, int]:
    """Names in their order."""
    return {name: place for place, name in enumerate(text.split())}


#: Layers whose outputs, and with them their biases, are cut over the tensor-parallel ranks.
COLUMN = _named(
    "linear_qkv linear_q linear_k linear_v linear_fc1 linear_fc1_gate linear_fc1_up linear_q_proj linear_q_up_proj "
    "linear_kv_up_proj eh_proj output_layer word_embeddings in_proj conv1d A_log D dt_bias softmax_offset"
)
#: Layers whose inputs are cut, and whose bias is whole.
ROW = _named("linear_proj linear_fc2 out_proj")
#: Cut by megatron-core's own layers, whole where Transformer Engine builds them.
COLUMN_IF_LOCAL = _named("linear_q_down_proj linear_kv_down_proj")
#: Whole on every rank.
WHOLE = _named(
    "input_layernorm pre_mlp_layernorm final_layernorm q_layernorm k_layernorm kv_layernorm post_attention_layernorm "
    "post_mlp_layernorm enorm hnorm router gate_weight position_embeddings out_norm norm linear_q_down_proj linear_kv_down_proj "
    "fc1_latent_proj fc2_latent_proj layernorm patch_embed pos_embed class_embedding linear_wq_b linear_wk linear_weights_proj "
    "k_norm"
)

#: Beside the parameters: a buffer, which has neither a gradient nor a state.
BUFFERS = _named("expert_bias")

#: The order of modules inside each other, where a plan, which has them as they run, differs.
_ORDER = _named(
    "embedding decoder mtp output_layer layers enorm hnorm eh_proj input_layernorm self_attention mixer core_attention "
    "linear_proj linear_q_proj linear_q_down_proj linear_q_up_proj linear_kv_down_proj linear_kv_up_proj linear_qkv "
    "q_layernorm k_layernorm kv_layernorm pre_mlp_layernorm mlp router experts shared_experts gate_weight linear_fc1 "
    "linear_fc2 transformer_layer final_layernorm"
)


@dataclass(frozen=True)
class ParameterShard:
    """One parameter of a rank.

    Attributes:
        path: the path of its module.
        numel: number of entries that the rank holds.
        expert: it belongs to an expert; its gradients are added up over other ranks than those of dense weights.
        trains: it has a gradient.
        alone: it is a copy of a weight that two stages share, with a bucket of its own in the distributed optimizer.
        four_bits: it is stored in four bits (``four_bits``).
    """

    path: str
    numel: int
    expert: bool = False
    trains: bool = True
    alone: bool = False
    four_bits: bool = False


def terms_for(plan: Plan, layout: Layout) -> tuple[Term, ...]:
    """A plan's weights with the vocabulary padded for a layout's tensor-parallel ranks."""
    return _terms(plan, layout.tensor_model_parallel_size)


@lru_cache(maxsize=64)
def _terms(plan: Plan, ranks: int) -> tuple[Term, ...]:
    model = plan.model
    language = model.language
    if language is not None and language.tensor_model_parallel_size != ranks:
        cut = replace(model, language=replace(language, tensor_model_parallel_size=ranks))
        plan = compile_plan(cut, plan.record, trainable=plan.trainable)
    return tuple(plan.built_terms(padded=True))


def unknown(terms: Sequence[Term], layout: Layout) -> tuple[str, ...]:
    """A sentence for each kind of weight of which it is not known how it is cut; such are taken as whole."""
    if layout.tensor_model_parallel_size == 1:
        return ()
    names = dict.fromkeys(leaf(term) for term in terms if term.parameters)
    found = [name for name in names if name not in {**COLUMN, **ROW, **WHOLE, **BUFFERS}]
    return tuple(f"{name}: its tensor-parallel sharding is unknown; it is treated as unsharded" for name in found)


def chunks(plan: Plan, layout: Layout, stage: int, *, local: bool = False) -> list[list[ParameterShard]]:
    """The parameters of a rank of a stage, model chunk by model chunk, as ``named_parameters`` of each has them.

    Args:
        plan: the plan of the model.
        layout: how the model is split.
        stage: pipeline stage, from 0.
        local: megatron-core's own layers instead of Transformer Engine's.
    """
    return _chunks(plan, layout.core, stage, local)


@lru_cache(maxsize=1024)
def _chunks(plan: Plan, layout: Layout, stage: int, local: bool) -> list[list[ParameterShard]]:
    held = terms_of(plan, layout, stage)
    return [[shard for block in _blocks(terms) for shard in _shards(plan, block, layout, local)] for terms in held]


def terms_of(plan: Plan, layout: Layout, stage: int) -> list[list[Term]]:
    """Terms of a stage, model chunk by model chunk, with the copies of shared weights that other stages need."""
    found = _placed(plan, layout.tensor_model_parallel_size, layout.pipeline)
    return [found.get((stage, chunk), []) for chunk in range(layout.chunks)]


@lru_cache(maxsize=256)
def _placed(plan: Plan, ranks: int, pipeline: PipelineLayout) -> dict[tuple[int, int], list[Term]]:
    """Terms by stage and chunk."""
    terms = _terms(plan, ranks)
    layers = 1 + max((term.place for term in terms if isinstance(term.place, int)), default=-1)
    depths = len({term.path.split(".", 3)[2] for term in terms if term.place is TermPlace.MTP})
    placement, several = pipeline.place(layers, depths), pipeline.pipeline_model_parallel_size > 1
    rounds, chunk_of, before = 0, [], -1
    for stage in placement.layers:  # a chunk ends where the stages begin anew
        rounds, before = rounds + (stage < before), stage
        chunk_of.append(rounds)
    last = (pipeline.virtual_pipeline_model_parallel_size or max(chunk_of, default=0) + 1) - 1
    found: dict[tuple[int, int], list[Term]] = {}

    def put(term: Term) -> None:
        place = term.place
        if depths and term.path == "decoder.final_layernorm":
            place = layers - 1
        chunk = chunk_of[place] if isinstance(place, int) else 0 if place is TermPlace.FIRST else last
        found.setdefault((placement.stage(place), chunk), []).append(term)

    for term in terms:
        split = several and term.tied == "embedding.word_embeddings" and term.path == "output_layer"
        put(term.changed(tied="") if split else term)
        if depths and several and term.path.startswith("embedding."):
            put(term.changed(place=TermPlace.MTP))
    return found


def _blocks(terms: Sequence[Term]) -> Iterator[list[Term]]:
    """Terms in the order of their modules; those of one layer's experts together."""
    block: list[Term] = []
    for term in sorted((term for term in terms if term.parameters and leaf(term) not in BUFFERS), key=_place_in_module):
        if block and not (is_expert(term) and _parent(term) == _parent(block[-1])):
            yield block
            block = []
        block.append(term)
    if block:
        yield block


def _place_in_module(term: Term) -> tuple[int, ...]:
    parts = (term.path or term.name).split(".")
    return tuple(int(part) if part.isdigit() else _ORDER.get(part, len(_ORDER)) for part in parts)


def _parent(term: Term) -> str:
    return term.path.rpartition(".")[0]


def is_expert(term: Term) -> bool:
    """Whether a term belongs to the routed experts."""
    return term.copies > 1 and ".experts." in f".{term.path}."


def leaf(term: Term) -> str:
    """The name of a term's module; of the layer that it adapts."""
    return _leaf(term.path or term.name)


@lru_cache(maxsize=100_000)
def _leaf(path: str) -> str:
    return path.partition(".adapter")[0].rpartition(".")[2]


def _shards(plan: Plan, block: Sequence[Term], layout: Layout, local: bool) -> Iterator[ParameterShard]:
    """The parameters of one module, or of a layer's experts in the implementation's order: by expert, or by layer."""
    copies = block[0].copies
    if not is_expert(block[0]):
        for term in block:
            yield from _entries(plan, term, layout, local)
        return
    here = range(copies // layout.expert_model_parallel_size)
    pieces = [list(_entries(plan, term, layout, local)) for term in block]
    if local:
        yield from (shard for _ in here for piece in pieces for shard in piece)
    else:  # a grouped layer holds all its weights, then all its biases
        yield from (shard for piece in pieces for shard in piece for _ in here)


def _entries(plan: Plan, term: Term, layout: Layout, local: bool) -> Iterator[ParameterShard]:
    """A term's weight and its bias."""
    expert = is_expert(term)
    ranks = layout.expert_tensor if expert else layout.tensor_model_parallel_size
    weight, bias = _cut(term, local)
    copies = 1 if expert else term.copies
    path, apart = term.path or term.name, expert and layout.expert_model_parallel_size > 1
    shape = plan.model.shape
    both = "embedding.word_embeddings" if shape.mtp_num_layers else "output_layer"
    shared = layout.stages > 1 and bool(shape.mtp_num_layers or shape.share_embeddings_and_output_weights)
    alone = shared and path in ("embedding.word_embeddings", both)
    if term.weight and not term.tied:
        trains = plan.trainable.weights(path)
        numel = copies * term.k * term.n // (ranks if weight else 1)
        yield ParameterShard(path, numel, apart, trains, alone, not trains and in_four_bits(plan, term))
    if term.bias:
        yield ParameterShard(path, copies * term.bias // (ranks if bias else 1), apart, plan.trainable.biases(path))


def _cut(term: Term, local: bool) -> tuple[bool, bool]:
    """Whether a term's weight and its bias are cut over the tensor-parallel ranks."""
    name = leaf(term)
    column, row = name in COLUMN or (local and name in COLUMN_IF_LOCAL), name in ROW
    if ".adapter." in term.path:  # one of the two matrices is cut, as the layer that they belong to
        return (column and not term.path.endswith("linear_in")) or (row and term.path.endswith("linear_in")), False
    return column or row, column
