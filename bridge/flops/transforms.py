"""Training modes are transforms of terms: they add adapters and set passes, they never touch a formula."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from bridge.flops.elementwise import Operations
from bridge.flops.frameworks import Framework
from bridge.flops.model_shape import ConfigError, ModelShape
from bridge.flops.terms import Kind, Pass, Term, elementwise

ADAPTERS = "adapters"
#: The value that never carries a gradient.
DETACHED = "detached"
#: Values that several terms add to.
STREAMS = frozenset({"hidden", "patches", "image_embeddings", "index_query", "value", "logits", "conditioning"})
Trainable = Callable[[str], bool]


def differentiate(terms: Iterable[Term], trainable: Trainable, framework: Framework) -> list[Term]:
    """Set the passes that autograd runs.

    A matmul runs forward; its backward has one matmul for each operand that needs a gradient: the activations if anything
    below them trains, the weight if it trains.  Terms are in forward order, so one walk is enough.

    Args:
        terms: a model, first term first.
        trainable: module path -> whether its weights train.
        framework: whose rules.
    """
    needs: dict[str, bool] = {}
    result = []
    for term in terms:
        sources = [needs.get(name, False) for name in term.inputs]
        trains = term.has_weight and Pass.WGRAD in term.allowed and trainable(term.tied or term.path)
        flows = any(sources) and bool(term.allowed & Pass.BACKWARD)
        if term.has_weight:
            wgrad = trains
            # The gate on the shared experts is torch's own linear function, in megatron-core too.
            whole = framework.dgrad_with_wgrad and term.kind is not Kind.GATE
            dgrad = flows or (trains and whole and DETACHED not in term.inputs)
        else:
            dgrad, wgrad = flows and sources[0], flows and sources[-1]
        if term.kind is Kind.ROUTER and framework.router_backward_is_whole:
            dgrad = wgrad = flows or trains
        passes = Pass.FORWARD | (Pass.DGRAD if dgrad else Pass.NONE) | (Pass.WGRAD if wgrad else Pass.NONE)
        for name in term.outputs:
            # What is added to a stream leaves it in need of a gradient; a join only looks at its inputs.
            needs[name] = (
                flows or trains or (term.kind is not Kind.JOIN and needs.get(name, False) and name.rpartition(".")[2] in STREAMS)
            )
        result.append(term.changed(passes=passes & term.allowed))
    return result


def everything(path: str) -> bool:
    """Full training."""
    return True


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether a module path is named by one of ``patterns``: its last part, its whole path, or a wildcard for either."""
    leaf = path.rsplit(".", 1)[-1]
    return any(fnmatchcase(path, pattern) or fnmatchcase(leaf, pattern) or path.startswith(f"{pattern}.") for pattern in patterns)


# ---- LoRA ----------------------------------------------------------------------------------------


#: megatron-core's fused linear layers -> what they are made of (the targets of canonical LoRA).
PARTS = {"linear_qkv": ("linear_q", "linear_k", "linear_v"), "linear_fc1": ("linear_fc1_gate", "linear_fc1_up")}


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (Hu et al., arXiv:2106.09685).

    Attributes:
        dim: rank.
        target_modules: names or wildcards of the linear layers that get one.
    """

    dim: int
    target_modules: tuple[str, ...]

    @property
    def is_split(self) -> bool:
        """Whether a part of a fused layer is a target."""
        parts = [part for names in PARTS.values() for part in names]
        return any(target.rsplit(".", 1)[-1] in parts for target in self.target_modules)

    def targets(self, path: str) -> bool:
        """Whether the linear layer at ``path`` gets an adapter; a fused layer's name stands for its parts too."""
        stem, _, leaf = path.rpartition(".")
        names = [path] + [f"{stem}.{whole}" for whole, parts in PARTS.items() if leaf in parts]
        return any(matches(name, self.target_modules) for name in names)


_SCALED_SUM = Operations(additions=1, multiplications=1)


def with_adapters(terms: Iterable[Term], lora: Lora) -> list[Term]:
    """Two matmuls beside every target, k -> r -> n, on the target's rows."""
    result = []
    hit = False
    for term in terms:
        result.append(term)
        if term.kind is not Kind.LINEAR or not term.weight or not lora.targets(term.path):
            continue
        hit = True
        low = f"{term.path}.adapter"
        base = replace(term, component=ADAPTERS, bias=0, tied="")
        result += [
            replace(base, name="lora_A", n=lora.dim, outputs=(low,), path=f"{low}.linear_in"),
            replace(base, name="lora_B", k=lora.dim, inputs=(low,), path=f"{low}.linear_out"),
            # Scaled by alpha / r and added to what the frozen weight makes.
            elementwise("lora_sum", ADAPTERS, term.times * term.n * _SCALED_SUM, *term.outputs, rows=term.rows).under(f"{low}."),
        ]
    if not hit:
        raise ConfigError(f"peft.target_modules={list(lora.target_modules)} matches no linear layer of this model")
    return result


# ---- second models ------------------------------------------------------------------------------


def forward_only(terms: Iterable[Term], component: str) -> list[Term]:
    """A model that only looks on: a teacher (distillation), or the reference of a preference loss (DPO, arXiv:2305.18290).

    Its FLOPs are one line of the breakdown, its parameters are nobody's.
    """
    return [
        replace(term, component=component, path=f"{component}.{term.path}", passes=Pass.FORWARD & term.allowed) for term in terms
    ]


# ---- recomputation -------------------------------------------------------------------------------


def with_recompute(terms: Sequence[Term], shape: ModelShape) -> list[Term]:
    """Add the forward passes that activation checkpointing runs again (HFU; model FLOPs do not change).

    ``full``/``uniform`` runs every layer again, ``full``/``block`` the decoder's first recompute_num_layers, ``selective`` the
    named modules.  Terms without a backward pass are not run again: nothing of them was dropped that is needed.
    """
    if shape.recompute_granularity is None:
        return list(terms)
    selected = _recomputed(shape)
    return [
        replace(term, passes=term.passes | Pass.RECOMPUTE) if Pass.FORWARD in term.passes and selected(term) else term
        for term in terms
    ]


#: megatron-core's names of recompute_modules -> which terms run again.
_MODULES: dict[str, Callable[[Term], bool]] = {
    "core_attn": lambda term: term.component == "core_attention",
    "mlp": lambda term: term.component == "mlp",
    "moe": lambda term: term.component == "moe",
    "shared_experts": lambda term: ".shared_experts." in term.path,
    "mla_up_proj": lambda term: term.name in ("linear_q_up_proj", "linear_kv_up_proj", "linear_q_proj"),
    "moe_act": lambda term: False,
    "layernorm": lambda term: False,
}


def _recomputed(shape: ModelShape) -> Callable[[Term], bool]:
    if shape.recompute_granularity == "full":
        if shape.recompute_method not in ("uniform", "block"):
            raise ConfigError(
                f"model.recompute_method={shape.recompute_method!r} must be 'uniform' or 'block' with full recomputation"
            )
        if shape.recompute_method == "uniform":
            # Multi-token-prediction depths too, all but their output layers.
            return lambda term: term.path.startswith(("decoder.layers.", "mtp.")) and term.name != "output_layer"
        first = shape.recompute_num_layers or 0
        return lambda term: (layer := layer_index(term.path)) is not None and layer < first
    if shape.recompute_granularity != "selective":
        raise ConfigError(f"model.recompute_granularity={shape.recompute_granularity!r} must be 'full' or 'selective'")
    modules = tuple(shape.recompute_modules or ("core_attn",))
    for name in modules:
        if name not in _MODULES:
            raise ConfigError(f"model.recompute_modules has {name!r}; known are {', '.join(_MODULES)}")
    return lambda term: term.path.startswith(("decoder.", "mtp.")) and any(_MODULES[name](term) for name in modules)


def layer_index(path: str) -> int | None:
    """The decoder layer (from 0) a module path belongs to; None outside the decoder's layers."""
    parts = path.split(".", 3)
    return int(parts[2]) if parts[:2] == ["decoder", "layers"] else None


# ---- what a configuration asks for ---------------------------------------------------------------


def trainable_of(shape: ModelShape, lora: Lora | None, freeze: Sequence[str]) -> Trainable:
    """Which modules train: everything, or the adapters only, minus what is frozen by pattern or by a model's switches."""
    frozen = list(freeze)
    if shape.freeze_language_model:
        frozen += ["embedding", "decoder", "output_layer", "mtp"]
    if shape.freeze_vision_model:
        tower = ("patch_embed", "pos_embed", "class_embedding", "pre_layernorm", "decoder", "post_layernorm", "vision_adapter")
        frozen += [f"vision_model.{part}" for part in tower]
    if shape.freeze_vision_projection:
        frozen += ["vision_model.merger", "vision_model.deepstack_merger_list"]

    def trainable(path: str) -> bool:
        if ".adapter." in path:
            return True
        return lora is None and not matches(path, frozen)

    return trainable
