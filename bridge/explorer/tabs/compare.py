"""Models, and ways of counting, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from bridge.config.named import DEFAULT_LENGTH
from bridge.explorer import figures
from bridge.explorer.controls import LONGEST_LENGTH, Choices, Select, Slider, Values
from bridge.explorer.sources import OWN_MODEL, Source, compiled, model_names
from bridge.flops import ConfigError
from bridge.flops.conventions import CONVENTIONS
from bridge.flops.moments import Number
from bridge.flops.plan import Plan
from bridge.planning.batches import equal_sequences
from bridge.report.view import Card, Column, Table, View, in_flop
from bridge.text import in_words, with_unit

KEY, TITLE = "compare", "Compare"
INTRODUCTION = "Models or conventions side by side, for one token of text. Each bar is one model counted in one convention."
CONTROLS = (
    Choices(
        key="models",
        label="Models",
        options=(OWN_MODEL, *model_names()),
        default=("llama3-8b", "qwen3-8b", "qwen3-30b-a3b"),
        most=8,
    ),
    Choices(key="conventions", label="Conventions", options=tuple(CONVENTIONS), default=("megatron",), buttons=True),
    Slider(key="length", label="Sequence length, tokens", minimum=128, maximum=LONGEST_LENGTH, step=128, default=DEFAULT_LENGTH),
    Select(key="passes", label="Passes", options=("training", "forward"), default="training", buttons=True),
)
SECTIONS = {"": CONTROLS}
NUM_FIGURES = 2

_LENGTHS = tuple(2**k for k in range(8, 21))


@dataclass(frozen=True)
class _Entry:
    model: str
    convention: str
    label: str
    plan: Plan


def view(source: Source, values: Values) -> View:
    """The tab's contents; ConfigError if nothing is picked or a model cannot be read."""
    entries = _entries(source, values)
    length, passes = values["length"], values["passes"]
    vectors = [equal_sequences(entry.plan, 1, length) for entry in entries]
    flops = [entry.plan.evaluate(vector, passes) for entry, vector in zip(entries, vectors, strict=True)]
    parts: dict[str, list[Number]] = {}
    for i, entry in enumerate(entries):
        for component, work in entry.plan.evaluate_components(vectors[i], passes).items():
            if work:
                parts.setdefault(component, [0] * len(entries))[i] = Fraction(work) / length
    least, most = (choose(range(len(entries)), key=lambda i: flops[i]) for choose in (min, max))
    ratio = Fraction(flops[most]) / Fraction(flops[least] or 1)
    cheap, dear = Fraction(flops[least]) / length, Fraction(flops[most]) / length
    labels = [entry.label for entry in entries]
    return View(
        facts=[
            Card("least", "Cheapest token", cheap, with_unit(cheap, "FLOP"), labels[least]),
            Card("most", "Dearest token", dear, with_unit(dear, "FLOP"), labels[most]),
            Card("ratio", "Dearest over cheapest", ratio, f"{float(ratio):.3g}", f"{passes}, {length:,} tokens per sequence"),
        ],
        figures=(
            figures.stacked(labels, parts, f"A token at length {length:,}, {passes}", y="FLOPs per token", horizontal=True),
            _by_length(entries, passes, length),
        ),
        table=_table(entries, flops, length),
        notes=_notes(entries),
        inputs=dict(values),
    )


def _entries(source: Source, values: Values) -> list[_Entry]:
    if not values["models"] or not values["conventions"]:
        raise ConfigError("pick at least one model and one convention")
    if OWN_MODEL in values["models"] and not source.config.strip():
        raise ConfigError("paste or drop a config.json above to compare it, or take it out of the list")
    entries = []
    for model in values["models"]:
        chosen = source if model == OWN_MODEL else Source(model)
        for convention in values["conventions"]:
            label = chosen.name if len(values["conventions"]) == 1 else f"{chosen.name}, {convention}"
            entries.append(_Entry(chosen.name, convention, label, compiled(chosen, convention)))
    return entries


def _by_length(entries: list[_Entry], passes: str, now: int) -> figures.Figure:
    series = {
        entry.label: [Fraction(entry.plan.flops([length], passes=passes)) / length for length in _LENGTHS] for entry in entries
    }
    figure = figures.lines(
        _LENGTHS, series, "Cost of a token by sequence length", xlabel="sequence length, tokens", y="FLOPs per token", unit="FLOP"
    )
    figures.log_axis(figure, powers_of_two=(_LENGTHS[0], _LENGTHS[-1]))
    figures.log_axis(figure, axis="y")
    figures.mark(figure, now, "now", log=True)
    return figure


def _table(entries: list[_Entry], flops: list[Number], length: int) -> Table:
    columns = (
        Column("model", "Model"),
        Column("convention", "Convention"),
        Column("parameters", "Parameters", in_words),
        Column("active", "Active", in_words),
        Column("flops_per_token", "FLOPs per token", in_flop),
        Column("flops_per_sequence", "FLOPs per sequence", in_flop),
        Column("relative", "Over the first", lambda value: f"{float(value):.3f}"),
    )
    rows = []
    for entry, work in zip(entries, flops, strict=True):
        parameters = entry.plan.parameters()
        relative = Fraction(work) / Fraction(flops[0]) if flops[0] else 0
        rows.append(
            (entry.model, entry.convention, parameters["total"], parameters["active"], Fraction(work) / length, work, relative)
        )
    return Table(columns, rows, "One sequence of text")


def _notes(entries: list[_Entry]) -> list[str]:
    sentences = [f"{entry.model}, not counted: {sentence}" for entry in entries for sentence in entry.plan.not_counted]
    if len({entry.convention for entry in entries}) > 1:
        sentences.append("Numbers of different conventions are different measures: compare models within one.")
    return list(dict.fromkeys(sentences))
