"""One layout of a training run: what its ranks hold and send each other, and the shortest time of a step."""

from __future__ import annotations

from dataclasses import dataclass

from bridge.explorer import figures
from bridge.explorer.controls import Select, Slider, Values
from bridge.explorer.sources import Source, compiled
from bridge.flops.pipeline import PipelineLayout
from bridge.planning.layouts import Layout
from bridge.planning.machines import MACHINES, Machine, known_machine
from bridge.planning.memory import USABLE, Memory, fullest, memory
from bridge.planning.search import OPTIMIZER
from bridge.planning.step_time import StepTime, step_time
from bridge.report.view import Card, Column, Table, View, in_bytes
from bridge.text import gib, seconds

KEY, TITLE = "plan", "Plan"
INTRODUCTION = (
    "One layout: the memory of the fullest rank of each pipeline stage, what collectives carry, and the time of a step. The "
    "command bridge plan tries all layouts and ranks those that fit."
)
_SIZES = tuple(str(2**exponent) for exponent in range(11))
_CLUSTER = (
    Select(key="device", label="Device", options=tuple(machine.name for machine in MACHINES), default="h100"),
    Select(key="devices", label="Devices", options=_SIZES, default="8"),
    Slider(key="length", label="Sequence length, tokens", minimum=1024, maximum=131072, step=1024, default=8192),
    Slider(key="batch", label="Sequences per step", minimum=1, maximum=8192, step=1, default=128),
    Slider(key="micro_batch", label="Sequences per micro-batch", minimum=1, maximum=16, step=1, default=1),
)
_LAYOUT = (
    Select(key="tp", label="Tensor parallel", options=_SIZES[:5], default="2", buttons=True),
    Select(key="pp", label="Pipeline stages", options=_SIZES[:6], default="1", buttons=True),
    Select(key="cp", label="Context parallel", options=_SIZES[:5], default="1", buttons=True),
    Select(key="ep", label="Expert parallel", options=_SIZES[:8], default="1", buttons=True),
)
SECTIONS = {"": _CLUSTER, "Layout": _LAYOUT}
NUM_FIGURES = 2


@dataclass(frozen=True)
class _Planned:
    layout: Layout
    machine: Machine
    needs: tuple[Memory, ...]
    time: StepTime
    length: int

    @property
    def fullest(self) -> Memory:
        return fullest(self.needs)


def view(source: Source, values: Values) -> View:
    """The tab's contents; ConfigError if the sizes do not fit together."""
    planned = _planned(source, values)
    most, time, layout = planned.fullest, planned.time, planned.layout
    usable = USABLE * planned.machine.capacity
    speed = planned.length * (layout.global_batch_size or 1) / layout.devices / time.estimate
    verdict = f"{'fits' if most.total <= usable else 'does not fit'} in {gib(usable)}, stage {most.stage}"
    return View(
        facts=[
            Card("bytes", "Fullest rank", most.total, gib(most.total), verdict),
            Card("bound", "A step takes at least", time.bound, seconds(time.bound), f"bound by {time.binds}"),
            Card("estimate", "Estimate", time.estimate, seconds(time.estimate), f"{speed:,.0f} tokens/s per device"),
            Card("micro_batches", "Micro-batches", layout.micro_batches, f"{layout.micro_batches:,}", str(layout)),
        ],
        figures=(_memory(planned), _time(planned)),
        table=_table(planned),
        notes=[*most.unknown, "Activations are those of Transformer Engine in bf16, with the distributed optimizer."],
        inputs=dict(values),
    )


def _planned(source: Source, values: Values) -> _Planned:
    plan, length = compiled(source, "megatron"), int(values["length"])
    tensor, experts = int(values["tp"]), plan.model.shape.num_moe_experts
    layout = Layout(
        devices=int(values["devices"]),
        tensor_model_parallel_size=tensor,
        sequence_parallel=tensor > 1,
        context_parallel_size=int(values["cp"]),
        expert_model_parallel_size=int(values["ep"]),
        expert_tensor_parallel_size=1 if experts else None,
        pipeline=PipelineLayout(pipeline_model_parallel_size=int(values["pp"])),
        micro_batch_size=int(values["micro_batch"]),
        global_batch_size=int(values["batch"]),
    )
    machine = known_machine(values["device"])
    needs = memory(plan, layout, OPTIMIZER, sequence_length=length)
    return _Planned(layout, machine, needs, step_time(plan, layout, OPTIMIZER, machine, needs, sequence_length=length), length)


def _memory(planned: _Planned) -> figures.Figure:
    stages = [f"stage {one.stage}" for one in planned.needs]
    parts = {name: [one.parts[name] for one in planned.needs] for name in planned.needs[0].parts}
    figure = figures.stacked(stages, parts, "Memory of the fullest rank", y="bytes", unit="B")
    usable = USABLE * planned.machine.capacity
    figure.add_hline(
        y=usable,
        line={"color": figures.INK, "width": 1.5, "dash": "dot"},
        annotation_text="usable",
        annotation_position="top right",
    )
    figure.update_yaxes(range=[0, 1.12 * max(usable, planned.fullest.total)])
    return figure


def _time(planned: _Planned) -> figures.Figure:
    parts = {name: (seconds,) for name, seconds in planned.time.parts.items()}
    return figures.stacked(["estimate"], parts, "Where the time of a step goes", y="seconds", unit="s", horizontal=True)


def _table(planned: _Planned) -> Table:
    columns = (
        Column("dimension", "Dimension"),
        Column("operation", "Collective", figures.words),
        Column("ranks", "Ranks"),
        Column("bytes", "Bytes per step", in_bytes),
        Column("moved", "Over a link", in_bytes),
    )
    rows = [(one.dimension, one.operation, one.ranks, one.bytes, one.moved) for one in planned.time.traffic]
    return Table(columns, rows, "What a rank of the busiest stage carries in a step")
