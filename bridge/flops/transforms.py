"""Training modes are transforms of terms: they add adapters and set passes, and never change a formula."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any

from bridge.flops.components.output_layer import OUTPUT_LAYER
from bridge.flops.components.self_attention import CORE
from bridge.flops.elementwise import Operations
from bridge.flops.frameworks import Framework
from bridge.flops.shapes import ConfigError, ModelShape, short
from bridge.flops.statistics import FORWARD_PASSES
from bridge.flops.terms import Kind, Pass, Role, Term, TermPlace, elementwise

ADAPTERS = "adapters"
#: The value that never carries a gradient.
DETACHED = "detached"
#: Values that several terms add to.
STREAMS = frozenset({"hidden", "patches", "image_embeddings", "index_query", "value", "logits", "conditioning"})
Rule = Callable[[str], bool]


@dataclass(frozen=True)
class Trainable:
    """What trains, by module path.

    Attributes:
        weights: path -> whether the module's weight trains.
        biases: path -> whether its bias does.
    """

    weights: Rule
    biases: Rule

    @classmethod
    def of(cls, rule: Rule | Trainable) -> Trainable:
        """One rule for weights and biases."""
        return rule if isinstance(rule, Trainable) else cls(rule, rule)

    def __call__(self, path: str) -> bool:
        """Whether the weight of the module with this path trains."""
        return self.weights(path)

    def parameters(self, term: Term) -> int:
        """Entries of a term's weight and bias that train."""
        bias = term.bias * term.copies
        return (term.parameters - bias) * self.weights(term.tied or term.path) + bias * self.biases(term.path)


def differentiate(
    terms: Iterable[Term], trainable: Rule | Trainable, framework: Framework, *, input_gradient: bool = False
) -> list[Term]:
    """Set the passes that autograd runs.

    A matmul runs forward; its backward has one matmul for each operand that needs a gradient: the activations if anything
    below them trains, the weight if it trains.  Terms are in forward order, so one walk is enough.

    Args:
        terms: the terms of a model in forward order.
        trainable: maps a module path to whether its weights train.
        framework: the framework whose rules apply.
        input_gradient: whether the embedding's output always needs a gradient; both frameworks require this if layers
            are recomputed, because a recomputed function has a backward pass only if its input needs a gradient.
    """
    trainable = Trainable.of(trainable)
    needs: dict[str, bool] = {}
    result = []
    for term in terms:
        sources = [needs.get(name, False) for name in term.inputs]
        whole_backward = term.allowed is Pass.TRAINING  # of nearly all: operators of flags are slow
        learns = whole_backward or Pass.WGRAD in term.allowed
        wgrad = learns and term.weight and trainable.weights(term.tied or term.path)
        # A bias needs no matmul for its gradient, but what it is added to carries one.
        trains = wgrad or (learns and bool(term.bias) and trainable.biases(term.path))
        flows = any(sources) and (whole_backward or bool(term.allowed & Pass.BACKWARD))
        if term.has_weight:
            # The gate on the shared experts is torch's own linear function, in megatron-core too.
            whole = framework.dgrad_with_wgrad and term.kind is not Kind.GATE
            dgrad = flows or (wgrad and whole and DETACHED not in term.inputs)
        else:
            dgrad, wgrad = flows and sources[0], flows and any(sources[1:] or sources)
        if term.kind is Kind.ROUTER and framework.router_backward_is_whole:
            dgrad = wgrad = flows or trains
        passes = _RUN[bool(dgrad), bool(wgrad)]
        given = flows or trains or (input_gradient and Role.EMBEDDING in term.roles)
        for name in term.outputs:
            # What is added to a stream leaves it in need of a gradient; a join only looks at its inputs.
            kept = term.kind is not Kind.JOIN and needs.get(name, False) and name.rpartition(".")[2] in STREAMS
            needs[name] = given or kept
        result.append(term.changed(passes=passes if term.allowed is Pass.TRAINING else passes & term.allowed))
    return result


#: (input gradient, weight gradient) -> the passes that run.
_RUN = {
    (False, False): Pass.FORWARD,
    (True, False): Pass.FORWARD | Pass.DGRAD,
    (False, True): Pass.FORWARD | Pass.WGRAD,
    (True, True): Pass.TRAINING,
}


def everything(path: str) -> bool:
    """Full training."""
    return True


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether a module path is named by one of ``patterns``: its last part, its whole path, or a wildcard for either."""
    leaf = path.rsplit(".", 1)[-1]
    return any(fnmatchcase(path, pattern) or fnmatchcase(leaf, pattern) or path.startswith(f"{pattern}.") for pattern in patterns)


# ---- adapters ------------------------------------------------------------------------------------


#: megatron-core's fused linear layers -> what they are made of (the targets of canonical LoRA).
PARTS = {"linear_qkv": ("linear_q", "linear_k", "linear_v"), "linear_fc1": ("linear_fc1_gate", "linear_fc1_up")}
#: What Hugging Face's models call the same layers, as targets of peft name them.
HUGGING_FACE = {
    "linear_qkv": "qkv_proj", "linear_q": "q_proj", "linear_k": "k_proj", "linear_v": "v_proj", "linear_proj": "o_proj",
    "linear_fc1": "gate_up_proj", "linear_fc1_gate": "gate_proj", "linear_fc1_up": "up_proj", "linear_fc2": "down_proj",
    "output_layer": "lm_head",
}  # fmt: skip
#: Layers that get an adapter where none are named; a model need not have all of them.
DEFAULT_TARGETS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (LoRA, Hu et al., arXiv:2106.09685).

    Attributes:
        dim: rank.
        target_modules: names or wildcards of the linear layers that get one, megatron-core's or Hugging Face's (``q_proj``).
        dora: the lengths of the adapted weights' rows train too (DoRA, Liu et al., arXiv:2402.09353).
        dropout: whether values are dropped before the adapters.
        four_bits: the model's own linear layers are stored in four bits and multiplied in BF16 (QLoRA, Dettmers et al.,
            arXiv:2305.14314): memory differs, work does not.
    """

    dim: int
    target_modules: tuple[str, ...] = DEFAULT_TARGETS
    dora: bool = False
    dropout: bool = False
    four_bits: bool = False

    def wanted(self, path: str, parts: Iterable[str] = ()) -> tuple[str, ...]:
        """Names of the adapters of the linear layer at ``path``: its own name for one over the whole layer, or those of parts.

        Args:
            path: of the layer; where frameworks fuse layers, a fused layer's name stands for its parts.
            parts: what the layer is made of, if it is fused itself.
        """
        stem, _, leaf = path.rpartition(".")
        parts = tuple(parts)

        def named(name: str) -> bool:
            # Without a gate the layer is what others call up.
            names = (name, "linear_fc1_up") if name == leaf == "linear_fc1" and not parts else (name,)
            known = (*names, *(HUGGING_FACE[one] for one in names if one in HUGGING_FACE))
            return any(matches(f"{stem}.{one}" if stem else one, self.target_modules) for one in known)

        if named(leaf) or any(leaf in names and named(whole) for whole, names in PARTS.items()):
            return (leaf,)
        return tuple(filter(named, parts))

    def check(self, layers: Iterable[tuple[str, Sequence[str]]]) -> None:
        """Raise ConfigError if a target matches none of a model's linear layers, given as (path, parts)."""
        layers = list(layers)

        def hits(target: str) -> bool:
            one = replace(self, target_modules=(target,))
            return any(one.wanted(path, parts) for path, parts in layers)

        missed = [target for target in self.target_modules if not hits(target)]
        if missed and (self.target_modules != DEFAULT_TARGETS or len(missed) == len(DEFAULT_TARGETS)):
            names = sorted({name for path, parts in layers for name in (path.rpartition(".")[2], *parts)})
            raise ConfigError(
                f"peft.target_modules: {missed[0]!r} matches no linear layer of this model; choose from {', '.join(names)}, or "
                "a wildcard for whole paths such as '*.layers.0.*'"
            )


_SCALED_SUM = Operations(additions=1, multiplications=1)


def with_adapters(terms: Sequence[Term], lora: Lora, framework: Framework) -> list[Term]:
    """Add two matmuls beside every target, k -> r -> n, on the target's rows.

    Raises:
        ConfigError: A target matches no linear layer.
    """
    result = []
    linear = (term for term in terms if term.kind is Kind.LINEAR and term.weight)
    layers = {id(term): (_module(term), tuple(dict(term.parts))) for term in linear}
    lora.check(layers.values())
    for term in terms:
        result.append(term)
        names = lora.wanted(*layers[id(term)]) if id(term) in layers else ()
        if not names:
            continue
        stem, _, leaf = term.path.rpartition(".")
        for name in names:
            part = term if name == leaf else replace(term, n=dict(term.parts)[name], path=f"{stem}.{name}".lstrip("."))
            result += _low_rank(part, lora)
        if lora.dora:
            result += _row_lengths(term, sum(dict(term.parts).get(name, term.n) for name in names), lora, framework)
    return result


def _module(term: Term) -> str:
    """The path of the module that runs a term: the output layers of all multi-token-prediction depths are one."""
    return OUTPUT_LAYER if Role.OUTPUT in term.roles else term.path


def _low_rank(term: Term, lora: Lora) -> list[Term]:
    low = f"{term.path}.adapter"
    home = "" if _module(term) == term.path else f"{_module(term)}.adapter"
    base = replace(term, component=ADAPTERS, bias=0, parts=())
    return [
        replace(base, name="lora_A", n=lora.dim, outputs=(low,), path=f"{low}.linear_in", tied=home and f"{home}.linear_in"),
        replace(base, name="lora_B", k=lora.dim, inputs=(low,), path=f"{low}.linear_out", tied=home and f"{home}.linear_out"),
        _scaled_sum(term).under(f"{low}.", roles=term.roles),
    ]


def _scaled_sum(term: Term) -> Term:
    """Scaled by alpha / r and added to what the frozen weight makes."""
    return elementwise("lora_sum", ADAPTERS, term.times * term.n * _SCALED_SUM, *term.outputs, rows=term.rows)


def _row_lengths(term: Term, adapted: int, lora: Lora, framework: Framework) -> list[Term]:
    """What DoRA adds: a vector of lengths, and in every forward pass the rows of W + B A, which no gradient goes through.

    Where each of several experts has a weight, all of them are measured, whichever the tokens visit.
    """
    home, path = f"{_module(term)}.adapter", f"{term.path}.adapter"
    base = replace(term, component=ADAPTERS, bias=0, parts=(), path=path, tied=term.path)
    once = replace(base, rows=FORWARD_PASSES, times=Fraction(term.copies), inputs=(), outputs=(), allowed=Pass.FORWARD, tied=path)
    terms = [replace(once, name="dora_product", k=lora.dim, n=term.k * adapted)]
    if framework.dora_by_identity:
        terms.insert(0, replace(once, name="dora_identity", n=term.k * lora.dim))
        if lora.dropout:
            # Weighted apart from the layer's output, whose input was not dropped.
            terms.append(replace(base, name="dora_base"))
    lengths = replace(base, name="magnitude", k=term.n, n=1, kind=Kind.TABLE, path=f"{path}.magnitude", tied="")
    return [*terms, lengths if home == path else replace(lengths, tied=f"{home}.magnitude")]


# ---- second models ------------------------------------------------------------------------------


def a_third(terms: Iterable[Term]) -> list[Term]:
    """Terms whose forward pass costs a third of what they cost in training: less than one pass where they are frozen."""
    return [term.changed(times=term.times * Fraction(bin(term.passes.value).count("1"), 3)) for term in terms]


def forward_only(terms: Iterable[Term], component: str, role: Role = Role.NONE) -> list[Term]:
    """A model that only runs forward: a teacher (distillation), or the reference of a preference loss (DPO, arXiv:2305.18290).

    Its FLOPs are one line of the breakdown; its parameters do not count.
    """
    role |= Role.ONLOOKER | Role.TRAINING_ONLY
    return [
        term.under(f"{component}.", component=component, place=TermPlace.LAST, passes=Pass.FORWARD & term.allowed).marked(role)
        for term in terms
    ]


# ---- recomputation -------------------------------------------------------------------------------


def with_recompute(terms: Sequence[Term], shape: ModelShape, framework: Framework) -> list[Term]:
    """Add the forward passes that activation checkpointing runs again (HFU; model FLOPs do not change).

    ``full``/``uniform`` recomputes every layer, ``full``/``block`` the decoder's first recompute_num_layers, ``selective`` the
    named modules.  A region without a backward pass is not recomputed; any other runs to its end or, if the framework
    stops early, to the last tensor that the backward pass needs.
    """
    if shape.recompute_granularity is None:
        return list(terms)
    region_of = _regions(shape)
    regions: dict[str, list[int]] = {}
    for index, term in enumerate(terms):
        if Pass.FORWARD in term.passes and (region := region_of(term)):
            regions.setdefault(region, []).append(index)
    result = list(terms)
    for indices in regions.values():
        saving = [index for index in indices if terms[index].passes & Pass.BACKWARD]
        if not saving:
            continue
        for index in indices:
            # A matmul keeps its operands, not its result, so the last one that keeps anything is not run. What follows the gate
            # on the shared experts keeps the gate's result.
            if not framework.stops_early or index < saving[-1] or terms[index].kind is Kind.GATE:
                result[index] = replace(terms[index], passes=terms[index].passes | Pass.RECOMPUTE)
    return result


def recomputes_weights(shape: Any) -> bool:
    """Whether layers with weights are recomputed, and not attention alone; of anything with megatron-core's field names."""
    granularity = getattr(shape, "recompute_granularity", None)
    modules = getattr(shape, "recompute_modules", None) or ("core_attn",)
    return granularity == "full" or (granularity == "selective" and not {*modules} <= {"core_attn", "moe_act"})


#: megatron-core's names of recompute_modules -> the line of the breakdown, or the role, of the terms that run again.
_MODULES: dict[str, str | Role] = {
    "core_attn": CORE,
    "mlp": Role.MLP,
    "moe": Role.EXPERTS,
    "shared_experts": Role.SHARED_EXPERTS,
    "mla_up_proj": Role.LATENT_PROJECTION,
    "gdp_in_proj": Role.DELTA_PRODUCT_INPUT,
    "gdp_qkv": Role.DELTA_PRODUCT_CONVOLUTION,
}
#: Those that run no matmul again.
_FREE_MODULES = ("moe_act", "layernorm", "gdn_norm_out", "mhc")
#: Those that are of one component: in a model without it megatron-core refuses them, so they mean something else.
_ONLY_WITH = {
    "gdn_norm_out": "gated_delta_net",
    "mhc": "hyper_connections",
    "gdp_in_proj": "gated_delta_product",
    "gdp_qkv": "gated_delta_product",
}


def unknown_recompute(terms: Iterable[Term], shape: ModelShape) -> tuple[str, ...]:
    """A sentence for each entry of ``recompute_modules`` of which it is not known what it runs again."""
    components = {term.component for term in terms}
    known = {name for name in (*_MODULES, *_FREE_MODULES) if _ONLY_WITH.get(name, "") in {"", *components}}
    return tuple(
        f"recompute_modules has {short(name)}: its recomputation is unknown, so hardware FLOPs (HFU) are unknown"
        for name in dict.fromkeys(_modules(shape))
        if name not in known
    )


def _modules(shape: ModelShape) -> tuple[Any, ...]:
    """The modules that selective recomputation reruns."""
    return tuple(shape.recompute_modules or ("core_attn",)) if shape.recompute_granularity == "selective" else ()


def _regions(shape: ModelShape) -> Callable[[Term], str]:
    """Which region of activation checkpointing a term belongs to: '' for none."""
    if shape.recompute_granularity == "full":
        if shape.recompute_method not in ("uniform", "block"):
            raise ConfigError(
                f"model.recompute_method={shape.recompute_method!r} must be 'uniform' or 'block' with full recomputation"
            )
        if shape.recompute_method == "uniform":
            # Multi-token-prediction depths too, all but their output layers.
            return lambda term: _layer(term.path) if Role.OUTPUT not in term.roles else ""
        first = shape.recompute_num_layers or 0
        return lambda term: _layer(term.path) if (layer := layer_index(term.path)) is not None and layer < first else ""
    if shape.recompute_granularity != "selective":
        raise ConfigError(f"model.recompute_granularity={shape.recompute_granularity!r} must be 'full' or 'selective'")
    modules = [name for name in _modules(shape) if name in _MODULES]

    def region(term: Term) -> str:
        layer = _layer(term.path)
        name = next((name for name in modules if _belongs(term, _MODULES[name])), "") if layer else ""
        return name and f"{layer}.{name}"

    return region


def _belongs(term: Term, to: str | Role) -> bool:
    return to in term.roles if isinstance(to, Role) else term.component == to


def _layer(path: str) -> str:
    """``decoder.layers.3`` or ``mtp.layers.0``; '' outside of layers."""
    match = _LAYER.match(path)
    return match.group() if match else ""


_LAYER = re.compile(r"(decoder|mtp)\.layers\.\d+")


def layer_index(path: str) -> int | None:
    """The decoder layer (from 0) a module path belongs to; None outside the decoder's layers."""
    parts = path.split(".", 3)
    return int(parts[2]) if parts[:2] == ["decoder", "layers"] else None


# ---- what a configuration asks for ---------------------------------------------------------------


_TOWER = (
    *("patch_embed", "patch_norm", "pos_embed", "class_embedding", "pre_layernorm", "decoder", "post_layernorm"),
    "vision_adapter",
)


def trainable_of(shape: ModelShape, lora: Lora | None, freeze: Sequence[str], train: Sequence[str] = ()) -> Trainable:
    """What trains: everything, or only the adapters, without what patterns or the model's switches freeze.

    Args:
        shape: the model's shape, for its switches.
        lora: the adapters, whose base model is frozen.
        freeze: patterns of frozen modules, or of their ``....weight`` and ``....bias``.
        train: patterns of what trains nevertheless.
    """
    frozen = list(freeze)
    if shape.freeze_language_model:
        frozen += ["embedding", "decoder", "output_layer", "mtp"]
    if shape.freeze_vision_model:
        frozen += [f"vision_model.{part}" for part in _TOWER]
    if shape.freeze_vision_projection:
        frozen += ["vision_model.merger", "vision_model.deepstack_merger_list"]

    if lora is None and not frozen:
        return Trainable(everything, everything)

    def rule(kind: str) -> Rule:
        def trains(path: str) -> bool:
            def named(patterns: Sequence[str]) -> bool:
                return matches(path, patterns) or matches(f"{path}.{kind}", patterns)

            return ".adapter." in path or named(train) or (lora is None and not named(frozen))

        return trains

    return Trainable(rule("weight"), rule("bias"))
