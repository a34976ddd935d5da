"""Megatron-LM's arguments, as its own parser and ``validate_args`` leave them: a namespace of some 700 names.

They differ from megatron-core's configs in a few names, in switches that say things the other way round, and in fields that
``validate_args`` fills in whether or not the model uses them.
"""

from __future__ import annotations

from typing import Any

from bridge.config.sources import megatron_core
from bridge.config.sources.megatron_core import Options
from bridge.flops.reading import Description, get, model_of
from bridge.flops.shapes import short

#: Names that arguments have and megatron-core's configs have not.
_ONLY_ARGUMENTS = ("swiglu", "num_experts", "untie_embeddings_and_output_weights", "group_query_attention")
#: Megatron-LM's names of activations, which say whether there is a gate too: (activation_func, gated_linear_unit).
_ACTIVATIONS = {
    "swiglu": ("silu", True),
    "quick_geglu": ("quick_gelu", True),
    "squared_relu": ("squared_relu", False),
}
#: Stacks of layers that the patterns describe.
_KNOWN_SPECS = ("hybrid_stack_spec", "mamba_stack_spec", "mamba_inference_stack_spec", "hybrid_inference_stack_spec", "local")
#: Those whose Mamba layers are gated delta products.
_GATED_DELTA_PRODUCT = ("gdp_stack_spec", "gated_delta_product_stack_spec")
#: With ``freeze_all_layers`` the whole model only runs forward.
_ALL_FROZEN = {"kind": "freeze", "freeze": ["embedding", "encoder", "decoder", "mtp", "output_layer"]}


def recognises(model: Any) -> bool:
    """Whether this is a namespace of arguments."""
    return any(get(model, name) is not None for name in _ONLY_ARGUMENTS)


def translate(cfg: Any) -> Description:
    """A description of the arguments ``cfg.model``, or ``cfg`` itself."""
    args = model_of(cfg)
    notes = megatron_core.audit(args)
    notes.not_counted += _left_out(args)
    found = {**megatron_core.options(args), **_options(args)}
    return megatron_core.describe(cfg, found, notes, freeze=_ALL_FROZEN if get(args, "freeze_all_layers") else None)


def _options(args: Any) -> Options:
    """Options that arguments state in their own way; None for fields that ``validate_args`` fills in without meaning."""
    untied, experts = get(args, "untie_embeddings_and_output_weights"), get(args, "num_experts")
    options: Options = {"recompute_modules": _words(get(args, "recompute_modules")) or None, **_encoder(args)}
    options["hybrid_mla_symbol"] = "+"
    options["gated_delta_product"] = _stack(args) in _GATED_DELTA_PRODUCT
    if untied is not None:
        options["share_embeddings_and_output_weights"] = not untied
    if experts is not None:
        options["num_moe_experts"] = experts
    for name, (activation, gated) in _ACTIVATIONS.items():
        if get(args, name):
            options["activation_func"] = activation
            options["gated_linear_unit"] = gated
    if get(args, "group_query_attention") is False:
        options["num_query_groups"] = None
    if get(args, "use_rotary_position_embeddings"):
        options["position_embedding_type"] = "rope"
    elif get(args, "add_position_embedding") is False and get(args, "position_embedding_type") == "learned_absolute":
        options["position_embedding_type"] = "none"
    return options


def _stack(args: Any) -> str:
    """The name of the spec that builds the layers; empty without one."""
    return "".join(_words(get(args, "spec"))[-1:]).rpartition(".")[2]


def _encoder(args: Any) -> Options:
    """T5 has a decoder's depth of its own; every other model has its own depth copied into ``encoder_num_layers``."""
    split = get(args, "decoder_num_layers")
    if split is None and getattr(get(args, "model_type"), "name", "") != "encoder_and_decoder":
        return {"encoder_num_layers": None, "relative_attention_num_buckets": None}
    relative = get(args, "position_embedding_type") == "relative"
    return {
        "num_layers": split or get(args, "num_layers"),
        "encoder_num_layers": get(args, "encoder_num_layers"),
        "seq_length": get(args, "decoder_seq_length") or get(args, "seq_length"),
        "relative_attention_num_buckets": get(args, "relative_attention_num_buckets") if relative else None,
    }


def _left_out(args: Any) -> list[str]:
    """Sentences about models that arguments name and whose layers they do not describe."""
    found = []
    tokenizer, tower = get(args, "tokenizer_type"), get(args, "vision_model_type")
    if isinstance(tokenizer, str) and tokenizer.startswith("BertWordPiece"):
        found.append(
            f"tokenizer_type={tokenizer!r}: a causal decoder is counted, but BERT attends to both sides and has its own head"
        )
    if tower is not None:
        found.append(f"vision_model_type={short(tower)}: the vision tower and its projector are not counted")
    if _stack(args) not in ("", *_KNOWN_SPECS, *_GATED_DELTA_PRODUCT):
        found.append(f"spec={short(get(args, 'spec'))}: the layers that it builds are counted as megatron-core's")
    return found


def _words(value: Any) -> list[str]:
    """The words of an option that takes several, which may have come through a script as one string in brackets."""
    text = value if isinstance(value, str) else " ".join(map(str, value)) if isinstance(value, (list, tuple)) else ""
    return text.translate(str.maketrans("[],", "   ")).split()
