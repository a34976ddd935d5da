"""In which number formats transformers multiplies a quantized model: from its ``quantization_config``, or from its layers.

Most methods store weights in few bits and multiply in the format of the activations: they change memory, not the peak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bridge.config.sources.huggingface_names import plan_path
from bridge.flops.components.output_layer import OUTPUT_LAYER
from bridge.flops.formats import NOT_TOLD, Formats, Recipe
from bridge.flops.shapes import short
from bridge.flops.terms import Pass

#: The forward pass multiplies in FP8; the backward pass uses dequantized weights.
FINE_GRAINED = Recipe("finegrained_fp8", "fp8", layers_in_base=False)
#: Linear layers of ``torchao.float8``.
TORCHAO = Recipe("torchao", "fp8", layers_in_base=False)

_Options = Mapping[str, Any]
#: Methods that store weights in few bits and multiply in another format with some options: which, and what is unknown then.
UNLESS: dict[str, tuple[Callable[[_Options], bool], str]] = {
    "bitsandbytes": (
        lambda options: bool(options.get("load_in_8bit")),
        "forward passes multiply in INT8, for which there is no peak",
    ),
    "compressed-tensors": (
        lambda options: bool(options.get("use_optimized_inference")),
        "its FP8 kernels only support inference",
    ),
    "quanto": (lambda options: options.get("activations") is not None, "activations are quantized too"),
    "torchao": (lambda options: not _weight_only(options), "activations may be quantized too"),
}
_ALWAYS = ("aqlm", "auto-round", "awq", "bitnet", "eetq", "gguf", "gptq", "higgs", "hqq", "metal", "spqr", "vptq")
#: Methods that store weights in few bits and multiply in the format of the activations, some of them with most options.
STORED = tuple(sorted((*_ALWAYS, *UNLESS)))


def formats_of(config: Mapping[str, Any]) -> Formats:
    """What the fields of a ``config.json`` say about number formats; how weights are stored (``dtype``) says nothing of them."""
    inner = config.get("text_config")
    nested = inner.get("quantization_config") if isinstance(inner, Mapping) else None
    options = config.get("quantization_config") or nested
    if not options:
        return NOT_TOLD
    return _quantised(options) if isinstance(options, Mapping) else _unknown(short(options))


def _quantised(options: _Options) -> Formats:
    method = str(getattr(options.get("quant_method"), "value", options.get("quant_method")))
    if options.get("dequantize") is True:
        return NOT_TOLD
    if method == "fp8" and options.get("expert_dtype", "fp8") == "fp8":
        return _fine_grained(options)
    if method not in STORED:
        return _unknown(f"quant_method={short(method)}: the formats of its matmuls are unknown")
    differs, reason = UNLESS.get(method, (lambda options: False, ""))
    return _unknown(f"quant_method={method}: {reason}") if differs(options) else NOT_TOLD


def _unknown(reason: str) -> Formats:
    return Formats(unknown=f"quantization_config: {reason}")


def _weight_only(options: _Options) -> bool:
    """Whether torchao's nested record names a weight-only method."""
    chosen = options.get("quant_type")
    kind = chosen.get("default") if isinstance(chosen, Mapping) else None
    return isinstance(kind, Mapping) and str(kind.get("_type")).endswith("WeightOnlyConfig")


def _fine_grained(options: _Options) -> Formats:
    """All linear layers but the output layer are converted; a list of layers that are not replaces this default."""
    given = options.get("modules_to_not_convert", options.get("ignored_layers"))
    names = given if isinstance(given, (list, tuple)) else ()
    left_out = tuple(_path(str(name)) for name in names)
    return Formats(
        recipe=FINE_GRAINED,
        kept=Pass.BACKWARD,
        left_out=left_out,
        output_layer=isinstance(given, (list, tuple)) and OUTPUT_LAYER not in left_out,
    )


def _path(name: str) -> str:
    """The plan's path of a module, or of a layer or block that holds modules."""
    path = plan_path(name)
    return plan_path(f"{name}.").removesuffix(".") if path == name else path


# ---- layers of a live model -------------------------------------------------------------------------


def formats_of_layers(model: Any, paths: Iterable[str]) -> Formats | None:
    """What the linear layers of torchao say that a model was given to train in FP8; None where it has none.

    Args:
        model: a torch module.
        paths: of the matmuls in its plan.
    """
    layers = {name: module for name, module in model.named_modules() if type(module).__module__.startswith("torchao.")}
    if not layers:
        return None
    known, others = set(paths), {name for name, module in layers.items() if type(module).__name__ != "Float8Linear"}
    found = {name: next((path for path in (name, plan_path(name)) if path in known), "") for name in layers}
    lost = next((name for name, path in found.items() if not path or name in others), "")
    if lost:
        return Formats(unknown=f"{lost} is a {type(layers[lost]).__name__} of torchao: the formats of its matmuls are unknown")
    kept = {_kept(module.config) for module in layers.values()}
    if len(kept) > 1:
        return Formats(unknown="torchao converted layers in several ways")
    return Formats(recipe=TORCHAO, kept=kept.pop(), modules=frozenset(found.values()))


#: The operands of each pass by torchao's names; a product has both in FP8 or none.
_OPERANDS = {
    Pass.FORWARD: "cast_config_input",
    Pass.DGRAD: "cast_config_grad_output",
    Pass.WGRAD: "cast_config_input_for_grad_weight",
}


def _kept(config: Any) -> Pass:
    """Passes that one of torchao's configurations leaves as they are; emulated, all of them are."""
    kept = Pass.NONE
    for one, operand in _OPERANDS.items():
        if config.emulate or getattr(config, operand).scaling_type.name == "DISABLED":
            kept |= one | (Pass.RECOMPUTE if one is Pass.FORWARD else Pass.NONE)
    return kept
