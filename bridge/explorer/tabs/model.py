"""What a training step of a model costs: by component, by sequence length, by pipeline stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from bridge.config import Config, ConfigError, validate_layout
from bridge.config.named import DEFAULT_LENGTH
from bridge.explorer import figures
from bridge.explorer.controls import LONGEST_LENGTH, Select, Slider, Values
from bridge.explorer.sources import Source, compiled, read
from bridge.flops.conventions import CONVENTIONS
from bridge.flops.moments import Number
from bridge.flops.plan import Plan
from bridge.flops.reading import read_layout
from bridge.planning.batches import equal_sequences
from bridge.planning.training_run import pipeline_bound
from bridge.report.view import Card, Column, Table, View, in_flop
from bridge.text import in_words, with_unit

KEY, TITLE = "model", "Model"
INTRODUCTION = "One training step of the model above: what it costs, where the work is, and when attention takes over."
CONTROLS = (
    Slider(key="length", label="Sequence length, tokens", minimum=128, maximum=LONGEST_LENGTH, step=128, default=DEFAULT_LENGTH),
    Slider(key="batch", label="Global batch size, sequences", minimum=1, maximum=4096, step=1, default=1),
    Select(
        key="convention", label="Convention", options=tuple(CONVENTIONS), default="megatron", info="How the FLOPs are counted."
    ),
)
LAYOUT = (
    Slider(key="tp", label="Tensor parallel size", minimum=1, maximum=64, step=1, default=1),
    Slider(key="pp", label="Pipeline parallel size", minimum=1, maximum=64, step=1, default=1),
    Slider(key="vpp", label="Virtual pipeline chunks a stage", minimum=1, maximum=16, step=1, default=1),
    Slider(key="first", label="Layers of the first stage", minimum=0, maximum=128, step=1, default=0, info="0: as the others."),
    Slider(key="last", label="Layers of the last stage", minimum=0, maximum=128, step=1, default=0, info="0: as the others."),
    Slider(key="cp", label="Context parallel size", minimum=1, maximum=64, step=1, default=1),
    Slider(key="ep", label="Expert parallel size", minimum=1, maximum=64, step=1, default=1),
    Slider(key="dp", label="Data parallel size", minimum=1, maximum=1024, step=1, default=1),
)
OTHER_INPUTS = (
    Slider(key="patches", label="Image patches a sequence", minimum=0, maximum=16384, step=4, default=0,
           info="One image a sequence, for models with a vision tower."),
    Slider(key="encoder", label="Encoder tokens per sequence", minimum=0, maximum=32768, step=16, default=0,
           info="For models with an encoder."),
    Slider(key="frames", label="Audio frames a sequence", minimum=0, maximum=6000, step=100, default=0,
           info="Mel frames, for models that listen."),
)  # fmt: skip
SECTIONS = {"": CONTROLS, "Parallel layout": LAYOUT, "Images, encoder, audio": OTHER_INPUTS}
NUM_FIGURES = 3

#: Lengths of the cost curve: two points per octave.
CURVE = tuple(round(2 ** (k / 2)) for k in range(2 * 8, 2 * 20 + 1))
#: Statistics of sequences that are proportional to tokens; all others count pairs of queries and keys.
_PER_TOKEN = frozenset({"count", "length", "length_plus", "length_over", "quotient"})
#: The crossover length is searched up to this many tokens.
_LONGEST = 2**27
#: (what statistics are over, the control that sets it, the note if it is 0).
_SILENT = (
    ("images", "patches", "This model takes image patches: the vision tower costs nothing here until you set some."),
    ("audio", "frames", "This model takes audio frames: the audio encoder costs nothing here until you set some."),
)


def view(source: Source, values: Values) -> View:
    """The tab's contents.

    Raises:
        ConfigError: the model, the layout or the batch is impossible.
    """
    config = with_layout(read(source), values)
    plan = compiled(source, values["convention"], values["tp"])
    length, batch = values["length"], values["batch"]
    vector = [batch * value for value in measure(plan, values)]
    flops = plan.evaluate(vector)
    components = plan.evaluate_components(vector)
    stages = stage_work(plan, config, vector)
    crossing = cross_over(plan)
    inputs = {"model": config.name, **values}
    return View(
        facts=_facts(plan, values, flops, stages, crossing),
        figures=(
            _by_pass(plan, vector, config.name),
            _by_length(plan, values, crossing),
            _by_stage(stages, values) if len(stages) > 1 else None,
        ),
        table=_table(components, flops, batch * length),
        notes=_notes(plan, config, values),
        inputs=inputs,
    )


# ---- numbers -----------------------------------------------------------------------------------------------------


def with_layout(config: Config, values: Values) -> Config:
    """The configuration with the parallel layout of the controls; ConfigError if they do not fit together."""
    sizes: dict[str, Any] = {
        "tensor_model_parallel_size": values["tp"],
        "pipeline_model_parallel_size": values["pp"],
        "virtual_pipeline_model_parallel_size": values["vpp"] if values["vpp"] > 1 else None,
        "num_layers_in_first_pipeline_stage": values["first"] or None,
        "num_layers_in_last_pipeline_stage": values["last"] or None,
        "context_parallel_size": values["cp"],
        "expert_model_parallel_size": values["ep"],
    }
    if values["vpp"] > 1 and values["pp"] == 1:
        raise ConfigError("virtual pipeline chunks need a pipeline: raise the pipeline parallel size or lower the chunks to 1")
    train = replace(config.train, global_batch_size=values["batch"], micro_batch_size=1, rampup_batch_size=None)
    result = replace(config, parallel=replace(config.parallel, **sizes), train=train)
    validate_layout(result, devices(values))
    return result


def devices(values: Values) -> int:
    """The number of devices of the layout."""
    return values["tp"] * values["pp"] * values["cp"] * values["dp"]


def measure(plan: Plan, values: Values) -> list[Number]:
    """The statistics of one sequence with its image, encoder tokens and audio, by the rules of `bridge flops`."""
    patches, encoder, frames = ([value] if value else [] for value in (values["patches"], values["encoder"], values["frames"]))
    if not encoder and not frames:
        return equal_sequences(plan, 1, values["length"], patches)
    return list(plan.measure([values["length"]], patches, encoder, frames))


def stage_work(plan: Plan, config: Config, vector: Sequence[Number]) -> list[Number]:
    """FLOPs of each pipeline stage, over all its devices."""
    return plan.evaluate_stages(vector, read_layout(config))


def micro_batches(values: Values) -> int:
    """Micro-batches per step and pipeline, of one sequence each."""
    return values["batch"] // values["dp"]


def split(plan: Plan, length: int) -> tuple[Number, Number]:
    """Training FLOPs of one sequence of text: those for pairs of queries and keys, and all others."""
    vector = plan.measure([length])
    is_pair = [s.over == "sequences" and s.kind not in _PER_TOKEN for s in plan.statistics]
    pairs = plan.evaluate([value * pair for value, pair in zip(vector, is_pair, strict=True)])
    return pairs, plan.evaluate(vector) - pairs


def cross_over(plan: Plan) -> int | None:
    """The length from which attention to the context costs as much as everything else; None if it never does."""

    def takes_over(length: int) -> bool:
        pairs, rest = split(plan, length)
        return pairs >= rest

    high = 1
    while not takes_over(high):
        high *= 2
        if high > _LONGEST:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if takes_over(middle) else (middle, high)
    return high


# ---- what is shown -----------------------------------------------------------------------------------------------


def _facts(plan: Plan, values: Values, flops: Number, stages: Sequence[Number], crossing: int | None) -> list[Card]:
    tokens = values["length"] * values["batch"]
    parameters = plan.parameters()
    pairs, rest = split(plan, values["length"])
    largest = max(stages) * Fraction(len(stages), devices(values))
    active = parameters["active"]
    facts = [
        Card("flops", "FLOPs per step", flops, with_unit(flops, "FLOP"), f"{flops:,}" if isinstance(flops, int) else ""),
        Card("flops_per_token", "FLOPs per token", Fraction(flops) / tokens, with_unit(Fraction(flops) / tokens, "FLOP"),
             f"{tokens:,} tokens per step"),
        Card("parameters", "Parameters", parameters["total"], in_words(parameters["total"]),
             "all of them active" if active == parameters["total"] else f"{in_words(active)} active"),
        Card("cross_over", "Attention takes over at", crossing, "never" if crossing is None else f"{crossing:,} tokens",
             f"{float(pairs / (pairs + rest)):.1%} of the work at {values['length']:,} tokens" if pairs + rest else ""),
    ]  # fmt: skip
    if devices(values) > 1:
        text, detail = with_unit(largest, "FLOP"), f"{devices(values):,} devices"
        facts.append(Card("flops_per_device", "FLOPs per device, at most", largest, text, detail))
    if values["pp"] > 1:
        bound = pipeline_bound(stages, micro_batches(values), values["vpp"])
        facts += [
            Card("imbalance", "Largest stage over mean", bound.imbalance, f"{bound.imbalance:.3f}", f"{values['pp']} stages"),
            Card("bubble", "Pipeline bubble, at least", bound.bubble, f"{bound.bubble:.1%}",
                 f"{bound.micro_batches} micro-batches of one sequence"),
        ]  # fmt: skip
    return facts


def _by_pass(plan: Plan, vector: Sequence[Number], name: str) -> figures.Figure:
    rows = plan.tabulate(vector)
    passes = ["forward", "dgrad", "wgrad"] + ["recompute"] * any(row.recompute for row in rows)
    parts: dict[str, list[Number]] = {}
    for row in rows:
        sums = parts.setdefault(row.component, [0] * len(passes))
        for i, flag in enumerate(passes):
            sums[i] += getattr(row, flag)
    return figures.stacked(passes, parts, f"{name}: a step by pass and component", y="FLOPs per step")


def _by_length(plan: Plan, values: Values, crossing: int | None) -> figures.Figure:
    """FLOPs per token of text by sequence length: attention to the context, everything else, and their sum."""
    points = [(length, *split(plan, length)) for length in CURVE]
    series = {
        "attention to the context": [Fraction(pairs) / length for length, pairs, _ in points],
        "everything else": [Fraction(rest) / length for length, _, rest in points],
        "together": [Fraction(pairs + rest) / length for length, pairs, rest in points],
    }
    shown = {name: numbers for name, numbers in series.items() if any(numbers)}
    figure = figures.lines(
        CURVE,
        shown,
        "Cost of a token of text by sequence length",
        xlabel="sequence length, tokens",
        y="FLOPs per token",
        unit="FLOP",
    )
    figures.log_axis(figure, powers_of_two=(CURVE[0], CURVE[-1]))
    figures.log_axis(figure, axis="y")
    figures.mark(figure, values["length"], "now", log=True)
    if crossing is not None and CURVE[0] <= crossing <= CURVE[-1]:
        figures.mark(figure, crossing, "attention takes over", log=True, colour="#b91c1c", dash="dash", low=True)
    return figure


def _by_stage(stages: Sequence[Number], values: Values) -> figures.Figure:
    share = Fraction(len(stages), devices(values))
    work = [stage * share for stage in stages]
    names, parts = [str(i) for i in range(len(stages))], {"forward and backward": work}
    figure = figures.stacked(names, parts, "Work of a device by pipeline stage", y="FLOPs per step", totals=False)
    if len(stages) <= 8:  # there is room
        figure.update_traces(text=[with_unit(value, "FLOP") for value in work], textposition="inside", insidetextanchor="middle")
    mean = float(sum(work)) / len(work)
    figure.update_xaxes(title={"text": "pipeline stage"})
    figure.add_hline(
        y=mean, line={"color": figures.INK, "width": 1.5, "dash": "dot"}, annotation_text="mean", annotation_position="top left"
    )
    figure.update_layout(showlegend=False)
    return figure


def _table(components: dict[str, Number], flops: Number, tokens: int) -> Table:
    columns = (
        Column("component", "Component", figures.words),
        Column("flops", "FLOPs per step", in_flop),
        Column("flops_per_token", "FLOPs per token", in_flop),
        Column("share", "Share", lambda value: f"{float(value):.1%}"),
    )
    rows = [
        (name, value, Fraction(value) / tokens, Fraction(value) / Fraction(flops) if flops else 0)
        for name, value in components.items()
    ]
    return Table(columns, rows, "A training step by component")


def _notes(plan: Plan, config: Config, values: Values) -> list[str]:
    sentences = [f"Not counted: {sentence}" for sentence in plan.not_counted]
    over = {statistic.over for statistic in plan.statistics}
    sentences += [text for kind, key, text in _SILENT if kind in over and not values[key]]
    if "encoder" in over and not values["encoder"] and not values["frames"]:
        sentences.append("This model has an encoder, which costs nothing here until you set its tokens.")
    longest = config.model.seq_length
    if longest and values["length"] > longest:
        sentences.append(f"The model's own configuration says sequences of {longest:,} tokens.")
    return sentences
