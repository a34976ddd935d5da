"""The pipeline stage of every part of a model: even and uneven splits, virtual stages, layouts layer by layer, ``|`` in patterns.

The rules are megatron-core's (``get_num_layers_to_build``, ``PipelineParallelLayerLayout``, the segments of hybrid models).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.flops.shapes import ConfigError, whole
from bridge.flops.terms import TermPlace

#: Symbols of a layout -> the part of the model.
PARTS = {"E": "embedding", "t": "decoder", "m": "mtp", "L": "loss"}
#: No model is deeper; a repetition in a layout could ask for any number.
MOST_PARTS = 100_000
#: ``(tt|)*29``, then ``t*3``.
_REPEATED = (re.compile(r"\(([^)]+)\)\*(\d+)"), re.compile(r"(.)\*(\d+)"))
_LAYOUT = "pipeline_model_parallel_layout"
_UNEVEN = ("num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage")
_ACCOUNT = ("account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split")


@dataclass(frozen=True)
class Placement:
    """The stage (from 0) of each part of a model.

    Attributes:
        stages: how many there are.
        layers: of each decoder layer, first to last.
        embedding: and of all that comes before the decoder.
        mtp: of the multi-token-prediction depths, which stand together.
        loss: and of the output layers, those of the depths too.
    """

    stages: int
    layers: tuple[int, ...]
    embedding: int
    mtp: int
    loss: int

    def stage(self, place: int | TermPlace) -> int:
        """The stage of the terms that belong to this place."""
        if isinstance(place, int):
            return self.layers[place]
        return {TermPlace.FIRST: self.embedding, TermPlace.MTP: self.mtp, TermPlace.LAST: self.loss}[place]


@dataclass(frozen=True, kw_only=True)
class PipelineLayout:
    """How a model is cut into pipeline stages, in megatron-core's names."""

    pipeline_model_parallel_size: int = 1
    """Stages."""
    virtual_pipeline_model_parallel_size: int | None = None
    """Chunks per stage, for the interleaved schedule. Unset: one, or what a layout or a pattern has."""
    num_layers_in_first_pipeline_stage: int | None = None
    """Layers of the first stage where the stages are uneven. Unset: as the others."""
    num_layers_in_last_pipeline_stage: int | None = None
    """Layers of the last stage where the stages are uneven. Unset: as the others."""
    account_for_embedding_in_pipeline_split: bool = False
    """The embedding takes the place of a layer."""
    account_for_loss_in_pipeline_split: bool = False
    """The output layer takes the place of a layer."""
    pipeline_model_parallel_layout: Any = None
    """The layers of each chunk: ``Et*3|(tt|)*29,m|L``, a list of lists of names, or megatron-core's object made of either."""

    segments: tuple[int, ...] = ()
    """Decoder layers between the ``|`` of a hybrid pattern; fewer than two: it has none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, _LAYOUT, _frozen(self.pipeline_model_parallel_layout))

    def place(self, num_layers: int, mtp_depths: int = 0) -> Placement:
        """The stage of every part of a model.

        Args:
            num_layers: decoder layers.
            mtp_depths: multi-token-prediction depths.

        Raises:
            ConfigError: the layers cannot be placed so; the message names the options.
        """
        for name in ("pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size", *_UNEVEN):
            value = getattr(self, name)
            if value is not None:
                whole(name, value)
        stages = self.pipeline_model_parallel_size
        if self.pipeline_model_parallel_layout is not None:
            self._refuse("which the layout decides", *_UNEVEN, *_ACCOUNT)
            return self._as_listed(num_layers, mtp_depths)
        sizes: Sequence[int] = self.segments
        if len(sizes) > 1:
            self._refuse("which the | of the hybrid pattern decide", *_UNEVEN, *_ACCOUNT)
            self._check_chunks(len(sizes), "the hybrid pattern")
        else:
            sizes = self._sizes(num_layers)
        layers = tuple(chunk % stages for chunk, size in enumerate(sizes) for _ in range(size))
        return Placement(stages, layers, embedding=0, mtp=stages - 1, loss=stages - 1)

    def _sizes(self, num_layers: int) -> list[int]:
        """Layers of each chunk, in the order of the model."""
        stages, chunks = self.pipeline_model_parallel_size, self.virtual_pipeline_model_parallel_size or 1
        if stages == 1:
            return [num_layers]
        embedding, loss = (bool(getattr(self, name)) for name in _ACCOUNT)
        given = {0: self.num_layers_in_first_pipeline_stage, stages - 1: self.num_layers_in_last_pipeline_stage}
        ends = {stage: size for stage, size in given.items() if size is not None}
        if ends:
            self._refuse("which uneven stages decide", *_ACCOUNT)
        even, left_over = divmod(num_layers + embedding + loss - sum(ends.values()), max(stages - len(ends), 1))
        per_stage = [ends.get(stage, even) for stage in range(stages)]
        sizes = [size // chunks for _ in range(chunks) for size in per_stage]
        sizes[0] -= embedding
        sizes[-1] -= loss
        idle = bool(ends) and len(ends) < stages and even < 1  # stages between the uneven ones that nothing is left for
        if left_over or idle or min(sizes) < 0 or any(size % chunks for size in per_stage) or sum(sizes) != num_layers:
            set_so = "".join(f" with {name}={getattr(self, name)}" for name in (*_UNEVEN, *_ACCOUNT) if getattr(self, name))
            raise ConfigError(
                f"{num_layers} layers do not split evenly over pipeline_model_parallel_size={stages} stages of "
                f"virtual_pipeline_model_parallel_size={chunks} chunks{set_so}; set num_layers_in_first_pipeline_stage and "
                "num_layers_in_last_pipeline_stage, or other sizes"
            )
        return sizes

    def _as_listed(self, num_layers: int, mtp_depths: int) -> Placement:
        """The placement of a layout."""
        chunks = _chunks(self.pipeline_model_parallel_layout)
        self._check_chunks(len(chunks), _LAYOUT)
        parts = [(part, chunk % self.pipeline_model_parallel_size) for chunk, held in enumerate(chunks) for part in held]
        found = {name: tuple(stage for part, stage in parts if part == name) for name in PARTS.values()}
        wanted = {"embedding": 1, "decoder": num_layers, "mtp": mtp_depths, "loss": 1}
        for name, count in wanted.items():
            if len(found[name]) != count:
                raise ConfigError(f"{_LAYOUT} has {len(found[name])} times {name}, but the model has {count}: make them agree")
        names = [part for part, _ in parts]
        if names != sorted(names, key=list(wanted).index):
            raise ConfigError(f"{_LAYOUT} must have {', '.join(wanted)} in this order")
        if sum("mtp" in held for held in chunks) > 1:
            raise ConfigError(f"{_LAYOUT} must have all mtp in one chunk")
        loss = found["loss"][0]
        return Placement(
            self.pipeline_model_parallel_size, found["decoder"], found["embedding"][0], (*found["mtp"], loss)[0], loss
        )

    def _check_chunks(self, chunks: int, what: str) -> None:
        stages, given = self.pipeline_model_parallel_size, self.virtual_pipeline_model_parallel_size
        if chunks % stages:
            raise ConfigError(f"{what} has {chunks} chunks, which is not a multiple of pipeline_model_parallel_size={stages}")
        if given is not None and given != chunks // stages:
            raise ConfigError(
                f"virtual_pipeline_model_parallel_size={given}, but {what} has {chunks // stages} chunks per stage; leave it "
                "unset"
            )

    def _refuse(self, why: str, *names: str) -> None:
        for name in names:
            if getattr(self, name) not in (None, False):
                raise ConfigError(f"{name}={getattr(self, name)!r}: {why}; leave it unset")


def _frozen(layout: Any) -> Any:
    """A layout as a string or as tuples of names, which can be compared and hashed; None if there is none."""
    layout = getattr(layout, "input_data", layout)  # megatron-core's object
    if isinstance(layout, (list, tuple)):
        return tuple(map(_frozen, layout))
    return None if layout in (None, "") else str(getattr(layout, "name", layout))  # a member of megatron-core's LayerType


def _chunks(layout: str | tuple[Any, ...]) -> tuple[tuple[str, ...], ...]:
    """A layout as names, chunk by chunk."""
    if isinstance(layout, str):
        return tuple(tuple(PARTS[symbol] for symbol in chunk) for chunk in _unrolled(layout).split("|"))
    return tuple(tuple(map(_named, chunk)) if isinstance(chunk, tuple) else (_named(chunk),) for chunk in layout)


def _named(part: Any) -> str:
    name = str(part).strip().lower()
    if name not in PARTS.values():
        raise ConfigError(f"{_LAYOUT} has {part!r}; known are {', '.join(PARTS.values())}")
    return name


def _unrolled(layout: str) -> str:
    """A layout string with its repetitions written out."""
    text = layout.replace(",", "")
    for pattern in _REPEATED:
        text = pattern.sub(_repeat(), text)
    for symbol in text:
        if symbol not in PARTS and symbol != "|":
            raise ConfigError(f"{_LAYOUT}={layout!r} has {symbol!r}; known are {' '.join(PARTS)}, |, (...)*n and x*n")
    return text


def _repeat() -> Callable[[re.Match[str]], str]:
    """What writes repetitions out, up to ``MOST_PARTS`` symbols in all."""
    written = 0

    def repeat(match: re.Match[str]) -> str:
        nonlocal written
        times = int(match[2]) if len(match[2]) < 8 else MOST_PARTS + 1
        written += len(match[1]) * times
        if written > MOST_PARTS:
            raise ConfigError(f"{_LAYOUT} repeats {match[1]!r} {match[2][:12]} times: a model has at most {MOST_PARTS:,} parts")
        return match[1] * times

    return repeat
