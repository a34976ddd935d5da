"""A lower bound on the time of a step, what sets it, and an estimate for ranking layouts.

The bound lets everything overlap: no step is shorter than its matmuls at the peak with the bubble of its pipeline, than the bytes
of its states over the memory's bandwidth, or than the bytes of its collectives over links and network.  The estimate adds what
usually does not overlap (``EXPOSED``) to matmuls at the rate that the best published runs have (``REACHED``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bridge.flops.plan import Plan
from bridge.flops.shapes import ConfigError
from bridge.hardware import find_peak, mixed_peak, peak_bandwidth
from bridge.planning.buffers import Optimizer
from bridge.planning.communication import CONTEXT, DATA, EXPERT, PIPELINE, TENSOR, Traffic, communication
from bridge.planning.layouts import Layout
from bridge.planning.machines import Machine
from bridge.planning.memory import Memory
from bridge.planning.training_run import pipeline_bound

#: The best fraction of the peak in NVIDIA's tables for Megatron-Bridge (docs/performance-summary, releases 25.09 to 26.06):
#: FP8 2646 of 5000 TFLOP/s, NVFP4 3005 of 10000.  BF16 is an assumption: 43% are published of whole runs (arXiv:2407.21783).
REACHED = {"bf16": 0.60, "fp16": 0.60, "fp8": 0.53, "fp4": 0.30}
#: Models with experts reach half of that in the same tables: many small matmuls, and tokens that are sorted and moved.
WITH_EXPERTS = 0.5
#: How much of a dimension's traffic computation does not hide: half of the tensor-parallel one, which megatron-core cuts into
#: pieces; all that experts send; none of a ring of keys and values while attention is longer.  Data: see ``_exposed_data``.
EXPOSED = {TENSOR: 0.5, EXPERT: 1.0, CONTEXT: 0.1, PIPELINE: 0.5}

COMPUTE, BANDWIDTH = "compute", "memory bandwidth"


@dataclass(frozen=True)
class StepTime:
    """Seconds per step.

    Attributes:
        bound: no step is shorter.
        binds: what sets the bound: ``compute``, ``memory bandwidth`` or a dimension of the layout.
        estimate: with what usually does not overlap.
        parts: of the estimate, in s: ``compute``, ``bubble``, each dimension's exposed communication, ``optimizer``.
        traffic: what each rank of the busiest stage carries.
    """

    bound: float
    binds: str
    estimate: float
    parts: Mapping[str, float]
    traffic: tuple[Traffic, ...]


def step_time(
    plan: Plan,
    layout: Layout,
    optimizer: Optimizer,
    machine: Machine,
    needs: Sequence[Memory],
    *,
    sequence_length: int,
    dispatcher: str = "alltoall",
    number_format: str = "",
) -> StepTime:
    """The bound and the estimate.

    Args:
        plan: the plan of the model.
        layout: how the model and the batch are split.
        optimizer: the optimizer.
        machine: the machine that trains.
        needs: the memory of the fullest rank of each stage.
        sequence_length: tokens per sequence.
        dispatcher: megatron-core's ``moe_token_dispatcher_type``.
        number_format: format of the matmuls; if empty, the configuration decides.

    Raises:
        ConfigError: the device lacks a number format that the model runs in.
    """
    vector = plan.measure([sequence_length] * layout.micro_batch_size)
    peak = peak_of(plan, vector, machine.name, number_format)
    cut = layout.tensor_model_parallel_size * layout.context_parallel_size
    stages = plan.evaluate_stages(vector, layout.pipeline, passes="training" if plan.hardware_unknown else "hardware")
    seconds = [float(stage) / cut / peak for stage in stages]
    pipeline = pipeline_bound([stage * layout.micro_batches for stage in stages], layout.micro_batches, layout.chunks)
    ideal = layout.micro_batches * sum(seconds) / len(seconds)
    held = max(needs, key=lambda one: one.states.total)
    optimizing = 2 * held.states.optimizer + held.states.weights + held.states.gradients
    optimizing_s = optimizing / (peak_bandwidth(machine.name) or float("inf"))

    busiest = max(range(layout.stages), key=lambda stage: seconds[stage])
    traffic = communication(plan, layout, optimizer, sequence_length=sequence_length, stage=busiest, dispatcher=dispatcher)
    spent: dict[str, float] = defaultdict(float)
    for one in traffic:
        spent[one.dimension] += one.moved / bandwidth(one, layout, machine)

    least = {COMPUTE: ideal / pipeline.efficiency, BANDWIDTH: optimizing_s, **spent}
    binds = max(least, key=lambda name: least[name])
    reached = _reached(plan, vector, number_format)
    parts = {COMPUTE: ideal / reached, "bubble": ideal / reached * (1 / pipeline.efficiency - 1), "optimizer": optimizing_s}
    for dimension, exposed in EXPOSED.items():
        if spent.get(dimension):
            parts[dimension] = spent[dimension] * exposed / pipeline.efficiency
    if spent.get(DATA):
        parts[DATA] = _exposed_data(spent[DATA], optimizer, max(seconds) / reached)
    return StepTime(least[binds], binds, sum(parts.values()), parts, tuple(traffic))


def _exposed_data(spent: float, optimizer: Optimizer, micro_batch: float) -> float:
    """Gradients are reduced during the last backward pass, weights gathered during the first forward pass, where that is on."""
    hidden = micro_batch * (2 / 3 * optimizer.overlap_grad_reduce + 1 / 3 * optimizer.overlap_param_gather)
    return max(spent - hidden, 0.0)


def _formats(plan: Plan, vector: Sequence[int], number_format: str) -> dict[str, float]:
    if number_format:
        return {number_format: 1.0}
    found = plan.evaluate_formats(vector)
    return {"bf16" if name == "unknown" else name: float(flops) for name, flops in found.items()}


def peak_of(plan: Plan, vector: Sequence[int], device_name: str, number_format: str = "") -> float:
    """FLOP/s of a device on a batch, in the number formats that its matmuls run in; those of unknown format count as bf16.

    Raises:
        ConfigError: the device lacks one of them.
    """
    row = find_peak(device_name)
    rates = {} if row is None else {name: rate * 1e12 for name, rate in row.tflops.items()}
    used = _formats(plan, vector, number_format)
    peak = mixed_peak(used, {name: rates.get(name) for name in used})
    if peak is None:
        missing = ", ".join(name for name in used if name not in rates)
        raise ConfigError(f"device {device_name!r} has no {missing} peak; choose another device or number format")
    return peak


def _reached(plan: Plan, vector: Sequence[int], number_format: str) -> float:
    """The fraction of the peak, over the formats."""
    used = _formats(plan, vector, number_format)
    share = sum(REACHED.get(name, REACHED["bf16"]) * share for name, share in used.items()) / sum(used.values())
    return share * (WITH_EXPERTS if plan.model.shape.num_moe_experts else 1)


def bandwidth(traffic: Traffic, layout: Layout, machine: Machine) -> float:
    """Byte/s that one rank has for a collective: its links inside a domain, the network where ranks lie in several."""
    inside = {
        TENSOR: layout.tensor_model_parallel_size,
        CONTEXT: layout.tensor_model_parallel_size * layout.context_parallel_size,
        EXPERT: layout.expert_tensor * layout.expert_model_parallel_size,
        DATA: layout.devices // layout.stages,
        PIPELINE: layout.devices,
    }[traffic.dimension]
    link, network = machine.link * 1e9, machine.network * 1e9
    if inside <= machine.domain:
        return link
    if traffic.operation == "all_to_all":  # the part for ranks of the same domain stays on its links
        outside = 1 - machine.domain / inside
        return 1 / max(outside / network, (1 - outside) / link)
    return network
