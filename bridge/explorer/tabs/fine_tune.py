"""What fine-tuning costs if only a part of the model trains, compared with full training and with 6ND."""

from __future__ import annotations

import fnmatch
from fractions import Fraction
from typing import Any

from bridge.explorer import figures
from bridge.explorer.controls import Choices, Select, Slider, Values
from bridge.explorer.sources import Source, Training, compiled, read
from bridge.flops import ConfigError
from bridge.flops.conventions import CONVENTIONS
from bridge.flops.moments import Number
from bridge.flops.plan import Plan
from bridge.flops.transforms import ADAPTERS
from bridge.planning.states import state_bytes
from bridge.report.view import Card, Column, Table, View, in_flop
from bridge.text import in_words, with_unit

KEY, TITLE = "finetune", "Fine-tune"
INTRODUCTION = (
    "Frozen weights need no weight gradients, and what lies below everything that trains needs no backward pass at all. "
    "The rule of thumb 6ND (six FLOPs per parameter and token) knows neither, nor attention."
)
#: What LoRA can adapt: the name on the page -> megatron-core's names.
TARGETS = {
    "linear_qkv": ("linear_qkv", "linear_q_*", "linear_kv_*"),
    "linear_proj": ("linear_proj",),
    "linear_fc1": ("linear_fc1",),
    "linear_fc2": ("linear_fc2",),
    "in_proj, out_proj": ("in_proj", "out_proj"),
}
#: What can be frozen: the name on the page -> module paths.
PARTS = {
    "embedding": ("embedding",),
    "output layer": ("output_layer",),
    "vision tower": ("vision_model.patch_embed", "vision_model.pos_embed", "vision_model.decoder", "vision_model.post_layernorm"),
    "language model": ("embedding", "decoder", "output_layer", "mtp"),
}
#: Methods with adapters: the name on the page -> the configuration's ``peft.kind``.
KINDS = {"LoRA": "lora", "QLoRA": "qlora"}
CONTROLS = (
    Select(
        key="method",
        label="Method",
        options=(*KINDS, "freeze parts"),
        default="LoRA",
        buttons=True,
        info="QLoRA computes what LoRA does, on frozen weights that are stored in four bits.",
    ),
    Slider(key="length", label="Sequence length, tokens", minimum=128, maximum=131072, step=128, default=4096),
    Select(key="convention", label="Convention", options=tuple(CONVENTIONS), default="exact"),
)
LORA = (
    Slider(key="rank", label="LoRA rank", minimum=1, maximum=512, step=1, default=16),
    Choices(
        key="targets",
        label="Layers with an adapter",
        options=tuple(TARGETS),
        buttons=True,
        default=("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"),
    ),
)
FREEZE = (
    Slider(key="layers", label="Frozen layers, from the first", minimum=0, maximum=128, step=1, default=16),
    Choices(key="parts", label="Frozen parts", options=tuple(PARTS), default=("embedding",), buttons=True),
    Slider(key="patches", label="Image patches a sequence", minimum=0, maximum=16384, step=4, default=0),
)
SECTIONS = {"": CONTROLS, "LoRA": LORA, "Frozen parts": FREEZE}
NUM_FIGURES = 2

FLOPS_PER_PARAMETER = 6
_RANKS = tuple(2**k for k in range(10))
_FLAGS = ("forward", "dgrad", "wgrad")
_SHARE: dict[str, Any] = {"y": "of full training", "markers": True, "tickformat": ".0%"}


def training(source: Source, values: Values) -> Training:
    """What trains according to the controls; a button for several layers means those that the model has."""
    if values["method"] in KINDS:
        had = {row.name for row in compiled(source, values["convention"]).table([1])}
        names = [name for target in values["targets"] for name in TARGETS[target]]
        targets = tuple(name for name in names if fnmatch.filter(had, name)) or tuple(names)
        if not targets:
            raise ConfigError("pick at least one layer that gets an adapter")
        return Training(rank=values["rank"], targets=targets, kind=KINDS[values["method"]])
    layers = tuple(f"decoder.layers.{i}" for i in range(values["layers"]))
    return Training(freeze=layers + tuple(path for part in values["parts"] for path in PARTS[part]))


def view(source: Source, values: Values) -> View:
    """The tab's contents; ConfigError if the model has none of the picked layers."""
    name, length, images = read(source).name, values["length"], _images(values)
    full = compiled(source, values["convention"])
    part = compiled(source, values["convention"], 1, training(source, values))
    rule = FLOPS_PER_PARAMETER * full.parameters()["active"] * length
    label = f"{values['method']} rank {values['rank']}" if values["method"] in KINDS else "frozen parts"
    bars = {
        "6ND": {"6ND": rule},
        "full training": _passes(full, length, images),
        label: _passes(part, length, images),
    }
    works = {bar: sum(parts.values()) for bar, parts in bars.items()}
    return View(
        facts=_facts(full, part, works, label, length, images),
        figures=(
            _bars(bars, name, length),
            _by_rank(part, values, images, works["full training"]) if values["method"] in KINDS else _by_layers(source, values),
        ),
        table=_table(bars, works, length),
        notes=[f"Not counted: {sentence}" for sentence in part.not_counted],
        inputs={"model": name, **values},
    )


def _images(values: Values) -> list[int]:
    """The patches of each image in a sequence: one image or none."""
    return [values["patches"]] if values["patches"] else []


def _passes(plan: Plan, length: int, images: list[int]) -> dict[str, Number]:
    """Training FLOPs of one sequence by pass."""
    rows = plan.table([length], images)
    return {flag: sum(getattr(row, flag) for row in rows) for flag in _FLAGS}


def _facts(full: Plan, part: Plan, works: dict[str, Number], label: str, length: int, images: list[int]) -> list[Card]:
    parameters = part.parameters()
    trainable = parameters["trainable"]
    work = works[label]
    shares = {name: Fraction(work) / Fraction(works[name]) for name in ("full training", "6ND")}
    adapters = part.breakdown([length], images).get(ADAPTERS, 0)
    return [
        Card("flops_per_token", "FLOPs per token", Fraction(work) / length, with_unit(Fraction(work) / length, "FLOP"), label),
        Card("of_full", "Of full training", shares["full training"], f"{float(shares['full training']):.1%}",
             f"{with_unit(Fraction(works['full training']) / length, 'FLOP')} per token"),
        Card("of_rule", "Of 6ND", shares["6ND"], f"{float(shares['6ND']):.1%}",
             f"N = {in_words(full.parameters()['active'])} active parameters"),
        Card("trainable", "Trainable parameters", trainable, in_words(trainable),
             f"{trainable / (parameters['total'] or 1):.3%} of {in_words(parameters['total'])}"),
        Card("adapters", "Adapters", Fraction(adapters) / length, with_unit(Fraction(adapters) / length, "FLOP"),
             f"{float(Fraction(adapters) / Fraction(work or 1)):.2%} of the work"),
        Card("state_bytes", "Weights, gradients, Adam", state_bytes(part), with_unit(state_bytes(part), "B"),
             f"{with_unit(state_bytes(full), 'B')} to train all"),
    ]  # fmt: skip


def _bars(bars: dict[str, dict[str, Number]], name: str, length: int) -> figures.Figure:
    parts = {part: [Fraction(bar.get(part, 0)) / length for bar in bars.values()] for part in ("6ND", *_FLAGS)}
    return figures.stacked(list(bars), parts, f"{name}: a token by pass, length {length:,}", y="FLOPs per token")


def by_rank(part: Plan, rank: int, length: int, images: list[int]) -> dict[int, Number]:
    """Training FLOPs for other ranks: those of the adapters are proportional to the rank, the rest stays the same."""
    vector = part.measure([length], images)
    adapters = part.evaluate_components(vector)[ADAPTERS]
    rest = part.evaluate(vector) - adapters
    return {other: rest + Fraction(adapters) * other / rank for other in _RANKS}


def _by_rank(part: Plan, values: Values, images: list[int], full: Number) -> figures.Figure:
    works = by_rank(part, values["rank"], values["length"], images)
    shares = [Fraction(work) / Fraction(full) for work in works.values()]
    series = {f"{values['method']} over full training": shares}
    figure = figures.lines(_RANKS, series, "Cost by rank", xlabel="rank", **_SHARE)
    figures.log_axis(figure, powers_of_two=(_RANKS[0], _RANKS[-1]))
    figures.mark(figure, values["rank"], "now", log=True)
    return figure


def _by_layers(source: Source, values: Values) -> figures.Figure:
    """The cost with the same frozen parts and fewer or more frozen layers."""
    layers = read(source).model.num_layers or 0
    steps = sorted({round(layers * i / 8) for i in range(9)})
    images = _images(values)
    full = compiled(source, values["convention"]).flops([values["length"]], images)
    shares = []
    for count in steps:
        plan = compiled(source, values["convention"], 1, training(source, {**values, "layers": count}))
        shares.append(Fraction(plan.flops([values["length"]], images)) / Fraction(full))
    series = {"frozen over full training": shares}
    figure = figures.lines(steps, series, "Cost by frozen layers", xlabel="frozen layers, from the first", **_SHARE)
    figures.mark(figure, min(values["layers"], layers), "now")
    return figure


def _table(bars: dict[str, dict[str, Number]], works: dict[str, Number], length: int) -> Table:
    columns = (
        Column("case", "Case"),
        *(Column(flag, flag, in_flop) for flag in _FLAGS),
        Column("flops_per_token", "FLOPs per token", in_flop),
        Column("of_full", "Of full training", lambda value: f"{float(value):.1%}"),
    )
    rows = [
        (
            case,
            *(Fraction(parts[flag]) / length if flag in parts else None for flag in _FLAGS),
            Fraction(works[case]) / length,
            Fraction(works[case]) / Fraction(works["full training"]),
        )
        for case, parts in bars.items()
    ]
    return Table(columns, rows, "A token by pass")
