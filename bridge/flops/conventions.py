"""Conventions are data: what a framework counts, as a record of switches on the same terms.

``megatron``  compares with NVIDIA's published tables (Megatron-LM, Megatron-Bridge).
``maxtext``   compares with MaxText.
``exact``     what the mathematics needs: causal triangles to the pair, backward passes only where they run.
``executed``  what a dense kernel executes: equal to ``torch.utils.flop_counter.FlopCounterMode`` on the real model.
``palm``      compares with papers and most PyTorch frameworks: six FLOPs per parameter, and the whole square of attention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from bridge.flops.parameter_rule import Parameters
from bridge.flops.shapes import ConfigError, ModelShape
from bridge.flops.statistics import Statistic
from bridge.flops.terms import Context, Kind

HALF = Fraction(1, 2)
WHOLE = Fraction(1)

#: Attention context -> how to count its pairs: a function from the context's sizes to (factor, statistic, sizes).
Pairs = Mapping[str, Callable[..., tuple[Fraction, str, tuple[int, ...]]]]

_EXACT_PAIRS: Pairs = {
    "causal": lambda: (WHOLE, "causal_pairs", ()),
    "bidirectional": lambda: (WHOLE, "square", ()),
    "bidirectional_plus": lambda extra: (WHOLE, "square_plus", (extra,)),
    "bidirectional_strided": lambda stride: (WHOLE, "strided_square", (stride,)),
    "bidirectional_window": lambda window: (WHOLE, "bidirectional_window_pairs", (window,)),
    "window": lambda window: (WHOLE, "window_pairs", (window,)),
    # DeepSeek-V4's window beside its compressed keys.
    "prefix_window": lambda window: (WHOLE, "window_pairs", (window,)),
    "topk": lambda topk: (WHOLE, "topk_pairs", (topk,)),
    "chunk": lambda chunk: (WHOLE, "chunk_pairs", (chunk,)),
    "bidirectional_chunk": lambda chunk: (WHOLE, "chunk_squares", (chunk,)),
    "compressed": lambda ratio: (WHOLE, "compressed_pairs", (ratio,)),
    "compressed_topk": lambda ratio, topk: (WHOLE, "compressed_topk_pairs", (ratio, topk)),
    # The scores that choose the top-k are computed for every causal pair.
    "compressed_indexer": lambda ratio: (WHOLE, "compressed_pairs", (ratio,)),
    "indexer": lambda topk: (WHOLE, "causal_pairs", ()),
}


@dataclass(frozen=True)
class Convention:
    """The switches of one way of counting.

    Attributes:
        name: what reports call it.
        pairs: how many query-key pairs an attention context has.
        left_out: kinds of terms that are priced at nothing.
        padded_vocabulary: the output layer has megatron-core's padded width.
        mamba_width_is_twice_hidden: Mamba's inner width is 2 x hidden_size, whatever the heads say.
        mamba_convolution: Mamba's short convolution is counted.
        padded_short_convolution: LFM2's convolution runs on both ends' padding too.
        square_delta_state: a head of the delta rule holds a dv x dv state instead of dk x dv.
        plain_vision_tower: a tower is depth x (attention + two-matrix MLP), all patches of an image attending to each
            other, whatever its gates and windows.
        hybrid_mtp_projection: MTP depths of hybrid models have their projection and norms counted.
        mtp_output_layers: one more output layer for each multi-token-prediction depth.
        indexer_like_any_layer: DeepSeek's indexer is priced where sequences are longer than its top-k, trained like any
            layer, and the heads it serves attend in their own width instead of the latents'.
        nominal_sparse_window: every token of DeepSeek-V4 sees csa_window_size keys, also the first ones.
        compressed_head_reduction: DeepSeek-V4's indexer sums its heads in one more multiply-accumulate of each score.
        output_gate: the gate on the attention output is projected (attention_output_gate).
        hyper_connections_of: mixers around which hyper-connections are counted; None: all.
        mtp_projection: the projection into a multi-token-prediction depth is counted.
        plain_mtp_layer: a depth is one layer of ordinary attention over all tokens with the local layers' heads.
        reference_is_a_third: the reference model of a preference loss costs a third of the training, frozen parts too.
        names_other_kernels: blocks that a framework's own code runs in another way than they are priced are named.
        own_formula: fields are taken as the framework's own formula takes them (``ModelShape.formula``).
        parameters: which of them cost six FLOPs per token each (``parameter_rule``); None: matmuls are counted one by one.
    """

    name: str
    pairs: Pairs = field(hash=False)
    left_out: frozenset[Kind] = frozenset({Kind.NORM, Kind.LATENT_NORM, Kind.TABLE, Kind.STREAM_MIXING})
    padded_vocabulary: bool = False
    mamba_width_is_twice_hidden: bool = False
    mamba_convolution: bool = False
    padded_short_convolution: bool = False
    square_delta_state: bool = False
    plain_vision_tower: bool = False
    hybrid_mtp_projection: bool = True
    mtp_output_layers: bool = True
    indexer_like_any_layer: bool = False
    nominal_sparse_window: bool = False
    compressed_head_reduction: bool = False
    output_gate: bool = True
    hyper_connections_of: frozenset[str] | None = None
    mtp_projection: bool = True
    plain_mtp_layer: bool = False
    reference_is_a_third: bool = False
    names_other_kernels: bool = False
    own_formula: bool = False
    parameters: Parameters | None = None

    def statistic(self, context: Context) -> tuple[Fraction, Statistic]:
        """The factor and the statistic that count the pairs of ``context``."""
        factor, kind, sizes = self.pairs[context.shape](*context.sizes)
        return factor, Statistic(kind, context.over, sizes)

    def seen(self, shape: ModelShape) -> ModelShape:
        """A model as this convention takes it."""
        fields = dict(shape.formula or {}) if self.own_formula else {}
        fields.pop("mtp", None)
        if not self.output_gate:
            fields["attention_output_gate"] = False
        return replace(shape, **fields) if fields else shape

    def seen_in_mtp(self, shape: ModelShape) -> ModelShape:
        """A model as this convention takes it in its multi-token-prediction depths."""
        if not self.plain_mtp_layer:
            return shape
        fields = (shape.formula or {}).get("mtp", {}) if self.own_formula else {}
        shared = shape.attention_k_eq_v or shape.global_attention_k_eq_v
        absent: dict[str, Any] = dict.fromkeys(("attention_output_size", "engram_layers", "hidden_size_per_layer_input"))
        return replace(shape, attention_k_eq_v=shared, **absent, **fields)


MEGATRON = Convention(
    "megatron",
    pairs={
        **_EXACT_PAIRS,
        "causal": lambda: (HALF, "square", ()),
        "chunk": lambda chunk: (HALF, "chunk_squares", (chunk,)),
        "compressed": lambda ratio: (HALF / ratio, "square", ()),
        "compressed_indexer": lambda ratio: (WHOLE / ratio, "square", ()),
        "compressed_topk": lambda ratio, topk: (HALF, "doubled_compressed_topk_area", (ratio, topk)),
    },
    left_out=frozenset(
        {Kind.NORM, Kind.TABLE, Kind.ROUTER, Kind.GATE, Kind.PATCH_EMBEDDING, Kind.HYPER_CONNECTION, Kind.STREAM_MIXING}
    ),
    padded_vocabulary=True,
    mamba_width_is_twice_hidden=True,
    square_delta_state=True,
    plain_vision_tower=True,
    hybrid_mtp_projection=False,
    nominal_sparse_window=True,
)
MAXTEXT = Convention(
    "maxtext",
    pairs={
        **_EXACT_PAIRS,
        "causal": lambda: (HALF, "square", ()),
        "window": lambda window: (HALF, "doubled_window_area", (window,)),
        "topk": lambda topk: (HALF, "doubled_window_area", (topk,)),
        "prefix_window": lambda window: (HALF, "doubled_prefix_area", (window,)),
        "chunk": lambda chunk: (HALF, "chunk_squares", (chunk,)),
        "compressed": lambda ratio: (HALF / ratio, "square", ()),
        "compressed_indexer": lambda ratio: (HALF / ratio, "square", ()),
        "compressed_topk": lambda ratio, topk: (HALF, "doubled_compressed_topk_area", (ratio, topk)),
        "indexer": lambda topk: (HALF, "square_over", (topk,)),
    },
    left_out=frozenset({Kind.NORM, Kind.LATENT_NORM, Kind.TABLE, Kind.GATE}),
    mtp_output_layers=False,
    indexer_like_any_layer=True,
    compressed_head_reduction=True,
    output_gate=False,
    hyper_connections_of=frozenset({"dsv4"}),
    mtp_projection=False,
    plain_mtp_layer=True,
    reference_is_a_third=True,
    own_formula=True,
)
EXACT = Convention("exact", pairs=_EXACT_PAIRS)
EXECUTED = Convention(
    "executed",
    # A dense kernel computes the whole square and masks it afterwards.
    pairs={
        **dict.fromkeys(_EXACT_PAIRS, lambda *_: (WHOLE, "square", ())),
        # Vision towers cut their windows apart before they attend.
        "bidirectional_chunk": _EXACT_PAIRS["bidirectional_chunk"],
        "bidirectional_plus": _EXACT_PAIRS["bidirectional_plus"],
        "bidirectional_strided": _EXACT_PAIRS["bidirectional_strided"],
    },
    padded_vocabulary=True,
    mamba_convolution=True,
    padded_short_convolution=True,
    names_other_kernels=True,
)
PALM = Convention("palm", pairs=EXECUTED.pairs, left_out=frozenset({Kind.SCAN, Kind.STREAM_MIXING}), parameters=Parameters.ALL)

CONVENTIONS = {convention.name: convention for convention in (MEGATRON, MAXTEXT, EXACT, EXECUTED, PALM)}


def get(name: str | Convention) -> Convention:
    """The convention of that name; a record is returned unchanged. ConfigError names the known conventions."""
    if isinstance(name, Convention):
        return name
    try:
        return CONVENTIONS[name]
    except KeyError:
        raise ConfigError(f"convention={name!r} is not known; choose one of {', '.join(CONVENTIONS)}") from None
