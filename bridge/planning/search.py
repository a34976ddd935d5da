"""Which layouts of a model fit on a number of devices, and which of them are fast, with reasons.

The search tries every combination of tensor, pipeline, context and expert parallelism, chunks, micro-batch size and
recomputation that megatron-core accepts; ``step_time`` ranks those that fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from bridge.flops import reading
from bridge.flops.layer_pattern import decoder_layers
from bridge.flops.pipeline import PipelineLayout
from bridge.flops.plan import Plan, compile_plan
from bridge.flops.shapes import ConfigError, ModelShape
from bridge.planning.buffers import Optimizer
from bridge.planning.four_bits import in_four_bits
from bridge.planning.layouts import Layout
from bridge.planning.machines import Machine
from bridge.planning.memory import USABLE, Memory, fullest, memory, states
from bridge.planning.shards import is_expert
from bridge.planning.step_time import StepTime, peak_of, step_time

#: megatron-core's way of training at scale.
OPTIMIZER = Optimizer(overlap_grad_reduce=True, overlap_param_gather=True)
_POWERS = tuple(2**exponent for exponent in range(11))
#: A shorter part of a sequence does not keep a device busy.
LEAST_PART = 1024
_RECOMPUTE: dict[str, dict[str, Any]] = {
    "": {"recompute_granularity": None},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}


@dataclass(frozen=True)
class Candidate:
    """A layout that fits.

    Attributes:
        layout: how the model is split.
        recompute: ``full``, or empty.
        needs: the memory of the fullest rank.
        time: how long a step takes.
        tokens_per_second: estimated tokens per second per device.
        mfu: estimated model FLOPs over the peak.
    """

    layout: Layout
    recompute: str
    needs: Memory
    time: StepTime
    tokens_per_second: float
    mfu: float

    def reason(self) -> str:
        """Where its time goes, the largest losses first."""
        losses = {name: seconds for name, seconds in self.time.parts.items() if name != "compute"}
        shares = ((name, seconds / self.time.estimate) for name, seconds in losses.items())
        worst = sorted((share for share in shares if share[1] >= 0.005), key=lambda share: -share[1])[:3]
        told = [f"{name} {share:.0%}" for name, share in worst]
        told += ["a third of the work is recomputed"] if self.recompute else []
        return ", ".join(told) or "nothing but matmuls"


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        candidates: layouts that fit, fastest first.
        too_large: number of layouts that do not fit.
        nearest: the one of these that comes closest, and a lower bound on the bytes of its fullest rank; None if there is none.
    """

    candidates: tuple[Candidate, ...]
    too_large: int
    nearest: tuple[Layout, int] | None


def search(
    cfg: Any,
    machine: Machine,
    *,
    devices: int,
    sequence_length: int,
    global_batch_size: int,
    convention: str = "megatron",
    optimizer: Optimizer = OPTIMIZER,
    number_format: str = "",
) -> Search:
    """Try every layout.

    Args:
        cfg: anything that ``compile_plan`` accepts; its own layout and recomputation are ignored.
        machine: the machine that trains.
        devices: number of devices.
        sequence_length: tokens per sequence.
        global_batch_size: sequences per step.
        convention: how model FLOPs are counted.
        optimizer: the optimizer.
        number_format: format of the matmuls; if empty, the configuration decides.

    Raises:
        ConfigError: The model is not a language model.
    """
    model = reading.read(cfg)
    shape = model.language
    if shape is None:
        raise ConfigError("layouts are searched only for language models")
    plans = {
        name: compile_plan(replace(model, language=replace(shape, **options)), convention) for name, options in _RECOMPUTE.items()
    }
    batch = [global_batch_size * value for value in plans[""].measure([sequence_length])]
    model_flops = float(plans[""].evaluate(batch)) / devices / peak_of(plans[""], batch, machine.name, number_format)
    tried = _Tried(machine)
    between_steps = cache(lambda layout: _states(plans[""], layout, optimizer))

    def candidate(layout: Layout, recompute: str) -> Candidate | None:
        plan = plans[recompute]
        ends = sorted({0, layout.stages - 1})
        needs = memory(plan, layout, optimizer, sequence_length=sequence_length, stages=ends)
        most = fullest(needs)
        if not tried.fits(layout, most.total, last=bool(recompute)):
            return None
        time = step_time(plan, layout, optimizer, machine, needs, sequence_length=sequence_length, number_format=number_format)
        speed = sequence_length * global_batch_size / devices / time.estimate
        return Candidate(layout, recompute, most, time, speed, model_flops / time.estimate)

    found: list[Candidate] = []
    weights_and_gradients = _at_least(plans[""], optimizer)
    for layout in layouts(shape, machine, devices, sequence_length, global_batch_size):
        if tried.fits(layout, weights_and_gradients(layout), bound=True) and tried.fits(
            layout, between_steps(layout.without_batch)
        ):
            # What fits as it is does not recompute.
            made = candidate(layout, "") or candidate(layout, "full")
            found += [made] if made else []
    found.sort(key=lambda one: one.time.estimate)
    return Search(tuple(found), tried.too_large, tried.nearest or tried.bounded)


@dataclass
class _Tried:
    """The layouts that do not fit."""

    machine: Machine
    too_large: int = 0
    nearest: tuple[Layout, int] | None = None
    bounded: tuple[Layout, int] | None = None

    def fits(self, layout: Layout, needed: int, *, last: bool = True, bound: bool = False) -> bool:
        """Whether this many bytes fit; a layout that does not fit is noted.

        Args:
            layout: the layout that needs them.
            needed: bytes of its fullest rank.
            last: the layout is not tried in another way; only then a failure is noted.
            bound: ``needed`` is a lower bound.
        """
        if needed <= USABLE * self.machine.capacity:
            return True
        if last:
            self.too_large += 1
            name = "bounded" if bound else "nearest"
            best = getattr(self, name)
            if best is None or needed < best[1]:
                setattr(self, name, (layout, needed))
        return False


def _at_least(plan: Plan, optimizer: Optimizer) -> Callable[[Layout], int]:
    """Bytes of the mean stage's weights, and of their gradients where all of them train: quickly computed, never too high."""
    terms = plan.built_terms()
    experts = sum(term.parameters for term in terms if is_expert(term))
    parameters = plan.parameters()
    each = optimizer.weight_bytes + optimizer.gradient_bytes * (parameters["trainable"] == parameters["total"])
    if any(in_four_bits(plan, term) for term in terms):
        each = 0  # half a byte each: no bound; the states decide soon enough

    def needed(layout: Layout) -> int:
        own = experts // layout.experts_and_stages
        return each * (own + (parameters["total"] - experts) // (layout.tensor_model_parallel_size * layout.stages))

    return needed


def _states(plan: Plan, layout: Layout, optimizer: Optimizer) -> int:
    ends = {0, layout.stages - 1}
    return max(states(plan, layout, optimizer, rank=stage * (layout.devices // layout.stages)).total for stage in ends)


# ---- what can be tried ---------------------------------------------------------------------------


def layouts(shape: ModelShape, machine: Machine, devices: int, sequence_length: int, global_batch_size: int) -> Iterator[Layout]:
    """Every layout that megatron-core takes; arguments as for ``search``."""
    for tensor in (size for size in _POWERS if size <= machine.domain and _divides(shape, sequence_length, size)):
        for context in (size for size in _POWERS if size == 1 or _cuts(sequence_length, size)):
            for pipeline in _pipelines(shape, devices // (tensor * context)):
                for expert in _experts(shape, devices // pipeline.pipeline_model_parallel_size):
                    for micro_batch in (1, 2, 4, 8):
                        options = {
                            "devices": devices,
                            "tensor_model_parallel_size": tensor,
                            "sequence_parallel": tensor > 1,
                            "context_parallel_size": context,
                            "expert_model_parallel_size": expert,
                            "expert_tensor_parallel_size": 1 if shape.num_moe_experts else None,
                            "pipeline": pipeline,
                            "micro_batch_size": micro_batch,
                            "global_batch_size": global_batch_size,
                        }
                        layout = _possible(options)
                        if layout is not None:
                            yield layout


def _cuts(length: int, ranks: int) -> bool:
    """Whether each context-parallel rank gets two equal chunks of a sequence, long enough to be worth the communication."""
    return length % (2 * ranks) == 0 and length >= ranks * LEAST_PART


def _possible(options: dict[str, Any]) -> Layout | None:
    try:
        layout = Layout(**options)
    except ConfigError:
        return None
    # The interleaved schedule runs a group of micro-batches through each chunk.
    return None if layout.chunks > 1 and layout.micro_batches % layout.stages else layout


def _divides(shape: ModelShape, length: int, ranks: int) -> bool:
    """Heads, widths and, for sequence parallelism, the sequence."""
    heads, groups = shape.num_attention_heads or 1, shape.key_value_heads or 1
    grouped = shape.multi_latent_attention or groups % ranks == 0 or ranks % groups == 0
    return heads % ranks == 0 and grouped and shape.ffn_size % ranks == 0 and length % ranks == 0


def _pipelines(shape: ModelShape, devices: int) -> Iterator[PipelineLayout]:
    """Even stages, the embedding and the loss in place of a layer where that makes them even, or a smaller last stage."""
    layers = len(decoder_layers(shape))
    for stages in (size for size in _POWERS if size <= min(devices, layers)):
        ends = bool(layers % stages) and (layers + 2) % stages == 0
        even, left_over = divmod(layers + 2 * ends, stages)
        options: dict[str, Any] = {"pipeline_model_parallel_size": stages}
        if ends:
            options |= {"account_for_embedding_in_pipeline_split": True, "account_for_loss_in_pipeline_split": True}
        if not left_over:
            for size in _chunks(even) if stages > 1 else (None,):
                yield PipelineLayout(**options, virtual_pipeline_model_parallel_size=size)
        elif layers > (even + 1) * (stages - 1):
            yield PipelineLayout(**options, num_layers_in_last_pipeline_stage=layers - (even + 1) * (stages - 1))


def _chunks(layers: int) -> list[int | None]:
    """None, then the smallest, a middle and the largest number of chunks that the layers allow."""
    sizes = [size for size in range(2, layers + 1) if layers % size == 0]
    return [None, *sorted({sizes[0], sizes[len(sizes) // 2], sizes[-1]} if sizes else ())]


def _experts(shape: ModelShape, devices: int) -> Iterator[int]:
    experts = shape.num_moe_experts
    if not experts:
        yield 1
        return
    yield from (size for size in _POWERS if experts % size == 0 and devices % size == 0)
