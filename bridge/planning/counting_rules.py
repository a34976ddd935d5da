"""The usual ways to count differently: each changes the model, the convention, the FLOPs, or what they are compared with.

A rule that changes nothing (gated layers in a model without any) does not apply.  Rules compose: a report that left out
windows and took gated layers for plain ones is counted with both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

from bridge.flops import conventions
from bridge.flops.conventions import CONVENTIONS, EXECUTED, HALF, PALM, WHOLE, Convention
from bridge.flops.moments import Moments, Number
from bridge.flops.parameter_rule import Parameters
from bridge.flops.plan import Plan, compile_plan
from bridge.flops.reading import Model
from bridge.flops.shapes import ConfigError, ModelShape
from bridge.flops.terms import Kind, Role


@dataclass(frozen=True)
class Case:
    """What ran.

    Attributes:
        model: the model that its configuration describes.
        lengths: tokens of each sequence of a batch.
        image_patches: patches of each image.
        passes: the passes that are counted: ``training``, or ``hardware`` where the report says so.
        devices: devices of the whole job.
        ranks: sizes of its tensor, pipeline and context parallelism, by name.
        peaks: dense peak of one device by number format, in FLOP/s.
        number_format: the format whose peak the run is compared with.
        plans: a cache of compiled plans.
    """

    model: Model
    lengths: tuple[int, ...]
    image_patches: tuple[int, ...] = ()
    passes: str = "training"
    devices: int = 1
    ranks: Mapping[str, int] = field(default_factory=dict)
    peaks: Mapping[str, float] = field(default_factory=dict)
    number_format: str = "bf16"
    plans: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def tokens(self) -> int:
        """Tokens of the batch."""
        return sum(self.lengths)

    @property
    def peak(self) -> float | None:
        """Dense peak of one device, FLOP/s."""
        return self.peaks.get(self.number_format)


@dataclass(frozen=True)
class Priced:
    """A case under a convention, as the rules before have left them."""

    case: Case
    model: Model
    convention: Convention
    passes: str

    @property
    def plan(self) -> Plan:
        key = id(self.model), self.convention
        if key not in self.case.plans:
            self.case.plans[key] = self.model, compile_plan(self.model, self.convention)  # the model too: ids are used again
        plan: Plan = self.case.plans[key][1]
        return plan

    @cached_property
    def vector(self) -> Sequence[Number]:
        lengths = self.case.lengths
        if len(lengths) > 1 or self.case.image_patches:
            return self.plan.measure(lengths, self.case.image_patches)
        total = lengths[0]
        return self.plan.measure_moments(Moments.of(1, total, total * total, total))

    @cached_property
    def flops(self) -> Number:
        return self.plan.evaluate(self.vector, self.passes)

    @property
    def components(self) -> dict[str, Number]:
        """FLOPs by component."""
        return self.plan.evaluate_components(self.vector, self.passes)

    @property
    def attention(self) -> Number:
        """FLOPs of the products of queries, keys and values in one forward pass."""
        forward = replace(self, passes="forward")
        return forward.flops - replace(forward, convention=_without_cores(self.case, self.convention)).flops


@dataclass(frozen=True)
class Rule:
    """One usual way to count differently.

    Attributes:
        name: for programs.
        says: what is done, for people.
        model: the model that is counted instead.
        convention: the convention instead.
        passes: the passes that are counted instead; empty for those of the case.
        price: the FLOPs of the batch instead, from what is priced and its FLOPs so far (None: those of its plan).
        rate: what FLOP/s of a device are multiplied by.
        peak: what the peak is multiplied by; it changes utilizations only.
    """

    name: str
    says: str
    model: Callable[[Model], Model] = lambda model: model
    convention: Callable[[Case, Convention], Convention] = lambda case, convention: convention
    passes: str = ""
    price: Callable[[Priced, Number | None], Number | None] = lambda priced, flops: flops
    rate: Callable[[Case], Number | float] = lambda case: 1
    peak: Callable[[Case], Number | float] = lambda case: 1

    def applied(self, priced: Priced) -> Priced:
        """The model, the convention and the passes that it counts."""
        changed = replace(
            priced,
            model=self.model(priced.model),
            convention=self.convention(priced.case, priced.convention),
            passes=self.passes or priced.passes,
        )
        return priced if changed == priced else changed


# ---- the model and the pairs -----------------------------------------------------------------------------------------


def _language(change: Callable[[ModelShape], Mapping[str, Any]]) -> Callable[[Model], Model]:
    def changed(model: Model) -> Model:
        if model.language is None or not (fields := change(model.language)):
            return model
        return replace(model, language=replace(model.language, **fields))

    return changed


def _one_head_size(shape: ModelShape) -> Mapping[str, Any]:
    hidden, heads = shape.hidden_size or 0, shape.num_attention_heads or 1
    same = shape.multi_latent_attention or hidden % heads or shape.kv_channels in (None, hidden // heads)
    return {} if same else {"kv_channels": hidden // heads}


def _ungated(shape: ModelShape) -> Mapping[str, Any]:
    return {"gated_linear_unit": False} if shape.gated_linear_unit else {}


def _without_mtp(shape: ModelShape) -> Mapping[str, Any]:
    pattern = (shape.hybrid_layer_pattern or "").partition("/")
    if pattern[1]:
        return {"hybrid_layer_pattern": pattern[0], "mtp_num_layers": None}
    return {"mtp_num_layers": None} if shape.mtp_num_layers else {}


def _recomputed(shape: ModelShape) -> Mapping[str, Any]:
    return {"recompute_granularity": "full", "recompute_method": "uniform"}


def _trained_in_full(model: Model) -> Model:
    language = model.language
    if language is not None and any(getattr(language, name) for name in _UNFROZEN):
        language = replace(language, **_UNFROZEN)
    elif model.adapters is None and not model.freeze:
        return model
    return replace(model, language=language, adapters=None, freeze=(), train=(), adapted=False)


_UNFROZEN: Mapping[str, Any] = dict.fromkeys(("freeze_language_model", "freeze_vision_model", "freeze_vision_projection"), False)


def _with_windows(convention: Convention, **contexts: Callable[..., Any]) -> Convention:
    """The same convention with other pairs in some attention contexts."""
    return replace(convention, pairs={**convention.pairs, **contexts})


def _without_cores(case: Case, convention: Convention) -> Convention:
    return replace(convention, left_out=convention.left_out | {Kind.CORE})


def _whole_square(case: Case, convention: Convention) -> Convention:
    return replace(convention, pairs=EXECUTED.pairs)


def _window_as_causal(case: Case, convention: Convention) -> Convention:
    def no_window(*_: int) -> Any:
        return convention.pairs["causal"]()

    return _with_windows(convention, window=no_window, chunk=no_window)


def _window_of(part: Fraction) -> Callable[[Case, Convention], Convention]:
    """Windows of T W pairs, or a part of them; a window that is no shorter than the sequence hides nothing."""

    def changed(case: Case, convention: Convention) -> Convention:
        longest = max(case.lengths)
        return _with_windows(
            convention, window=lambda window: (part * window, "length", ()) if window < longest else (part, "square", ())
        )

    return changed


# ---- FLOPs -----------------------------------------------------------------------------------------------------------


def _so_far(priced: Priced, flops: Number | None) -> Number:
    return priced.flops if flops is None else flops


def _embedding(priced: Priced, flops: Number | None) -> Number | None:
    shape = priced.model.language
    if shape is None or priced.convention.parameters is not None:
        return flops
    return _so_far(priced, flops) + 6 * (shape.vocab_size or 0) * (shape.hidden_size or 0) * priced.case.tokens


def _six_n(parameters: Callable[[Priced], int]) -> Callable[[Priced, Number | None], Number]:
    return lambda priced, flops: 6 * parameters(priced) * priced.case.tokens


def _matmul_weights(priced: Priced) -> int:
    """Weights that a token is multiplied with: all but the embedding's."""
    terms = compile_plan(priced.model, "exact").built_terms()
    return sum(term.k * term.n * term.active_copies for term in terms if term.kind in _MATMULS and term.weight)


def _all_but_embedding(priced: Priced) -> int:
    """Without the input embedding; where they are tied, the output layer's weight is the embedding's too."""
    return sum(term.parameters for term in priced.plan.built_terms() if Role.EMBEDDING not in term.roles)


_MATMULS = frozenset({Kind.LINEAR, Kind.ROUTER, Kind.GATE, Kind.PATCH_EMBEDDING})


def _full(priced: Priced) -> Priced:
    return replace(priced, model=_trained_in_full(priced.model))


def _two_thirds(priced: Priced, flops: Number | None) -> Number | None:
    return flops if priced.model.adapters is None else Fraction(2, 3) * _full(priced).flops


def _by_trainable_share(priced: Priced, flops: Number | None) -> Number | None:
    if priced.model.adapters is None:
        return flops
    counts = priced.plan.parameters()
    frozen = counts["total"] - counts["trainable"]
    return Fraction(2 * frozen + counts["trainable"], 3 * frozen) * _full(priced).flops


def _core_three_times(priced: Priced, flops: Number | None) -> Number | None:
    """Training, and the three passes of attention's products once more."""
    if priced.passes != "hardware":
        return flops
    return replace(priced, passes="training").flops + 3 * priced.attention


def _peak_of(number_format: str) -> Callable[[Case], float]:
    """The peak of that format over the peak of the run's own format; 1 where either is unknown."""
    return lambda case: case.peaks[number_format] / case.peak if case.peak and number_format in case.peaks else 1.0


#: By name, in the order they are tried.
RULES = {
    rule.name: rule
    for rule in (
        Rule("six_n", "6 N: six FLOPs for each parameter that a token uses, no attention", convention=_without_cores,
             price=_six_n(lambda priced: priced.plan.parameters()["active"])),
        Rule("six_n_all_experts", "6 N with every expert in N, no attention", convention=_without_cores,
             price=_six_n(lambda priced: priced.plan.parameters()["total"])),
        Rule("six_n_all_but_embedding", "6 N with every expert, without the input embedding, no attention",
             convention=_without_cores, price=_six_n(_all_but_embedding)),
        Rule("six_n_without_embedding", "6 N over the weights of matmuls, no attention", convention=_without_cores,
             price=_six_n(_matmul_weights)),
        Rule("full_square", "the whole attention square, even where a mask hides half of it", convention=_whole_square),
        Rule("windows_ignored", "every layer attends to the whole sequence", convention=_window_as_causal),
        Rule("half_window", "a window halved as if it were a causal square: T W / 2 pairs", convention=_window_of(HALF)),
        Rule("whole_window", "T W pairs in a window, even at the start of a sequence", convention=_window_of(WHOLE)),
        Rule("embedding_counted", "the embedding lookup counted as a matmul", price=_embedding),
        Rule("attention_left_out", "no attention products, as in rows packed from short documents", convention=_without_cores),
        Rule("head_size_by_width", "heads of hidden_size / num_attention_heads instead of the model's own size",
             model=_language(_one_head_size)),
        Rule("gated_as_plain", "gated layers as two matmuls instead of three", model=_language(_ungated)),
        Rule("mtp_left_out", "multi-token prediction left out", model=_language(_without_mtp)),
        Rule("recompute_counted", "full recomputation counted as work",
             model=_language(_recomputed), passes="hardware"),
        Rule("core_recomputed_three_times", "selective recomputation of attention counted as three passes, where one runs again",
             price=_core_three_times),
        Rule("trained_in_full", "the whole model counted as trained", model=_trained_in_full),
        Rule("lora_as_two_thirds", "two thirds of full training, adapters left out", price=_two_thirds),
        Rule("lora_by_trainable_share", "full training x (2 + adapters / frozen) / 3, attention too, adapters left out",
             price=_by_trainable_share),
        Rule("forward_only", "only the forward pass", passes="forward"),
        Rule("multiply_accumulates", "a multiply-accumulate counted as one operation", rate=lambda case: Fraction(1, 2)),
        Rule("ranks_twice", "each rank's work counted twice", rate=lambda case: 2),
        Rule("each_tensor_rank", "the work counted for each tensor-parallel rank", rate=lambda case: case.ranks.get("tensor", 1)),
        Rule("each_pipeline_rank", "the work counted for each pipeline stage", rate=lambda case: case.ranks.get("pipeline", 1)),
        Rule("each_context_rank", "the work counted for each context-parallel rank",
             rate=lambda case: case.ranks.get("context", 1)),
        Rule("whole_job", "the whole job's work as one device's", rate=lambda case: case.devices),
        Rule("shared_once_more", "one device's work divided by the devices", rate=lambda case: Fraction(1, case.devices)),
        Rule("sparse_peak", "compared with the peak with sparsity, twice the dense one", peak=lambda case: 2),
        *(Rule(f"{name}_peak", f"compared with the {name.upper()} peak", peak=_peak_of(name)) for name in ("bf16", "fp8", "fp4")),
    )
}  # fmt: skip


#: Ways of counting that have their own name in tables: torchtitan's and nanoGPT's N.
PALM_WITHOUT_EMBEDDING = replace(PALM, name="palm_without_embedding", parameters=Parameters.WITHOUT_EMBEDDING)
WAYS = (*CONVENTIONS.values(), PALM_WITHOUT_EMBEDDING)


def way(name: str | Convention) -> Convention:
    """The convention of that name, those of ``WAYS`` too, or a record as it is."""
    return next((known for known in WAYS if known.name == name), None) or conventions.get(name)


def get(name: str) -> Rule:
    """The rule of that name; ConfigError names the known ones."""
    if name not in RULES:
        raise ConfigError(f"rule {name!r} is not known; choose from {', '.join(RULES)}")
    return RULES[name]
