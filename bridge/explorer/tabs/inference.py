"""A request on a device: time to first token, tokens per second, and their place under the roofline."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import plotly.graph_objects as go

from bridge import hardware
from bridge.explorer import figures
from bridge.explorer.controls import Select, Slider, Toggle, Values
from bridge.explorer.sources import Source, read
from bridge.flops import ConfigError
from bridge.planning.inference import Generation, InferencePlan, MemoryTraffic, Roofline, prefill_and_decode
from bridge.report.colours import COLOURS
from bridge.report.view import Card, Column, Table, View, in_bytes, in_flop
from bridge.text import seconds, significant, with_unit

KEY, TITLE = "inference", "Inference"
INTRODUCTION = "The shortest time a device allows: every pass takes as long as its FLOPs or its bytes, whichever is longer."
#: Name on the page -> device, for devices whose peak and bandwidth are both known.
DEVICES = {
    peak.words.upper(): peak for peak in hardware.PEAKS if peak.bandwidth is not None and {"bf16", "fp16"} & set(peak.tflops)
}
BYTES = {"16 bit": 2.0, "8 bit": 1.0, "4 bit": 0.5}
CONTROLS = (
    Slider(key="prompt", label="Prompt, tokens", minimum=1, maximum=32768, step=1, default=900),
    Slider(key="generate", label="Generated tokens", minimum=1, maximum=1024, step=1, default=294),
    Slider(key="batch", label="Requests at a time", minimum=1, maximum=512, step=1, default=1),
    Toggle(key="cache", label="KV cache", default=True, info="Without it every token runs everything before it again."),
)
MACHINE = (
    Select(key="device", label="Device", options=tuple(DEVICES), default="H100"),
    Slider(key="devices", label="Devices that share every pass", minimum=1, maximum=64, step=1, default=1),
    Select(
        key="format", label="Number format of the matmuls", options=("bf16", "fp16", "fp8", "fp4"), default="bf16", buttons=True
    ),
    Select(key="weights", label="Weights in memory", options=tuple(BYTES), default="16 bit", buttons=True),
    Select(key="kv", label="KV cache in memory", options=tuple(BYTES), default="16 bit", buttons=True),
)
COUNTING = (
    Select(key="convention", label="Convention", options=("exact", "executed"), default="exact", buttons=True),
    Toggle(key="last", label="Logits of the last prompt token only", default=False, info="What engines do."),
)
SECTIONS = {"": CONTROLS, "Device": MACHINE, "Counting": COUNTING}
NUM_FIGURES = 2

_BATCHES = tuple(2**k for k in range(10))


@dataclass(frozen=True)
class DecodeStep:
    """One decode step in the middle of the answer.

    Attributes:
        batch: the number of requests that share it.
        flops, size: its FLOPs, and the bytes that it moves.
        seconds: its shortest time.
    """

    batch: int
    flops: float
    size: float
    seconds: float


def view(source: Source, values: Values) -> View:
    """The tab's contents; ConfigError if the model does not generate or the device lacks the number format."""
    peak, rate = rates(values)
    request = generation(source, values)
    bound = request.roofline(values["device"], values["format"], values["devices"])
    steps = sweep(source, values, peak, rate) if values["cache"] else []
    name = read(source).name
    return View(
        facts=_facts(request, bound, values),
        figures=(_roofline(request, steps, values, peak, rate, name), _by_batch(steps)),
        table=_table(request, bound, peak, rate),
        notes=_notes(request, bound),
        inputs={"model": name, **values},
    )


# ---- numbers -----------------------------------------------------------------------------------------------------


def rates(values: Values) -> tuple[float, float]:
    """Peak in FLOP/s and bandwidth in bytes/s of all devices together."""
    peak = hardware.peak_flops(values["device"], values["format"])
    rate = hardware.peak_bandwidth(values["device"])
    if peak is None or rate is None:
        known = ", ".join(DEVICES[values["device"]].tflops)
        raise ConfigError(f"the {values['device']} has no {values['format']} matmuls; it has {known}")
    return peak * values["devices"], rate * values["devices"]


def memory(values: Values) -> MemoryTraffic:
    """Bytes per number of the weights and of the cache."""
    return MemoryTraffic(weight=BYTES[values["weights"]], cache=BYTES[values["kv"]])


def generation(source: Source, values: Values) -> Generation:
    """The request that the controls describe."""
    return prefill_and_decode(
        read(source),
        values["prompt"],
        values["generate"],
        values["cache"],
        batch_size=values["batch"],
        convention=values["convention"],
        logits_to_keep=1 if values["last"] else 0,
        memory=memory(values),
    )


@lru_cache(maxsize=32)
def _plan(source: Source, convention: str) -> InferencePlan:
    return InferencePlan(read(source), convention)


def sweep(source: Source, values: Values, peak: float, rate: float) -> list[DecodeStep]:
    """The middle decode step for many batch sizes; all requests of a batch share one read of the weights."""
    plan, sizes = _plan(source, values["convention"]), memory(values)
    position = values["prompt"] + max(values["generate"] // 2, 1)
    flops = float(plan.decode(position - 1))
    cache = plan.step_cache_bytes(position, sizes)
    steps = []
    for batch in sorted({*_BATCHES, values["batch"]}):
        size = sizes.weight * plan.weight_entries(batch, images=False) + batch * cache
        steps.append(DecodeStep(batch, batch * flops, size, max(batch * flops / peak, size / rate)))
    return steps


# ---- what is shown -----------------------------------------------------------------------------------------------


def _facts(request: Generation, bound: Roofline, values: Values) -> list[Card]:
    speed, first, mfu, mbu = bound.tokens_per_second, bound.time_to_first_token, bound.mfu, bound.mbu
    return [
        Card("time_to_first_token", "Time to first token, at best", first, seconds(first),
             f"bound by {_limit(bound.prefill_bound)}"),
        Card("tokens_per_second", "Tokens per second, at most", speed, "none" if speed is None else significant(speed),
             "no step after the first token" if speed is None
             else f"{significant(speed / values['batch'])} a request, bound by {_limit(bound.decode_bound)}"),
        Card("total_time", "The whole request", bound.total_time, seconds(bound.total_time), f"{values['batch']} at a time"),
        Card("flops", "FLOPs", request.total, with_unit(request.total, "FLOP"), f"prefill {with_unit(request.prefill, 'FLOP')}"),
        Card("mfu", "MFU, at most", mfu[-1], f"{mfu[-1]:.1%}", f"prefill {mfu[0]:.1%}, decode {mfu[1]:.2%}"),
        Card("mbu", "MBU, at most", mbu[-1], f"{mbu[-1]:.1%}", f"prefill {mbu[0]:.1%}, decode {mbu[1]:.1%}"),
        Card("weight_bytes", "Weights", request.weight_bytes, with_unit(request.weight_bytes, "B"),
             f"{with_unit(request.weight_bytes / values['devices'], 'B')} a device"),
        Card("cache_bytes", "KV cache at the end", request.cache_bytes, with_unit(request.cache_bytes, "B"),
             f"{with_unit(request.cache_bytes / values['batch'], 'B')} a request"),
    ]  # fmt: skip


def _limit(bound: str) -> str:
    return {"compute": "the peak", "memory": "the bandwidth"}[bound]


def _roofline(
    request: Generation, steps: list[DecodeStep], values: Values, peak: float, rate: float, name: str
) -> figures.Figure:
    ridge = peak / rate
    points = [("prefill", request.prefill / request.prefill_bytes)]
    if request.steps:
        points.append(("decode", float(request.decode) / request.decode_bytes))
    intensities = [float(x) for _, x in points] + [step.flops / step.size for step in steps] + [ridge]
    low, high = min(intensities) / 4, max(intensities) * 8
    xs = [low, ridge, high]
    figure = go.Figure()
    figure.add_scatter(
        x=xs, y=[min(x * rate, peak) for x in xs], mode="lines", name="roofline", line={"color": figures.INK, "width": 2.5},
        hoverinfo="skip",
    )  # fmt: skip
    if steps:
        figure.add_scatter(
            x=[step.flops / step.size for step in steps], y=[step.flops / step.seconds for step in steps],
            mode="lines+markers", name="decode, 1 to 512 requests", text=[f"{step.batch} requests" for step in steps],
            line={"color": COLOURS["core_attention"], "width": 1}, marker={"size": 7},
            hovertemplate="%{text}<br>%{x:.3g} FLOP/B<br>%{y:.3s}FLOP/s<extra>decode</extra>",
        )  # fmt: skip
    for (label, x), colour in zip(points, ("#0072b2", "#d55e00"), strict=False):
        figure.add_scatter(
            x=[float(x)], y=[min(float(x) * rate, peak)], mode="markers", name=f"{label}, now",
            marker={"size": 14, "color": colour, "symbol": "diamond", "line": {"color": "white", "width": 1.5}},
            hovertemplate="%{x:.3g} FLOP/B<br>%{y:.3s}FLOP/s<extra>" + label + "</extra>",
        )  # fmt: skip
    title = f"{name} on {values['devices']} x {values['device']}"
    figures.styled(figure, title, x="arithmetic intensity, FLOP per byte", y="FLOP/s, at most")
    figure.update_xaxes(type="log", dtick=1)
    figure.update_yaxes(type="log", tickformat="~s", dtick=1)
    figures.mark(figure, ridge, f"{ridge:.0f} FLOP/B", log=True, low=True)
    return figure


def _by_batch(steps: list[DecodeStep]) -> figures.Figure:
    series = {
        "all requests": [step.batch / step.seconds for step in steps],
        "each request": [1 / step.seconds for step in steps],
    }
    figure = figures.lines(
        [step.batch for step in steps],
        series,
        "Decode speed by batch",
        xlabel="requests at a time",
        y="tokens per second, at most",
        markers=True,
    )
    figures.log_axis(figure, powers_of_two=(1, 512))
    figures.log_axis(figure, axis="y")
    if not steps:
        figure.add_annotation(text="needs a KV cache", x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    return figure


def _table(request: Generation, bound: Roofline, peak: float, rate: float) -> Table:
    columns = (
        Column("phase", "Phase"),
        Column("passes", "Passes"),
        Column("flops", "FLOPs", in_flop),
        Column("bytes", "Bytes", in_bytes),
        Column("intensity", "FLOP per byte", significant),
        Column("seconds", "Time", seconds),
        Column("mfu", "MFU", lambda value: f"{value:.2%}"),
        Column("mbu", "MBU", lambda value: f"{value:.2%}"),
    )
    phases = (
        ("prefill", 1, request.prefill, request.prefill_bytes, bound.time_to_first_token),
        ("decode", len(request.steps), request.decode, request.decode_bytes, bound.decode_time),
        ("request", 1 + len(request.steps), request.total, request.prefill_bytes + request.decode_bytes, bound.total_time),
    )
    rows = [
        (phase, passes, flops, size, float(flops) / size if size else None, seconds, mfu, mbu)
        for (phase, passes, flops, size, seconds), mfu, mbu in zip(phases, bound.mfu, bound.mbu, strict=True)
    ]
    return Table(columns, rows, "Prefill and decode")


def _notes(request: Generation, bound: Roofline) -> list[str]:
    sentences = [f"Not counted: {sentence}" for sentence in request.not_counted]
    if not request.kv_cache:
        sentences.append("Without a KV cache there is no decode step: every token is a pass over everything before it.")
    return [*sentences, "Bounds, not forecasts: no launch, network or kernel loses any time here."]
