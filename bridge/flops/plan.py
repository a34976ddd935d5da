"""A plan: a model's terms compiled to integer coefficients over a few additive statistics.

    FLOPs(batch) = sum over terms of  2 x k x n x times x passes x statistic(batch)

Compile once; measure each micro-batch to a small vector; add vectors; dot Python integers (they do not overflow).
"""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from math import lcm
from operator import mul
from typing import Any, TypeVar

from bridge.flops import conventions, frameworks, layer_pattern, plan_view, reading, transforms
from bridge.flops.choices import Choice
from bridge.flops.closed_form import ClosedForm, closed_form
from bridge.flops.formats import NOT_TOLD, Formats
from bridge.flops.lengths import batch_lengths, exact_vector
from bridge.flops.model import root_terms, vision_terms
from bridge.flops.moments import NOTHING, Moments, Number, rule
from bridge.flops.parameter_rule import by_parameters
from bridge.flops.pipeline import PipelineLayout, Placement
from bridge.flops.shapes import ConfigError
from bridge.flops.statistics import Statistic
from bridge.flops.terms import Context, Kind, Pass, Role, Term, TermPlace

K = TypeVar("K")

#: A multiply-accumulate is two floating-point operations.
FLOPS_PER_MAC = 2

ONE_STAGE = PipelineLayout()

#: Comparing a built model needs torch, so it lives on a higher floor and is imported by name on use.
VERIFY = "bridge.training.verify"
#: The memory of a layout also lives on a higher floor.
MEMORY = "bridge.planning.memory"


class Passes(Choice):
    """A set of passes."""

    FORWARD = "forward"
    """One forward pass."""
    TRAINING = "training"
    """Forward and backward, as autograd runs them."""
    HARDWARE = "hardware"
    """Training, plus recomputation and padding."""


PASSES = {
    Passes.FORWARD: (Pass.FORWARD,),
    Passes.TRAINING: (Pass.FORWARD, Pass.DGRAD, Pass.WGRAD),
    Passes.HARDWARE: (Pass.FORWARD, Pass.DGRAD, Pass.WGRAD, Pass.RECOMPUTE, Pass.PADDING),
}


def compile_plan(
    cfg: Any,
    convention: str | conventions.Convention = "megatron",
    *,
    framework: str | None = None,
    trainable: transforms.Rule | transforms.Trainable | None = None,
    elementwise: bool = False,
) -> Plan:
    """Compile a configuration to a plan.

    Args:
        cfg: anything that ``reading.read`` accepts: a recipe, another framework's configuration, a mapping, or a ``Model``.
        convention: ``megatron``, ``maxtext``, ``exact``, ``executed`` or ``palm``, or a record of switches.
        framework: a name from ``frameworks.FRAMEWORKS``, whose layers and backward passes are counted. The default is
            ``cfg.framework``, else megatron.
        trainable: maps a module path to whether its weights train; overrides ``cfg.peft`` and the freeze switches. A
            ``transforms.Trainable`` distinguishes weights from biases (``bridge.training.trainable.trainable_from``).  For a
            traced model it must agree with what trained when it ran.
        elementwise: keep the terms that are not matmuls, which only the operation ledger counts.

    Raises:
        ConfigError: A required field is missing or impossible; the message names it.

    >>> small = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 512}
    >>> compile_plan(small, "exact").flops([128, 64])
    166871040
    """
    model, record = reading.read(cfg), conventions.get(convention)
    runs_on = model.framework if framework is None else frameworks.get(framework)
    may_train = transforms.Trainable.of(trainable or model.trainable)
    _check_trace(model, may_train)

    def kept(terms: Iterable[Term]) -> list[Term]:
        return [term for term in terms if elementwise or term.kind is not Kind.ELEMENTWISE]

    def root(how: conventions.Convention) -> list[Term]:
        return root_terms(model, how, runs_on)

    def counted(terms: Iterable[Term], how: conventions.Convention) -> Iterable[Term]:
        return terms if how.parameters is None else by_parameters(terms, how.parameters, model.shape)

    def build(how: conventions.Convention) -> tuple[Term, ...]:
        if model.traced:  # its passes are those that ran
            return tuple(counted(model.traced, how))
        terms = root(how)
        if model.adapters is not None:
            terms = transforms.with_adapters(terms, model.adapters, runs_on)
        again = transforms.recomputes_weights(model.shape)
        terms = transforms.differentiate(kept(terms), may_train, runs_on, input_gradient=again)
        return (*counted(transforms.with_recompute(terms, model.shape, runs_on), how), *kept(onlookers(how)))

    def onlookers(how: conventions.Convention) -> list[Term]:
        terms = []
        if model.teacher is not None:
            terms += transforms.forward_only(counted(root_terms(model.teacher, how, runs_on), how), "teacher_model", Role.TEACHER)
        if model.reference:
            terms += transforms.forward_only(reference(how), "reference_model")
        return terms

    def reference(how: conventions.Convention) -> list[Term]:
        if not how.reference_is_a_third:
            return list(counted(root(how), how))
        terms = root(how)
        return transforms.a_third(transforms.differentiate(terms, may_train, runs_on))

    terms = build(record)
    unknown = (*model.hardware_unknown, *transforms.unknown_recompute(terms, model.shape))
    left_out = (*model.not_counted, *layer_pattern.not_counted(model.shape), *_padding(model, record))
    left_out = (*left_out, *_run_otherwise(model, record, runs_on), *unknown)
    beside = model.teacher.formats if model.teacher is not None else None
    formats = replace(model.formats, teacher=beside)
    return Plan(record, terms, left_out, may_train, build, model.layout, unknown, formats, model)


def _check_trace(model: reading.Model, may_train: transforms.Trainable) -> None:
    """Refuse a ``trainable`` that differs from what trained when the model was traced: its passes are fixed."""
    ran = model.trainable
    other = next((term for term in model.traced if ran.parameters(term) != may_train.parameters(term)), None)
    if other is not None:
        trained = "trained" if ran.parameters(other) else "was frozen"
        raise ConfigError(
            f"trainable={other.path}: it {trained} when the model was traced, and a traced plan holds the passes that ran; set "
            "requires_grad on the module and trace it again"
        )


def _padding(model: reading.Model, record: conventions.Convention) -> list[str]:
    """A sentence if the convention leaves padding out but the unpadded vocabulary size is unknown."""
    if record.padded_vocabulary or model.true_vocabulary or model.language is None:
        return []
    return [f"padded_vocab_size={model.language.padded_vocab_size}: the size without padding is unknown, so padding is counted"]


def _run_otherwise(model: reading.Model, record: conventions.Convention, framework: frameworks.Framework) -> tuple[str, ...]:
    """Sentences about blocks whose price is not what the framework's own code executes, where that is what is counted."""
    wanted = record.names_other_kernels and model.language is not None
    return layer_pattern.run_otherwise(model.shape, framework) if wanted else ()


def compile_vision_plan(cfg: Any, convention: str = "megatron") -> Plan | None:
    """The plan of the vision tower alone, trained in full; None where there is no tower."""
    vision = reading.read_vision(cfg)
    if vision is None:
        return None
    record, tower = conventions.get(convention), vision

    def build(how: conventions.Convention) -> tuple[Term, ...]:
        return tuple(transforms.differentiate(vision_terms(tower, how), transforms.everything, frameworks.MEGATRON))

    return Plan(record, build(record), (), transforms.everything, build)


@dataclass(frozen=True)
class Coefficients:
    """Integers over a common denominator, in the order of a plan's statistics."""

    values: tuple[int, ...]
    denominator: int

    def dot(self, vector: Sequence[Number]) -> Number:
        """The weighted sum of a vector of numbers, as an int if it is integral."""
        if type(vector) is not list:  # numpy's and torch's products overflow
            vector = exact_vector(vector)
        try:
            total: Number = sum(map(mul, self.values, vector))
        except OverflowError:  # numpy's
            return self.dot(exact_vector(vector))
        if type(total) is int:
            if self.denominator == 1:
                return total
        elif type(total) is not Fraction:  # one of numpy's, which may have wrapped around
            return self.dot(exact_vector(vector))
        value = Fraction(total, self.denominator)
        return value.numerator if value.denominator == 1 else value


@dataclass(frozen=True)
class TableRow:
    """One row of ``Plan.table``: equal terms of several layers together, with the FLOPs of one batch.

    Attributes:
        component, name: the component and the matmul.
        rows: the statistic that counts its rows.
        k, n, times: its size, and how often each row passes through it.
        layers: number of terms in this row.
        forward, dgrad, wgrad, recompute: FLOPs of each pass.
        share: fraction of the training FLOPs.
    """

    component: str
    name: str
    rows: str
    k: int
    n: int
    times: Fraction
    layers: int
    forward: Number
    dgrad: Number
    wgrad: Number
    recompute: Number
    share: float


class Plan:
    """The cost of any batch, as coefficients over additive statistics.

    Attributes:
        convention: the name of the convention.
        terms: one matmul each, first layer first, with the passes that run.
        statistics: the entries of a ``measure`` vector, in order. The configuration alone fixes them, so all ranks agree.
        not_counted: the parts of the model that are not priced, one sentence each.
        layout: how the configuration splits the model into pipeline stages.
        hardware_unknown: the reasons why the ``hardware`` passes are unknown, one sentence each; empty if they are known.
        formats: the number format of each matmul.
        model: the model that the plan was compiled from.
        record: the convention's record of switches.
        trainable: what trains, by module path.
    """

    def __init__(
        self,
        convention: conventions.Convention,
        terms: Sequence[Term],
        not_counted: tuple[str, ...],
        trainable: transforms.Rule | transforms.Trainable,
        build: Callable[[conventions.Convention], Sequence[Term]],
        layout: PipelineLayout = ONE_STAGE,
        hardware_unknown: tuple[str, ...] = (),
        formats: Formats = NOT_TOLD,
        model: reading.Model | None = None,
    ):
        self.convention = convention.name
        self.terms = tuple(terms)
        self.not_counted = not_counted
        self.layout = layout
        self.hardware_unknown = hardware_unknown
        self.formats = formats
        self.model = reading.Model() if model is None else model
        self.record, self._build = convention, build
        self.trainable = transforms.Trainable.of(trainable)
        self._priced = list(self._price_terms())
        self.statistics: tuple[Statistic, ...] = tuple(dict.fromkeys(statistic for _, statistic, _ in self._priced))
        self._estimates = [(rule(s), s.over, s.sizes) for s in self.statistics]
        self._needs_byte_patches = any(s.over == "byte_patches" for s in self.statistics)
        self.needs_lengths = any(s.over == "longest" for s in self.statistics)
        self._needs_routers = any(s.over == "routed" for s in self.statistics)
        self._only_sequences = all(s.over == "sequences" for s in self.statistics)
        self._index = {statistic: i for i, statistic in enumerate(self.statistics)}
        none = self._coefficients({}, ())
        self._totals = {name: split.get("", none) for name, split in self._split_by(lambda term: "").items()}
        self._stages: dict[PipelineLayout, dict[str, list[Coefficients]]] = {}

    def with_terms(
        self, terms: Sequence[Term], not_counted: tuple[str, ...], hardware_unknown: tuple[str, ...] | None = None
    ) -> Plan:
        """The same plan with other terms and, if given, another ``hardware_unknown``."""
        unknown = self.hardware_unknown if hardware_unknown is None else hardware_unknown
        return Plan(self.record, terms, not_counted, self.trainable, self._build, self.layout, unknown, self.formats, self.model)

    # ---- compiling -------------------------------------------------------------------------------

    def _price_terms(self) -> Iterator[tuple[Term, Statistic, Number]]:
        """Every term that counts, with its statistic and the FLOPs of one pass per unit of it; equal ones are priced once."""
        known: dict[tuple[Any, ...], tuple[Statistic, Number]] = {}
        for term in self.terms:
            if term.kind in self.record.left_out or not term.k:
                continue
            key = id(term.rows), term.k, term.n, id(term.times)
            if key not in known:
                known[key] = self._price(term)
            yield term, *known[key]

    def _price(self, term: Term) -> tuple[Statistic, Number]:
        factor, statistic = Fraction(1), term.rows
        if isinstance(statistic, Context):
            factor, statistic = self.record.statistic(statistic)
        return statistic, _whole(FLOPS_PER_MAC * term.k * term.n * term.times * factor)

    @cached_property
    def _components(self) -> dict[str, dict[str, Coefficients]]:
        return self._split_by(lambda term: term.component)

    @cached_property
    def _formats(self) -> dict[str, dict[str, Coefficients]]:
        """Coefficients by number format, in which the passes of one matmul may differ."""
        layers = 1 + max((term.place for term in self.terms if isinstance(term.place, int)), default=-1)
        return self._summed(
            (self.formats.of(term, one, layers), one, statistic, flops)
            for term, statistic, flops in self._priced
            for one in PASSES[Passes.HARDWARE]
            if one in term.passes
        )

    def _split_by(self, key: Callable[[Term], K]) -> dict[str, dict[K, Coefficients]]:
        """Coefficients of the terms that ``key`` puts together, for each set of passes."""
        return self._summed((key(term), term.passes, statistic, flops) for term, statistic, flops in self._priced)

    def _summed(self, work: Iterable[tuple[K, Pass, Statistic, Number]]) -> dict[str, dict[K, Coefficients]]:
        """Coefficients by group, for each set of passes, of what runs in some passes at so many FLOPs each."""
        sums: dict[K, dict[tuple[Pass, Statistic], Number]] = {}
        for group, passes, statistic, flops in work:
            amounts = sums.setdefault(group, {})
            key = passes, statistic
            amounts[key] = amounts.get(key, 0) + flops
        return {
            name: {group: self._coefficients(amounts, flags) for group, amounts in sums.items()} for name, flags in PASSES.items()
        }

    def _coefficients(self, amounts: Mapping[tuple[Pass, Statistic], Number], flags: Sequence[Pass]) -> Coefficients:
        """Coefficients from FLOPs per pass, by the passes that run and the statistic."""
        sums = [Fraction(0)] * len(self.statistics)
        for (passes, statistic), flops in amounts.items():
            sums[self._index[statistic]] += flops * sum(flag in passes for flag in flags)
        denominator = lcm(*(value.denominator for value in sums))
        return Coefficients(tuple(int(value * denominator) for value in sums), denominator)

    # ---- measuring -------------------------------------------------------------------------------

    def measure(
        self,
        sequence_lengths: Iterable[int],
        image_patches: Iterable[int] = (),
        encoder_lengths: Iterable[int] = (),
        audio_frames: Iterable[int] = (),
        byte_patches: Iterable[int] = (),
    ) -> list[int]:
        """The vector of a batch: one integer per statistic. Vectors of micro-batches, steps and ranks can be added.

        Args:
            sequence_lengths: tokens of each sequence, or of each document in packed data.
            image_patches: patches of each image, or of each temporal frame of a video.
            encoder_lengths: encoder tokens that each sequence cross-attends to, one entry per sequence; by default the
                positions of ``audio_frames``.
            audio_frames: mel frames of each clip.
            byte_patches: patches of each sequence of a byte-latent transformer, whose sequence lengths are in bytes.

        Raises:
            ConfigError: Some lengths are impossible, or a byte-latent transformer has no patches.
        """
        lengths = batch_lengths(sequence_lengths, image_patches, encoder_lengths, audio_frames, byte_patches)
        if self._needs_byte_patches and lengths["sequences"] and not lengths["byte_patches"]:
            raise ConfigError(_NO_BYTE_PATCHES)
        if self._needs_routers:
            raise ConfigError(_NO_ROUTERS)
        return [statistic.sum(lengths[statistic.over]) for statistic in self.statistics]

    def measure_moments(self, sequences: Moments, images: Moments = NOTHING, **others: Moments) -> list[Number]:
        """The vector of a batch from its moments alone; see ``moments``."""
        if not others and images is NOTHING and self._only_sequences:
            return [estimate(sequences, *sizes) for estimate, _, sizes in self._estimates]
        if self._needs_byte_patches and sequences.number and "byte_patches" not in others:
            raise ConfigError(_NO_BYTE_PATCHES)
        if self._needs_routers:
            raise ConfigError(_NO_ROUTERS)
        if self.needs_lengths and sequences.number and "longest" not in others:
            raise ConfigError("this model's work depends on the longest sequence of a batch: give the lengths, not their sums")
        once = Moments(1, 1, 1, 1) if sequences.number else NOTHING  # one forward pass, unless told otherwise
        known = {"sequences": sequences, "projected": sequences, "images": images, "micro_batches": once, **others}
        return [estimate(known.get(over, NOTHING), *sizes) for estimate, over, sizes in self._estimates]

    def text_form(self) -> ClosedForm | None:
        """The training FLOPs of a text-only batch as a function of its moments; None if they are not linear in them."""
        if self._needs_byte_patches or self.needs_lengths:
            return None
        priced = self._totals[Passes.TRAINING]
        return closed_form(self.statistics, priced.values, priced.denominator)

    # ---- evaluating ------------------------------------------------------------------------------

    def evaluate(self, vector: Sequence[Number], passes: str = "training") -> Number:
        """FLOPs of a vector of Python integers.

        Args:
            vector: a sum of ``measure`` results.
            passes: one of ``Passes``: ``forward``, ``training`` or ``hardware`` (training and recomputation).

        Raises:
            ConfigError: ``passes`` is unknown, or the hardware passes of this plan are; see ``hardware_unknown``.
        """
        return self._known(passes, self._totals).dot(vector)

    def _known(self, passes: str, compiled: Mapping[str, K]) -> K:
        """What was compiled for a set of passes; ConfigError where that set is not known."""
        # Every step of a run comes by here: names are made members only where they are none of the known ones.
        if passes not in compiled:
            Passes(passes)
        if self.hardware_unknown and passes == Passes.HARDWARE:
            raise ConfigError(self.hardware_unknown[0])
        return compiled[passes]

    def evaluate_components(self, vector: Sequence[Number], passes: str = "training") -> dict[str, Number]:
        """FLOPs by component; they add up to ``evaluate``."""
        return {name: coefficients.dot(vector) for name, coefficients in self._known(passes, self._components).items()}

    def evaluate_formats(self, vector: Sequence[Number], passes: str = "training") -> dict[str, Number]:
        """FLOPs by number format (``unknown`` if the format is not known); they add up to ``evaluate``."""
        return {name: coefficients.dot(vector) for name, coefficients in self._known(passes, self._formats).items()}

    def evaluate_stages(
        self,
        vector: Sequence[Number],
        layout: PipelineLayout | int | None = None,
        virtual_pipeline_model_parallel_size: int | None = None,
        passes: str = "training",
        *,
        num_layers_in_first_pipeline_stage: int | None = None,
        num_layers_in_last_pipeline_stage: int | None = None,
    ) -> list[Number]:
        """FLOPs by pipeline stage; they add up to ``evaluate``.

        Args:
            vector: a sum of ``measure`` results.
            layout: how the model is split into stages; by default the layout of its configuration.  An int is
                pipeline_model_parallel_size, to which the options below apply; with no options and the configuration's own
                number of stages it also means the configuration's layout.
            virtual_pipeline_model_parallel_size: chunks per stage.
            passes: as for ``evaluate``.
            num_layers_in_first_pipeline_stage: decoder layers of an uneven first stage.
            num_layers_in_last_pipeline_stage: decoder layers of an uneven last stage.

        Raises:
            ConfigError: The layers do not fit this layout.
        """
        if isinstance(layout, int):
            even = PipelineLayout(pipeline_model_parallel_size=layout, segments=self.layout.segments)
            given = replace(
                even,
                virtual_pipeline_model_parallel_size=virtual_pipeline_model_parallel_size,
                num_layers_in_first_pipeline_stage=num_layers_in_first_pipeline_stage,
                num_layers_in_last_pipeline_stage=num_layers_in_last_pipeline_stage,
            )
            configured = given == even and self.layout.pipeline_model_parallel_size == layout
            layout = self.layout if configured else given
        return [coefficients.dot(vector) for coefficients in self._known(passes, self.stage_coefficients(layout or self.layout))]

    def stage_coefficients(self, layout: PipelineLayout) -> dict[str, list[Coefficients]]:
        """What prices each stage of a layout, for each set of passes; compiled once per layout."""
        if layout not in self._stages:
            stage_of = self.placement(layout).stage
            found = self._split_by(lambda term: stage_of(term.place))
            none, stages = self._coefficients({}, ()), range(layout.pipeline_model_parallel_size)
            self._stages[layout] = {name: [split.get(stage, none) for stage in stages] for name, split in found.items()}
        return self._stages[layout]

    def placement(self, layout: PipelineLayout) -> Placement:
        """The stage of every part of the model under a layout."""
        layers = [term.place for term in self.terms if isinstance(term.place, int)]
        depths = {term.path.split(".", 3)[2] for term in self.terms if term.place is TermPlace.MTP}
        return layout.place(max(layers, default=-1) + 1, len(depths))

    def flops(
        self,
        sequence_lengths: Iterable[int],
        image_patches: Iterable[int] = (),
        passes: str = "training",
        **others: Iterable[int],
    ) -> Number:
        """FLOPs of a batch given by its lengths: an int, or a Fraction if the convention gives no integer.

        The lengths are those of ``measure`` (encoder_lengths and audio_frames by name); ``passes`` is that of ``evaluate``.
        """
        return self.evaluate(self.measure(sequence_lengths, image_patches, **others), passes)

    def breakdown(
        self,
        sequence_lengths: Iterable[int],
        image_patches: Iterable[int] = (),
        passes: str = "training",
        **others: Iterable[int],
    ) -> dict[str, Number]:
        """FLOPs of a batch by component; they add up to ``flops``, which takes the same arguments."""
        return self.evaluate_components(self.measure(sequence_lengths, image_patches, **others), passes)

    def table(
        self, sequence_lengths: Iterable[int], image_patches: Iterable[int] = (), **others: Iterable[int]
    ) -> list[TableRow]:
        """Every matmul of a batch, with equal ones of several layers in one row; the arguments are those of ``measure``."""
        return self.tabulate(self.measure(sequence_lengths, image_patches, **others))

    def tabulate(self, vector: Sequence[Number]) -> list[TableRow]:
        """``table`` for a vector."""
        vector = exact_vector(vector)
        total = self.evaluate(vector)
        flags = (Pass.FORWARD, Pass.DGRAD, Pass.WGRAD, Pass.RECOMPUTE)
        layers: dict[tuple[Any, ...], int] = defaultdict(int)
        groups: dict[tuple[Any, ...], list[Number]] = defaultdict(lambda: [0] * len(flags))
        for term, statistic, flops in self._priced:
            key = (term.component, term.name, statistic.name, term.k, term.n, term.times)
            one = flops * vector[self._index[statistic]]
            layers[key] += 1
            for i, flag in enumerate(flags):
                if flag in term.passes:
                    groups[key][i] += one
        rows = []
        for key, by_pass in groups.items():
            forward, dgrad, wgrad, recompute = map(_whole, by_pass)
            share = float((forward + dgrad + wgrad) / total) if total else 0.0
            rows.append(TableRow(*key, layers[key], forward, dgrad, wgrad, recompute, share))
        return rows

    def __repr__(self) -> str:
        return plan_view.as_text(self)

    def _repr_html_(self) -> str:
        return plan_view.as_html(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values with a ``version``: convention, parameters, statistics, and every matmul per unit of its statistic.

        >>> plan = compile_plan({"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 512})
        >>> plan.to_dict()["version"], plan.to_dict()["statistics"]
        (1, ['tokens', 'squared_tokens'])
        >>> print(*(matmul["name"] for matmul in plan.to_dict()["matmuls"]))
        linear_qkv query_key scores_value linear_proj linear_fc1 linear_fc2 output_layer
        """
        return plan_view.as_dict(self)

    def to_pandas(self) -> Any:
        """The matmuls of ``to_dict`` as a ``pandas.DataFrame``; raises ImportError without pandas.

        >>> plan = compile_plan({"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 512})
        >>> plan.to_pandas().query("name == 'linear_fc1'")[["k", "n", "layers"]].values.tolist()
        [[64, 256, 2]]
        """
        return plan_view.as_frame(self)

    def parameters(self) -> dict[str, int]:
        """Parameters of the model as built (vocabulary unpadded): ``total``, ``active`` per token, and ``trainable``."""
        terms = self.built_terms()
        return {
            "total": sum(term.parameters for term in terms),
            "active": sum(term.active_parameters for term in terms),
            "trainable": sum(map(self.trainable.parameters, terms)),
        }

    def trains(self, term: Term) -> bool:
        """Whether the weight of a term trains."""
        return self.trainable.weights(term.tied or term.path)

    def built_terms(self, *, padded: bool = False) -> list[Term]:
        """The terms of the model as it is built, whatever the convention counts; ``padded``: its vocabulary too."""
        how = replace(conventions.EXACT, padded_vocabulary=padded)
        return [term for term in self._build(how) if Role.ONLOOKER not in term.roles]

    def parameters_by_module(self, *, padded: bool = False) -> dict[str, int]:
        """Weights and biases by module path, those of all experts of a layer together; a tied weight is where it first stands."""
        found: dict[str, int] = defaultdict(int)
        for term in self.built_terms(padded=padded):
            found[term.path or term.name] += term.parameters
        return {path: entries for path, entries in found.items() if entries}

    def verify(self, model: Any) -> Any:
        """Compare a built model with this plan, parameter by parameter; returns a ``bridge.training.verify.Verified``.

        Args:
            model: a torch module, wrapped or not, or the chunks of a pipeline stage; in a pipeline, call it on all ranks.
        """
        return importlib.import_module(VERIFY).verify(self, model)

    def memory(self, layout: Any, *optimizer: Any, **options: Any) -> Any:
        """Bytes that the fullest rank of each pipeline stage needs; see ``bridge.planning.memory.memory``."""
        return importlib.import_module(MEMORY).memory(self, layout, *optimizer, **options)


_NO_ROUTERS = "routers count the tokens of experts, lengths do not: ask the plan that this one was made from"
_NO_BYTE_PATCHES = (
    "byte_patches is missing: a byte-latent transformer needs the number of patches of each sequence (--byte-patches)"
)


def _whole(value: Number) -> Number:
    """An int where the value is integral."""
    return value.numerator if isinstance(value, Fraction) and value.denominator == 1 else value
