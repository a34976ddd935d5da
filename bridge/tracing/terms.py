"""From solved operations to the terms of a plan: statistics, components, kinds and parameters."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bridge.flops.statistics import Statistic
from bridge.flops.terms import Kind, Pass, Term, TermPlace
from bridge.tracing.recording import Op
from bridge.tracing.solving import Monomial, Polynomial, Scale

_TOKENS: Monomial = (1, 0, 0, 0)
_SQUARE: Monomial = (2, 0, 0, 0)
#: Powers of (tokens, encoder tokens, chunks, patches) -> the kind of a statistic and what it is summed over, by scale.
_STATISTICS: dict[Scale, dict[Monomial, tuple[str, str]]] = {
    Scale.SEQUENCES: {
        (0, 0, 0, 0): ("count", "sequences"),
        _TOKENS: ("length", "sequences"),
        _SQUARE: ("square", "sequences"),
        (0, 1, 0, 0): ("length", "encoder"),
        (0, 2, 0, 0): ("square", "encoder"),
        (1, 1, 0, 0): ("length", "cross"),
        (0, 0, 1, 0): ("pieces", "sequences"),
        (0, 0, 2, 0): ("pieces_square", "sequences"),
        (1, 0, 1, 0): ("pieces_length", "sequences"),
    },
    Scale.IMAGES: {
        (0, 0, 0, 0): ("count", "images"),
        (0, 0, 0, 1): ("length", "images"),
        (0, 0, 0, 2): ("square", "images"),
    },
    Scale.ONCE: {
        (0, 0, 0, 0): ("count", "micro_batches"),
        _TOKENS: ("length", "longest"),
        _SQUARE: ("square", "longest"),
        (0, 0, 1, 0): ("pieces", "longest"),
    },
}


def statistic(monomial: Monomial, scale: Scale, chunk: int) -> Statistic | None:
    """The statistic that has the value of this monomial; None if no additive statistic has."""
    kind, over = _STATISTICS.get(scale, {}).get(monomial, ("", ""))
    if chunk < 0:
        kind = kind.replace("pieces", "quotient")
    return Statistic(kind, over, (abs(chunk),) if monomial[2] else ()) if kind else None


def priced(polynomial: Polynomial) -> bool:
    """Whether every monomial of a polynomial has a statistic."""
    return all(statistic(key, polynomial.scale, polynomial.chunk) for key in polynomial.coefficients)


@dataclass(frozen=True)
class Solved:
    """An operation, or several of one module together, as a function of the lengths.

    Attributes:
        op: the operation.
        work: multiply-accumulates.
        k, n: two constant factors of the work: the reduced and the produced dimension of a weight; a head's width and the heads.
        passes: all passes that do this work.
    """

    op: Op
    work: Polynomial
    k: int
    n: int
    passes: Pass


# ---- names -------------------------------------------------------------------------------------------------------------

_CROSS = re.compile(r"(encoder_attn|cross_?attn|cross_?attention|crossattention|EncDecAttention)", re.I)
_ATTENTION = re.compile(r"(^|\.)(?!linear)\w*(attn|attention)\w*(\.|$)", re.I)
_RECURRENT = re.compile(r"(^|\.)(\w*mamba\w*|ssm|mixer|linear_attn|recurrent\w*|rg_lru|temporal_block|delta_net|kda)(\.|$)", re.I)
_SHORT_CONVOLUTION = re.compile(r"\.layers\.\d+\.conv(\.|$)")
_VISION = re.compile(r"(^|\.)(\w*vision\w*|visual|image_encoder|patch_embed\w*)(\.|$)", re.I)
_AUDIO = re.compile(r"(^|\.)(\w*audio\w*|\w*speech\w*|feature_extractor)(\.|$)", re.I)
_PROJECTOR = re.compile(r"(^|\.)(\w*multi_?modal_?projector|\w*connector|merger|embed_vision|mm_projector)(\.|$)", re.I)
_EMBEDDING = re.compile(r"(^|\.)(\w*embed\w*|wte|wpe)(\.|$)", re.I)
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|decoder_layers)\.(\d+)(?:\.|$)")
_ENCODER = re.compile(r"(^|\.)encoder\.", re.I)
_ADAPTER = re.compile(r"(^|\.)(lora_|vera_|ia3_|oft_|hada_|lokr_|boft_|prompt_encoder|trainable_tokens_)", re.I)
_ROUTER = re.compile(r"(^|\.)(\w*router\w*|gate|wg|classifier)(\.|$)", re.I)
#: The norms of latent attention, which one convention prices.
_LATENT_NORM = re.compile(r"\.(q|kv)_a_(layer)?norm$")
_EXPERTS = re.compile(r"(^|\.)experts?(\.|$)")
#: A shared expert outside the block of the routed ones (Granite).
_SHARED = re.compile(r"\.shared_mlp(\.|$)")


def _inside(path: str, block: str) -> bool:
    """Whether a module belongs to a block of experts; if that is a whole layer (Gemma 4), its attention does not."""
    return path == block or (path.startswith(block + ".") and not _ATTENTION.search(path[len(block) :]))


@dataclass(frozen=True)
class Names:
    """What the names of modules tell about a model.

    Attributes:
        output: path of the output layer, empty where there is none.
        blocks: paths of the modules that hold experts.
    """

    output: str
    blocks: tuple[str, ...]

    @classmethod
    def of(cls, model: Any) -> Names:
        """The names of a module's tree."""
        head = getattr(model, "get_output_embeddings", lambda: None)()
        paths = {id(module): name for name, module in model.named_modules()}
        blocks = tuple(name.rpartition(".")[0] for name in paths.values() if name.rpartition(".")[2] == "experts")
        return cls(paths.get(id(head), "") if head is not None else "", blocks)

    def component(self, path: str, core: bool = False) -> str:
        """The line of the breakdown that a module or a parameter belongs to; ``core`` for products of two activations."""
        if _ADAPTER.search(path):
            return "adapters"
        if _PROJECTOR.search(path):
            return "vision_projector"
        if _VISION.search(path):
            return "vision_model"
        if _AUDIO.search(path):
            return "audio_model"
        if self._is_output(path):
            return "output_layer"
        if any(_inside(path, block) for block in self.blocks) or self._is_shared(path):
            return "moe"
        if _CROSS.search(path):
            return "cross_attention"
        if _RECURRENT.search(path):
            return "mamba" if "mamba" in path.lower() else "recurrence"
        if _SHORT_CONVOLUTION.search(path):
            return "short_convolution"
        if _ATTENTION.search(path):
            return "core_attention" if core else "self_attention"
        if _LAYER.search(path):
            return "core_attention" if core else "mlp"
        return "embedding" if _EMBEDDING.search(path) else "output_layer"

    def _is_shared(self, path: str) -> bool:
        beside = _SHARED.search(path)
        return beside is not None and any(block.startswith(path[: beside.start() + 1]) for block in self.blocks)

    def _is_output(self, path: str) -> bool:
        return bool(self.output) and (path == self.output or path.startswith(self.output + "."))

    def kind(self, op: Op, n: int) -> Kind:
        """The kind of the term of an operation, by which conventions leave terms out."""
        if op.depthwise:
            return Kind.CONVOLUTION
        if not op.weight:
            return Kind.CORE
        if self.component(op.path) == "moe" and not _EXPERTS.search(op.path):
            if n == 1:
                return Kind.GATE
            if _ROUTER.search(op.path):
                return Kind.ROUTER
        return Kind.LINEAR

    def place(self, path: str) -> int | TermPlace:
        """The place of a module in a pipeline."""
        component, layer = self.component(path), _LAYER.search(path)
        if component in ("vision_model", "audio_model", "vision_projector") or _ENCODER.search(path) or component == "embedding":
            return TermPlace.FIRST
        if layer:
            return int(layer[1])
        return TermPlace.LAST if component == "output_layer" else TermPlace.FIRST


# ---- terms -------------------------------------------------------------------------------------------------------------


def terms_of(solved: list[Solved], parameters: Mapping[str, Any], names: Names, needed: Container[str]) -> tuple[Term, ...]:
    """The terms of a plan.

    Args:
        solved: all operations.
        parameters: name -> parameter; tied ones by their first name.
        names: the names of the module tree.
        needed: paths of the modules with an input that needs a gradient.
    """
    left = dict(parameters)
    terms = [term for one in solved for term in _priced_terms(one, left, names)]
    experts = {term.path.rpartition(".")[0]: (term.copies, term.active_copies) for term in terms if term.copies > 1}
    tables = {name: _table(name, parameter, names, needed) for name, parameter in left.items()}
    return (*terms, *(_of_experts(term, experts.get(name.rpartition(".")[0]), left[name]) for name, term in tables.items()))


def unread(solved: list[Solved]) -> list[str]:
    """A sentence for each kind of module in which the keys that queries see are unknown."""
    cores = [one.op for one in solved if one.passes & Pass.FORWARD and _SQUARE in one.work.coefficients]
    paths = dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", op.path) for op in cores if not op.weight and op.context is None)
    return [f"{path or 'the model'}: which keys a query sees was not read, so all pairs are counted" for path in paths]


def _priced_terms(one: Solved, left: dict[str, Any], names: Names) -> Iterator[Term]:
    op, size = one.op, one.k * one.n
    forward = bool(one.passes & Pass.FORWARD)
    # Tokens first: the weight, and how many of the experts are active, belong to them.
    for key, coefficient in sorted(one.work.coefficients.items(), key=lambda item: item[0] != _TOKENS):
        rows = statistic(key, one.work.scale, one.work.chunk)
        assert rows is not None  # ``priced`` was asked
        times = coefficient / size
        weight: Any = left.get(op.weight) if forward and rows.kind != "square" else None
        copies = weight.numel() // size if weight is not None and weight.numel() % size == 0 else 0
        # A weight belongs to the term that multiplies by all of it; what reads it again, or in part, has none of its own.
        owns = copies == 1 or (copies > 1 and weight.dim() > 2)
        if owns:
            left.pop(op.weight)
        path = op.weight.removesuffix(".weight") if owns else op.path
        yield Term(
            name=_name(op, owns),
            component=names.component(op.path, core=not op.weight),
            k=one.k,
            n=one.n,
            rows=op.context if op.context is not None and key == _SQUARE else rows,
            times=times,
            kind=names.kind(op, one.n),
            weight=owns,
            copies=copies if owns else 1,
            active_copies=max(1, min(copies, int(times))) if owns else 1,
            path=path,
            place=names.place(op.path),
            passes=one.passes,
        )


def _name(op: Op, owns: bool) -> str:
    last = (op.weight.removesuffix(".weight") if owns else op.path).rpartition(".")[2] or op.name
    return last if op.weight else op.name


def _of_experts(term: Term, experts: tuple[int, int] | None, parameter: Any) -> Term:
    """The term of a parameter with one row per expert, such as a bias: a token uses the rows of the experts that it visits."""
    if experts is None or parameter.dim() < 2 or parameter.shape[0] != experts[0]:
        return term
    copies, active = experts
    return term.changed(k=term.k // copies, copies=copies, active_copies=active)


def _table(name: str, parameter: Any, names: Names, needed: Container[str]) -> Term:
    """The term of a parameter that is in no matrix product: an embedding, a norm, a bias."""
    numel, path = parameter.numel(), name.removesuffix(".weight")
    kind = Kind.LATENT_NORM if _LATENT_NORM.search(path) else Kind.TABLE if parameter.dim() > 1 else Kind.NORM
    component = names.component(path)
    passes = Pass.FORWARD | (Pass.WGRAD if parameter.requires_grad else Pass.NONE)
    passes |= Pass.DGRAD if path in needed else Pass.NONE
    return Term(path.rpartition(".")[2], component, numel, 1, kind=kind, path=path, place=names.place(path), passes=passes)
