"""One configuration, one batch, one convention: every number that commands show of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

from bridge.config import Config, data_parallel_size, layout_problems
from bridge.flops import ConfigError, Plan
from bridge.flops.plan import TableRow
from bridge.flops.reading import read_vision
from bridge.hardware import mixed_peak
from bridge.planning.batches import equal_sequences
from bridge.planning.quantities import plain
from bridge.planning.training_run import PipelineBound, pipeline_bound

Number = int | Fraction

#: The columns of ``Plan.table`` that a set of passes adds up.
COLUMNS = {
    "forward": ("forward",),
    "training": ("forward", "dgrad", "wgrad"),
    "hardware": ("forward", "dgrad", "wgrad", "recompute"),
}


@dataclass(frozen=True)
class PricedSample:
    """What is priced: a vector of the plan's statistics and how it came about."""

    vector: Sequence[Number]
    sequences: int
    tokens: int
    images: int


def make_batch(
    plan: Plan,
    config: Config,
    *,
    batch_size: int | None = None,
    sequence_length: int | None = None,
    sequence_lengths: Sequence[int] = (),
    image_patches: Sequence[int] = (),
    image_sizes: Sequence[tuple[int, int]] = (),
    encoder_lengths: Sequence[int] = (),
    audio_frames: Sequence[int] = (),
    byte_patches: Sequence[int] = (),
) -> PricedSample:
    """The batch that ``arguments.add_batch``'s options describe: one sequence of the model's own length by default.

    Equal sequences go by the rules of the public function, which knows their number, sum and squares only; lengths go
    one by one.
    """
    if batch_size and sequence_lengths:
        raise ConfigError("--batch-size and --sequence-lengths exclude each other; the number of lengths is the batch size")
    if sequence_length and sequence_lengths:
        raise ConfigError("--sequence-length and --sequence-lengths exclude each other; give one of them")
    image_patches = [*image_patches, *patches_of(config, image_sizes)]
    given = {"image_patches": image_patches, "encoder_lengths": encoder_lengths, "audio_frames": audio_frames}
    refuse_what_has_no_effect(plan, {**given, "byte_patches": byte_patches})
    size, length = batch_size or 1, sequence_length or config.model.seq_length
    if sequence_lengths or encoder_lengths or audio_frames or byte_patches or plan.needs_lengths:
        each = sequence_lengths or [_known(length)] * size
        measured = plan.measure(each, image_patches, encoder_lengths, audio_frames, byte_patches)
        return PricedSample(measured, len(each), sum(each), len(image_patches))
    vector = equal_sequences(plan, size, _known(length), image_patches)
    return PricedSample(vector, size, size * _known(length), len(image_patches))


def _known(length: int | None) -> int:
    if length is None:
        raise ConfigError("model.seq_length is not set; add model.seq_length=..., --sequence-length or --sequence-lengths")
    return length


def patches_of(config: Config, sizes: Sequence[tuple[int, int]]) -> list[int]:
    """Patches of images of this many pixels: each side is rounded to whole merged patches, as towers for any size do."""
    vision = read_vision(config) if sizes else None
    if not sizes:
        return []
    if vision is None:
        raise ConfigError("--image-size has no effect because this model has no vision tower; leave it out")
    if vision.spatial_merge_size < 2:
        raise ConfigError("--image-size: this tower takes images of a single size; give their patches with --image-patches")
    side, merged = vision.patch_size * vision.spatial_merge_size, vision.spatial_merge_size**2
    return [max(round(width / side), 1) * max(round(height / side), 1) * merged for width, height in sizes]


#: What is given by an option -> what a model must sum over for it to have an effect, and what such a model has.
_NEEDS = {
    "image_patches": ("images", "vision tower"),
    "encoder_lengths": ("encoder", "encoder"),
    "audio_frames": ("audio", "audio encoder"),
    "byte_patches": ("byte_patches", "patches of bytes"),
}


def refuse_what_has_no_effect(plan: Plan, given: Mapping[str, Sequence[int]]) -> None:
    """Raise ConfigError for an option that changes nothing of this model."""
    over = {str(statistic.over) for statistic in plan.statistics}
    for name, lengths in given.items():
        needed, part = _NEEDS[name]
        if lengths and needed not in over:
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"{option} has no effect because this model has no {part} to price; leave it out")


@dataclass(frozen=True)
class PricedBatch:
    """One configuration, one batch, one convention.

    Attributes:
        config, plan, batch: what is counted and how.
        passes: ``forward``, ``training`` or ``hardware``.
        micro_batches: per pipeline and step.
        peaks: of one device by number format, FLOP/s; empty where there is none.
    """

    config: Config
    plan: Plan
    batch: PricedSample
    passes: str
    micro_batches: int = 1
    peaks: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def flops(self) -> Number:
        return self.plan.evaluate(self.batch.vector, self.passes)

    @property
    def flops_per_token(self) -> Fraction:
        return Fraction(self.flops, self.batch.tokens)

    @property
    def flops_per_sample(self) -> Fraction:
        return Fraction(self.flops, self.batch.sequences)

    @property
    def flops_per_step(self) -> Fraction:
        """One optimizer step: train.global_batch_size samples like those of the batch."""
        return self.flops_per_sample * self.config.train.global_batch_size

    @cached_property
    def components(self) -> dict[str, Number]:
        return self.plan.evaluate_components(self.batch.vector, self.passes)

    @cached_property
    def formats(self) -> dict[str, Number]:
        """FLOPs by number format; those that nothing runs in are left out."""
        found = self.plan.evaluate_formats(self.batch.vector, self.passes)
        return {name: flops for name, flops in found.items() if flops}

    @property
    def ideal_seconds(self) -> float | None:
        """What the batch takes on one device at the peaks of its number formats; None where one is not known."""
        peak = mixed_peak(self.formats, self.peaks)
        return None if peak is None else float(self.flops) / peak

    @cached_property
    def rows(self) -> list[TableRow]:
        return self.plan.tabulate(self.batch.vector)

    def share(self, row: TableRow) -> float:
        """A row's part of the passes that are counted."""
        return float(sum(getattr(row, column) for column in COLUMNS[self.passes]) / self.flops) if self.flops else 0.0

    @cached_property
    def stages(self) -> list[Number]:
        return self.plan.evaluate_stages(self.batch.vector, passes=self.passes)

    @cached_property
    def pipeline(self) -> PipelineBound:
        """What the stages and the micro-batches of a step allow."""
        chunks = self.config.parallel.virtual_pipeline_model_parallel_size or 1
        return pipeline_bound(self.stages, self.micro_batches, chunks)

    def as_json(self) -> dict[str, Any]:
        """Integers wherever the count is one; FLOPs throughout."""
        return {
            "name": self.config.name,
            "source": getattr(self.config, "source", "read"),
            "convention": self.plan.convention,
            "passes": self.passes,
            "sequences": self.batch.sequences,
            "tokens": self.batch.tokens,
            "images": self.batch.images,
            "flops": plain(self.flops),
            "flops_per_token": plain(self.flops_per_token),
            "flops_per_sample": plain(self.flops_per_sample),
            "flops_per_step": plain(self.flops_per_step),
            "global_batch_size": self.config.train.global_batch_size,
            "parameters": self.plan.parameters(),
            "components": {name: plain(value) for name, value in self.components.items()},
            "formats": {name: plain(value) for name, value in self.formats.items()},
            "number_format_recipe": self.plan.formats.recipe.name if self.plan.formats.recipe else None,
            "ideal_seconds": self.ideal_seconds,
            "stages": [plain(value) for value in self.stages],
            "pipeline": {**asdict(self.pipeline), "efficiency": self.pipeline.efficiency},
            "table": [{**vars(row), "share": self.share(row)} for row in self.rows],
            "not_counted": list(self.plan.not_counted),
            "layout_problems": layout_problems(self.config),
        }


def check_devices(config: Config, devices: int) -> None:
    """Raise ConfigError if the devices do not hold a whole number of replicas."""
    parallel = config.parallel
    one = parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size * parallel.context_parallel_size
    if devices % one:
        raise ConfigError(
            f"--devices {devices} is not a multiple of {one}, the devices of one replica (tensor x pipeline x context parallel)"
        )


def micro_batches(config: Config, devices: int | None) -> int:
    """Micro-batches that one pipeline works on in a step; one replica of the model where the number of devices is unknown."""
    train, parallel = config.train, config.parallel
    replicas = 1
    if devices is not None:
        check_devices(config, devices)
        replicas = data_parallel_size(config, devices)
    count, left_over = divmod(train.global_batch_size, train.micro_batch_size * replicas)
    if (left_over or not count) and parallel.pipeline_model_parallel_size > 1:
        raise ConfigError(
            f"train.global_batch_size={train.global_batch_size} is not a multiple of train.micro_batch_size="
            f"{train.micro_batch_size} x {replicas} replicas; change one of them or --devices"
        )
    return max(count, 1)
