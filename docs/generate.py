"""Write the generated tables of docs/: `python docs/generate.py`, or `--check` to only compare.

The text between `<!-- generated: NAME -->` and `<!-- end -->` is the result of the function NAME of this file.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import re
import sys
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import cache, reduce
from pathlib import Path
from typing import Any

import published_rows

from bridge.cli.console import JSON_VERSION
from bridge.cli.flops_memory import held
from bridge.cli.main import main
from bridge.config import load_recipe
from bridge.config.sources.huggingface_quantisation import STORED, UNLESS
from bridge.flops import compile_plan
from bridge.flops.conventions import CONVENTIONS
from bridge.flops.formats import NEWER, RECIPES, Recipe
from bridge.flops.terms import Context, Kind
from bridge.hardware import PEAKS
from bridge.metrics.facts import FACTS
from bridge.metrics.goodput import PARTS as JOB_PARTS
from bridge.metrics.keys import THROUGHPUT, TRAINING, Key
from bridge.metrics.time_parts import PARTS as TIME_PARTS
from bridge.metrics.why import REMEDIES
from bridge.planning.check import Check, check
from bridge.planning.other_counters import COUNTERS, Counter
from bridge.planning.quantities import spread
from bridge.planning.typical import TYPICAL
from bridge.text import percent, with_unit

DOCS = Path(__file__).parent
MODELS = sorted(path.stem for path in (DOCS.parent / "recipes" / "models").glob("*.yaml"))
TRAINED = sorted(path.stem for path in (DOCS.parent / "recipes").glob("*.yaml"))
SIDE_BY_SIDE = ("llama3-8b", "gemma3-4b", "llama4-scout-17b-16e", "gpt-oss-20b", "deepseek-v3-mtp", "deepseek-v3.2",
                "qwen3-next-80b-a3b", "nemotron-h-8b", "qwen2.5-vl-7b")  # fmt: skip
LENGTH = 8192
SQUARE_MODELS, SQUARE_LENGTHS = ("llama3-8b", "gemma3-4b", "gpt-oss-20b"), (8192, 32768, 131072)


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    lines = [list(header), *([str(cell) for cell in row] for row in rows)]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([text[0], "|" + " --- |" * len(lines[0]), *text[1:]])


def contexts() -> str:
    """How many query-key pairs each convention sees in an attention context."""
    sizes = {"window": (1024,), "prefix_window": (128,), "topk": (2048,), "chunk": (8192,), "bidirectional_chunk": (64,),
             "compressed": (128,), "compressed_indexer": (4,), "compressed_topk": (4, 512), "indexer": (2048,),
             "bidirectional_plus": (1,), "bidirectional_strided": (2,), "bidirectional_window": (64,)}  # fmt: skip

    def cell(convention: str, shape: str) -> str:
        over = "images" if shape.startswith("bidirectional_") and shape != "bidirectional_window" else "sequences"
        factor, statistic = CONVENTIONS[convention].statistic(Context(shape, sizes.get(shape, ()), over))
        return f"`{statistic.name}`" if factor == 1 else f"{factor} x `{statistic.name}`"

    shapes = CONVENTIONS["exact"].pairs
    return table(["context", *CONVENTIONS], [[f"`{shape}`", *(cell(name, shape) for name in CONVENTIONS)] for shape in shapes])


def kinds() -> str:
    """Which kinds of terms each convention prices."""
    rows = [
        [f"`{kind.value}`", *("no" if kind in convention.left_out else "yes" for convention in CONVENTIONS.values())]
        for kind in Kind
        if kind is not Kind.JOIN
    ]
    return table(["kind of term", *CONVENTIONS], rows)


def switches() -> str:
    """The remaining switches."""
    names = [name for name, value in vars(CONVENTIONS["exact"]).items() if isinstance(value, bool)]
    return table(
        ["switch", *CONVENTIONS],
        [[f"`{name}`", *("yes" if getattr(c, name) else "no" for c in CONVENTIONS.values())] for name in names],
    )


def tera(flops: int | Fraction) -> str:
    return f"{float(flops) / 1e12:,.3f}"


def side_by_side() -> str:
    """The same models under each convention, and where the difference comes from."""
    parts = []
    for name in SIDE_BY_SIDE:
        cfg = load_recipe(name)
        sums = {convention: compile_plan(cfg, convention).breakdown([LENGTH]) for convention in CONVENTIONS}
        components = list(dict.fromkeys(component for found in sums.values() for component in found))
        rows = [[component, *(tera(found.get(component, 0)) for found in sums.values())] for component in components]
        rows.append(["**total**", *(f"**{tera(sum(found.values()))}**" for found in sums.values())])
        parts.append(f"### {name}\n\n" + table([f"TFLOPs, one sequence of {LENGTH:,}", *CONVENTIONS], rows))
    return "\n\n".join(parts)


def convention_gaps() -> str:
    """How far the conventions lie from `megatron`."""

    def row(name: str) -> list[str]:
        flops = {convention: compile_plan(load_recipe(name), convention).flops([LENGTH]) for convention in CONVENTIONS}
        return [f"`{name}`", *(f"{float(found / flops['megatron']) - 1:+.2%}" for found in list(flops.values())[1:])]

    return table(["recipe", *list(CONVENTIONS)[1:]], map(row, SIDE_BY_SIDE))


def attention_square() -> str:
    """What a count of the whole attention square claims."""

    def row(name: str) -> list[str]:
        plans = [compile_plan(load_recipe(name), convention) for convention in ("executed", "exact")]
        claims = (plans[0].flops([length]) / plans[1].flops([length]) for length in SQUARE_LENGTHS)
        return [f"`{name}`", *(f"{float(claim):.2f}" for claim in claims)]

    return table(["recipe", *(f"{length:,} tokens" for length in SQUARE_LENGTHS)], map(row, SQUARE_MODELS))


def all_models() -> str:
    """Every model recipe, from the file that `python -m tests.golden` writes."""
    golden = json.loads((DOCS.parent / "tests" / "data" / "golden_flops.json").read_text())
    rows = []
    for name in MODELS:
        count = golden[f"models/{name}.yaml parameters"]
        totals = (golden[f"models/{name}.yaml {convention} total"] for convention in CONVENTIONS)
        per_token = (float(Fraction(total["one_sequence_of_4096"])) / 4096 / 1e9 for total in totals)
        rows.append([f"`{name}`", f"{count['total']:,}", f"{count['active']:,}", *(f"{value:,.2f}" for value in per_token)])
    return table(["recipe", "parameters", "active", *(f"{name}, GFLOPs/token" for name in CONVENTIONS)], rows)


#: A rank's memory, by columns of the table.
_HELD = {
    "weights": ("weights",),
    "gradients": ("gradients",),
    "optimizer": ("optimizer",),
    "activations": ("activations", "logits", "working"),
}


def training_recipes() -> str:
    """What the fullest rank of each training recipe holds, in the layout that the recipe says."""
    rows = []
    for name in TRAINED:
        cfg = load_recipe(name)
        found = held(cfg, compile_plan(cfg), None, None)
        assert found is not None, name
        full = found.fullest
        sizes = (with_unit(sum(full.parts[part] for part in parts), "B", 3) for parts in _HELD.values())
        total = f"{'at least ' if full.unknown else ''}{with_unit(full.total, 'B', 3)}"
        rows.append([f"`{name}`", str(found.layout), found.layout.devices, total, *sizes])
    return table(["recipe", "layout", "devices, at least", "fullest rank", *_HELD], rows)


#: Result of `python -m tests.model_types` for a model type -> its title.
_FOUND = {
    "read exactly": "Read, equal to execution",
    "read": "Read; the difference from transformers' own execution, or why they were not compared",
    "traced exactly": "Traced, equal to execution",
    "traced": "Traced, with limitations",
    "not run": "Not run on text",
}


def model_types() -> str:
    """Model types of transformers, from the file that `python -m tests.model_types` writes."""
    types = json.loads((DOCS.parent / "tests" / "data" / "model_types.json").read_text())
    parts = []
    for kind, title in _FOUND.items():
        found = {name: why for name, (what, why) in types.items() if what == kind}
        if not found:
            continue
        names = ", ".join(f"`{name}`" for name in found)
        reasons = [[f"`{name}`", why.replace("|", "/").replace("<", "&lt;")] for name, why in found.items()]
        told = table(["model type", "why"], reasons) if any(found.values()) else names
        parts.append(f"### {title}: {len(found)} of {len(types)}\n\n{told}")
    return "\n\n".join(parts)


def number_formats() -> str:
    """The matmuls that each recipe runs in its format."""

    def row(recipe: Recipe) -> list[str]:
        newer = NEWER.get(recipe.name, recipe)

        def said(holds: Callable[[Recipe], str]) -> str:
            now, then = holds(recipe), holds(newer)
            return now if now == then else f"{now}; newer releases: {then}"

        return [
            f"`{recipe.name}`",
            f"{recipe.format}; weight gradients bf16 with `fp8_wgrad=False`" if recipe.wgrad else recipe.format,
            said(lambda one: "with " + " or ".join(f"`{name}`" for name in one.attention) if one.attention else "bf16"),
            said(lambda one: "with `fp8_output_proj`" if one.output_layer else "bf16"),
            "bf16 with `first_last_layers_bf16`" if recipe.layers_in_base else recipe.format,
            recipe.format if recipe.mtp else "bf16",
            said(lambda one: one.format if one.hybrid else "unknown"),
        ]

    heads = ["recipe", "linear layers", "attention's products", "output layer", "layers at the ends", "MTP", "hybrid patterns"]
    return table(heads, map(row, RECIPES.values()))


def quantisation_methods() -> str:
    """The formats of matmuls in transformers by ``quant_method``."""
    stored = ", ".join(f"`{name}`" for name in STORED)
    unless = "; ".join(f"`{name}`: {reason}" for name, (_, reason) in UNLESS.items())
    return table(
        ["`quant_method`", "forward, recomputed", "gradients"],
        [
            [stored, "as the activations are", "as the activations are"],
            [f"with some options of these ({unless})", "unknown", "unknown"],
            ["any, with `dequantize: true`", "as the activations are", "as the activations are"],
            ["`fp8`", "fp8, except for the modules in `modules_to_not_convert` (by default the output layer)", "bf16"],
            [
                "layers of `torchao.float8` in a live model",
                "fp8",
                "fp8; bf16 for what a recipe leaves out (`rowwise_with_gw_hp`)",
            ],
            ["any other", "unknown", "unknown"],
        ],
    )


def devices() -> str:
    """The table of peaks."""
    formats = ("bf16", "fp16", "fp8", "fp4")
    return table(
        ["device", *(f"{name}, TFLOP/s" for name in formats), "TB/s", "source"],
        [
            [peak.words, *(f"{peak.tflops[name]:g}" if name in peak.tflops else "-" for name in formats),
             f"{peak.bandwidth:g}" if peak.bandwidth else "-", peak.source]
            for peak in PEAKS
        ],
    )  # fmt: skip


def keys_table(keys: Iterable[Key]) -> str:
    return table(["key", "unit", "meaning"], [[f"`{key.name}`", key.unit, key.meaning] for key in keys])


def throughput_keys() -> str:
    """What the callback logs."""
    return keys_table(THROUGHPUT)


def facts() -> str:
    """The constants of a run."""
    return table(["fact", "meaning"], [[f"`{fact.name}`", fact.meaning] for fact in FACTS])


def training_keys() -> str:
    """What the training loop itself logs."""
    return keys_table(TRAINING)


def time_parts() -> str:
    """The parts of a step, and what to try against each."""
    rows = [[f"`{name}`", meaning, REMEDIES.get(name, "")] for name, meaning in TIME_PARTS.items()]
    return table(["part", "what it is", "what to try first"], rows)


def job_parts() -> str:
    """The parts of a job's wall time."""
    return table(["part", "what it is"], [[f"`{name}`", meaning] for name, meaning in JOB_PARTS.items()])


# ---- what --json prints ----------------------------------------------------------------------------------------------

#: Every command with `--json` that prints what it counted: examples which together show every key with every type it may have.
PRINTED = {
    "flops": (
        "llama3-8b",
        "llama3-8b --explain --device-name H100 --number-format delayed",
        "tiny_moe --batch-size 2 --convention exact model.moe_expert_capacity_factor=1.0",
        "qwen2.5-vl-7b --passes forward",
    ),
    "compare": ("llama3-8b qwen3-8b", "gemma3-4b --bytes-per-token 4.25 --convention maxtext"),
    "check": (
        "llama3-8b --tokens-per-second 13812 --reported 800TFLOP/s --device-name H100 --parameters 8.03B",
        "llama3-8b --assume embedding_counted",
    ),
    "plan": (
        "llama3-8b --tokens 1T --devices 8 --device-name H100",
        "llama3-8b --budget $1M-2M --devices 8-16 --device-name H100,B200 --price 2 --carbon 0.4 --mfu 35-45%",
        "llama3-8b --tokens 1T-2T --devices 8 --peak-flops 1P --mfu 0.4",
    ),
    "plan_layouts": (
        "tiny --devices 2 --device-name H100 --global-batch-size 8",
        "llama3-70b --devices 1 --device-name H100 --global-batch-size 1",
    ),
    "inference": (
        "qwen3-8b --prompt 900 --generate 4 --device-name H100 --draft qwen3-0.6b --acceptance 0.8",
        "qwen3-30b-a3b --prompt 900 --generate 1 --batch 8",
    ),
    "ledger": ("notebook --differences", "qwen2.5-0.5b --steps 10 --lora-rank 8"),
    "recipes": ("",),
    "devices": ("",),
    "integrations": ("",),
}
#: Objects whose keys are a model's components, formats, collectives or kinds of work: all their values have one type.
OPEN = {"components", "formats", "peak_flops", "memory", "parts", "spent"}
#: Commands that write files or measure, so they are not run here.
WRITTEN = {
    "pack": {"additionalProperties": {"type": ["number", "object"]}},
    "peak": {"required": ["device", "peak_flops", "peak_source", "achievable_flops", "achievable_fraction", "matmuls"]},
    "profile": {
        "required": [
            "name",
            "device",
            "number_format",
            "peak_flops",
            "peak_source",
            "convention",
            "steps",
            "micro_batches",
            "seconds",
            "flops",
            "ranks",
            "not_counted",
            "trace",
            "rows",
        ],
    },
    "dashboard": {"required": ["title", "panels"]},
    "goodput": {"required": ["goodput", "goodput/interruptions"]},
}
SCHEMA = "bridge.schema.json"


@cache
def schema() -> dict[str, Any]:
    """The schema of the output of every command with `--json`, made from examples."""
    definitions = {name: _tidied(_merged(printed(name, words) for words in examples)) for name, examples in PRINTED.items()}
    for name, what in WRITTEN.items():
        required = ["version", *what.get("required", ())]
        definitions[name] = {"type": "object", "properties": {"version": {"const": JSON_VERSION}}, **what, "required": required}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": definitions}


def printed(name: str, words: str) -> dict[str, Any]:
    """The schema of the output of a command."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        code = main([name.partition("_")[0], *words.split(), "--json"])
    assert code == 0, f"{name} {words}"
    return shape_of(json.loads(output.getvalue()))


def json_keys() -> str:
    """The keys that each command prints."""

    def row(name: str, what: dict[str, Any]) -> list[str]:
        one = what["items"] if "array" in what["type"] else what
        kinds = {"object": "an object", "array": "an array of objects"}
        told = kinds[what["type"]] if isinstance(what["type"], str) else "an object, or an array of them"
        return [f"`{name}`", told, ", ".join(f"`{key}`" for key in {**dict.fromkeys(one["required"]), **one["properties"]})]

    return table(["command", "prints", "keys"], [row(name, what) for name, what in schema()["$defs"].items()])


_TYPES = {bool: "boolean", int: "number", float: "number", str: "string", type(None): "null"}


def shape_of(value: object, key: str = "") -> dict[str, Any]:
    """The JSON schema of an example."""
    if isinstance(value, dict):
        if key in OPEN:
            return {"type": ["object"]} | ({"additionalProperties": _merged(map(shape_of, value.values()))} if value else {})
        properties = {name: shape_of(part, name) for name, part in value.items()}
        return {"type": ["object"], "required": list(value), "properties": properties}
    if isinstance(value, list):
        return {"type": ["array"]} | ({"items": _merged(map(shape_of, value))} if value else {})
    return {"type": [_TYPES[type(value)]]} | ({"const": value} if key == "version" else {})


def _merged(shapes: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return reduce(_either, shapes)


def _either(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The schema that both schemas fit."""
    both = one | other | {"type": sorted({*one["type"], *other["type"]})}
    for name in ("items", "additionalProperties"):
        if name in one and name in other:
            both[name] = _either(one[name], other[name])
    if "properties" in one and "properties" in other:
        mine, theirs = one["properties"], other["properties"]
        both["required"] = [key for key in one["required"] if key in other["required"]]
        both["properties"] = mine | {key: _either(mine[key], part) if key in mine else part for key, part in theirs.items()}
    return both


def _tidied(shape: dict[str, Any]) -> dict[str, Any]:
    """Without types for what was null in every example, and with single types as plain strings."""
    types = shape["type"]
    if types == ["null"]:
        return {}
    found = shape | {"type": types[0] if len(types) == 1 else types}
    for name in ("items", "additionalProperties"):
        if name in found:
            found[name] = _tidied(found[name])
    if "properties" in found:
        found["properties"] = {name: _tidied(part) for name, part in found["properties"].items()}
    return found


# ---- other frameworks -----------------------------------------------------------------------------------------------

COUNTED = ("llama3-8b", "gemma3-4b", "gpt-oss-20b", "qwen3-30b-a3b", "deepseek-v3")


def counters() -> str:
    """The same models by every framework's rule, against ours."""
    runs = [check(name, sequence_length=LENGTH) for name in COUNTED]

    def cell(counter: Counter, run: Check) -> str:
        if not counter.knows(run):
            return "-"
        ratio = counter.of(run).flops_per_token / run.under("megatron").flops_per_token
        return f"{float(ratio) - 1:+.1%}"

    rows = [[counter.name, *(cell(counter, run) for run in runs)] for counter in COUNTERS]
    return table(["framework", *(f"`{name}`" for name in COUNTED)], rows)


def counters_by_term() -> str:
    """Where the difference comes from."""
    run = check(COUNTED[0], sequence_length=LENGTH)
    ours = run.under("megatron")

    def row(counter: Counter) -> list[str]:
        way = counter.of(run)
        gaps = ", ".join(f"{name} {gap:+.1%}" for name, gap in run.gaps(way, ours).items()) or "none"
        ratio = float(way.flops_per_token / ours.flops_per_token)
        return [counter.name, counter.where, f"`{way.name}`", f"{float(way.flops_per_token) / 1e9:.2f}", f"{ratio:.3f}", gaps]

    heads = ["framework", "its function", "in `bridge`", "GFLOPs/token", "over `megatron`", "terms"]
    return table(heads, map(row, COUNTERS))


# ---- published throughputs -----------------------------------------------------------------------------------------


@cache
def rows() -> tuple[published_rows.Row, ...]:
    """Every published row, compared by `bridge check`."""
    return tuple(published_rows.rows())


def published_summary() -> str:
    """How many rows of each source agree."""
    verdicts = {"agrees": "a convention gives it", "explained": "a named rule explains it", "wrong": "wrong", "open": "open"}
    counts: dict[str, collections.Counter[str]] = {}
    for row in rows():
        counts.setdefault(published_rows.family(row), collections.Counter())[row.verdict] += 1
    body = [[name, *(found[verdict] or "" for verdict in verdicts), found.total()] for name, found in counts.items()]
    total = collections.Counter(row.verdict for row in rows())
    body.append(["**all**", *(f"**{total[verdict]}**" for verdict in verdicts), f"**{total.total()}**"])
    return table(["source", *verdicts.values(), "rows"], body)


_PUBLISHED = ("model", "tokens per row", "devices", "speed", "published", "bridge", "over published", "counted as")


def _published(row: published_rows.Row) -> list[str]:
    return [*row.cells, row.way.name.replace("_", r"\_")]


def published_wrong() -> str:
    """Rows whose published number is wrong: by the convention of their source, and by what explains it."""
    return table([*_PUBLISHED, "what is known"], [[*_published(row), row.known] for row in rows() if row.verdict == "wrong"])


def published_open() -> str:
    """Rows that no convention and no named rule gives."""
    return table([*_PUBLISHED, "what is known"], [[*_published(row), row.known] for row in rows() if row.verdict == "open"])


def published_tables() -> str:
    """Every row, source by source."""
    parts = []
    for source in dict.fromkeys(row.source for row in rows()):
        mine = [row for row in rows() if row.source == source]
        parts.append(f"### {source}\n\n" + table([*_PUBLISHED, "verdict"], [[*_published(row), row.verdict] for row in mine]))
    return "\n\n".join(parts)


def typical_mfu() -> str:
    """What published runs reach, by kind of model and number format."""
    kinds = {False: "dense", True: "with experts"}
    rows = [(kinds[row.experts], row.number_format, spread(row.mfu, lambda one: percent(one, 0)), row.source) for row in TYPICAL]
    return table(("model", "matmuls", "MFU", "source"), rows)


GENERATORS: dict[str, Callable[[], str]] = {
    function.__name__: function
    for function in (
        contexts,
        kinds,
        switches,
        side_by_side,
        convention_gaps,
        attention_square,
        all_models,
        training_recipes,
        model_types,
        number_formats,
        quantisation_methods,
        devices,
        throughput_keys,
        training_keys,
        facts,
        time_parts,
        job_parts,
        typical_mfu,
        json_keys,
        counters,
        counters_by_term,
        published_summary,
        published_wrong,
        published_open,
        published_tables,
    )
}
_BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render(text: str) -> str:
    """A page with its generated blocks filled in."""
    return _BLOCK.sub(lambda match: f"{match[1]}\n{GENERATORS[match[2]]()}\n\n{match[3]}", text)


#: This page takes long to generate: tests/planning/test_published.py checks it.
LONG = "published.md"


def stale_pages(write: bool) -> list[str]:
    """Pages whose tables are out of date; with ``write`` they are rewritten."""
    stale = []
    for page in sorted(DOCS.glob("*.md")):
        if page.name == LONG and not write:
            continue
        text = page.read_text()
        fresh = render(text)
        if fresh != text:
            stale.append(page.name)
            if write:
                page.write_text(fresh)
    file, fresh = DOCS / SCHEMA, json.dumps(schema(), indent=1) + "\n"
    if not file.exists() or file.read_text() != fresh:
        stale.append(SCHEMA)
        if write:
            file.write_text(fresh)
    return stale


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help=f"fail instead of writing; without {LONG}")
    stale = stale_pages(write=not parser.parse_args().check)
    print("\n".join(stale) or "nothing to do")
    sys.exit(bool(stale) and "--check" in sys.argv)
