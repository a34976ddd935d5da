"""What runs in which number format: sums by hand, and what megatron-core's own configs ask for."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from bridge.config import load_recipe
from bridge.flops import ConfigError, compile_plan
from bridge.flops.formats import FIELDS, RECIPES, UNKNOWN, Formats
from bridge.flops.reading import read
from bridge.hardware import find_peak, mixed_peak

LAYERS, HIDDEN, FFN, VOCAB, LENGTH = 4, 64, 160, 96, 100
MODEL = {"num_layers": LAYERS, "hidden_size": HIDDEN, "num_attention_heads": 4, "ffn_hidden_size": FFN, "vocab_size": VOCAB,
         "gated_linear_unit": False, "bf16": True}  # fmt: skip
#: One layer's four matmuls, one pass of them; attention's two products, one pass; the output layer, all three.
LINEAR = 2 * LENGTH * (4 * HIDDEN**2 + 2 * HIDDEN * FFN)
CORE = 2 * 2 * HIDDEN * LENGTH * (LENGTH + 1) // 2
OUTPUT = 3 * 2 * LENGTH * HIDDEN * VOCAB


def by_format(fields, passes="training", lengths=(LENGTH,)):
    plan = compile_plan({**MODEL, **fields}, "exact")
    vector = plan.measure(lengths)
    found = plan.evaluate_formats(vector, passes)
    assert sum(found.values()) == plan.evaluate(vector, passes)
    return {name: flops for name, flops in found.items() if flops}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"bf16": 3 * LAYERS * (LINEAR + CORE) + OUTPUT}),
        ({"fp8": "hybrid"}, {"fp8": 3 * LAYERS * LINEAR, "bf16": 3 * LAYERS * CORE + OUTPUT}),
        (
            {"fp8": "hybrid", "fp8_recipe": "delayed", "fp8_wgrad": False, "fp8_multi_head_attention": True},
            {"fp8": LAYERS * (2 * LINEAR + 3 * CORE), "bf16": LAYERS * LINEAR + OUTPUT},
        ),
        (
            {"fp8": "hybrid", "fp8_recipe": "tensorwise", "first_last_layers_bf16": True, "num_layers_at_end_in_bf16": 2},
            {"fp8": 3 * LINEAR, "bf16": 3 * (3 * LINEAR + LAYERS * CORE) + OUTPUT},
        ),
        (
            {"fp8": "hybrid", "fp8_recipe": "tensorwise", "fp8_dot_product_attention": True, "num_layers_at_end_in_bf16": 2},
            {"fp8": 3 * LAYERS * (LINEAR + CORE), "bf16": OUTPUT},
        ),
        (
            {"fp8": "e4m3", "fp8_recipe": "mxfp8", "fp8_wgrad": False, "fp8_dot_product_attention": True},
            {"fp8": 3 * LAYERS * LINEAR, "bf16": 3 * LAYERS * CORE + OUTPUT},
        ),
        (
            {"fp8": "e4m3", "fp8_recipe": "mxfp8", "fp8_dot_product_attention": True, "fp8_output_proj": True},
            {"fp8": 3 * LAYERS * (LINEAR + CORE) + OUTPUT},
        ),
        ({"fp8": "e4m3", "fp8_recipe": "blockwise", "fp8_dot_product_attention": True},
         {"fp8": 3 * LAYERS * LINEAR, "bf16": 3 * LAYERS * CORE + OUTPUT}),
        ({"fp4": "e2m1", "fp4_recipe": "nvfp4"}, {"fp4": 3 * LAYERS * LINEAR, "bf16": 3 * LAYERS * CORE + OUTPUT}),
        ({"fp4": "e2m1", "bf16": False, "fp16": True}, {"fp4": 3 * LAYERS * LINEAR, "fp16": 3 * LAYERS * CORE + OUTPUT}),
        ({"fp8": "hybrid", "transformer_impl": "local"}, {"bf16": 3 * LAYERS * (LINEAR + CORE) + OUTPUT}),
    ],
)  # fmt: skip
def test_sums_by_hand(fields, expected):
    assert by_format(fields) == expected


@pytest.mark.parametrize(("fields", "inside"), [({"fp8": "hybrid"}, "fp8"), ({"fp4": "e2m1"}, "bf16")])
def test_multi_token_prediction(fields, inside):
    """Two columns into one and a layer, in FP8 whatever the layers at the ends; in BF16 under NVFP4. Its logits stay in BF16."""
    with_mtp = by_format({**fields, "fp8_recipe": "tensorwise", "first_last_layers_bf16": True, "mtp_num_layers": 1})
    without = by_format({**fields, "fp8_recipe": "tensorwise", "first_last_layers_bf16": True})
    more = {name: flops - without.get(name, 0) for name, flops in with_mtp.items()}
    projected = 3 * (2 * LENGTH * 2 * HIDDEN * HIDDEN + LINEAR)
    plain = 3 * CORE + OUTPUT
    assert {name: flops for name, flops in more.items() if flops} == (
        {"fp8": projected, "bf16": plain} if inside == "fp8" else {"bf16": projected + plain}
    )


def test_experts_but_not_their_router_and_adapters():
    moe = {"num_moe_experts": 4, "moe_router_topk": 2, "fp8": "hybrid"}
    experts = 2 * 2 * LENGTH * 2 * HIDDEN * FFN
    attention = 2 * LENGTH * 4 * HIDDEN**2
    router = 2 * LENGTH * 4 * HIDDEN
    assert by_format(moe) == {
        "fp8": 3 * LAYERS * (attention + experts), "bf16": 3 * LAYERS * (router + CORE) + OUTPUT
    }  # fmt: skip
    lora = {"model": MODEL | {"fp8": "hybrid"}, "peft": {"kind": "lora", "dim": 8, "target_modules": ["linear_proj"]}}
    plan = compile_plan(lora, "exact")
    vector = plan.measure([LENGTH])
    forward = plan.evaluate_formats(vector, "forward")
    assert forward == {"fp8": LAYERS * LINEAR, "bf16": LAYERS * (CORE + 2 * LENGTH * 2 * HIDDEN * 8) + OUTPUT // 3}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"fp8": "hybrid", "fp8_recipe": "custom"}, "fp8_recipe='custom'"),
        ({"fp4": "e2m1", "fp4_recipe": "mxfp4"}, "fp4_recipe='mxfp4'"),
        ({"fp8": "hybrid", "fp8_recipe": "nvfp4"}, "fp8_recipe='nvfp4'"),
        ({"bf16": True, "te_precision_config_file": "formats.yaml"}, "te_precision_config_file"),
        ({"fp4": "e2m1", "hybrid_layer_pattern": "*-*-"}, "fp4_recipe='nvfp4'"),
    ],
)
def test_what_is_not_known_is_named(fields, reason):
    assert set(by_format(fields)) == {UNKNOWN}
    formats = read(MODEL | fields).formats
    assert formats.name == UNKNOWN
    assert reason in formats.unknown


def test_a_configuration_that_says_nothing():
    silent = {name: value for name, value in MODEL.items() if name != "bf16"}
    assert compile_plan(silent).formats == Formats()
    assert compile_plan(silent).formats.name == UNKNOWN
    assert read(silent).formats.or_on("bf16").name == "bf16"
    assert read(MODEL).formats.or_on("fp32").name == "bf16"


def test_a_tower_has_formats_of_its_own():
    tower = {"depth": 2, "hidden_size": 32, "num_heads": 4, "intermediate_size": 64, "out_hidden_size": HIDDEN, "patch_size": 2}
    plan = compile_plan(MODEL | {"fp8": "hybrid", "vision_config": tower}, "exact")
    text, images = plan.evaluate_formats(plan.measure([LENGTH])), plan.evaluate_formats(plan.measure([LENGTH], [16]))
    assert not text[UNKNOWN]
    linear, merger = 2 * 16 * (4 * 32 * 32 + 2 * 32 * 64), 2 * 4 * (128 * 128 + 128 * HIDDEN)
    assert images[UNKNOWN] == 3 * (2 * linear + merger)
    assert images["fp8"] == text["fp8"] == 3 * LAYERS * LINEAR


def test_recomputation_runs_in_the_format_of_its_forward_pass():
    fields = {"fp8": "hybrid", "recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    again = by_format(fields, "hardware")
    assert again == {"fp8": 4 * LAYERS * LINEAR, "bf16": 4 * LAYERS * CORE + OUTPUT}


def test_a_teacher_runs_in_its_own_format():
    plan = compile_plan({"model": MODEL | {"fp8": "hybrid"}, "teacher": MODEL}, "exact")
    assert plan.evaluate_formats(plan.measure([LENGTH])) == {
        "fp8": 3 * LAYERS * LINEAR,
        "bf16": 3 * LAYERS * CORE + OUTPUT + LAYERS * (LINEAR + CORE) + OUTPUT // 3,
    }


# ---- configurations of others ------------------------------------------------------------------------


def core(**fields):
    """A config by megatron-core's own class, and the vocabulary that its model is built with."""
    sizes = {"num_layers": 4, "hidden_size": 64, "num_attention_heads": 4}
    return {"model": TransformerConfig(**sizes, **fields), "vocab_size": VOCAB}


def test_megatron_cores_config():
    plain = read(core(bf16=True, params_dtype=torch.bfloat16)).formats
    assert (plain.base, plain.recipe) == ("bf16", None)
    assert read(core()).formats.base == "fp32"
    formats = read(core(bf16=True, fp8="hybrid", fp8_recipe="tensorwise", first_last_layers_bf16=True)).formats
    assert (formats.recipe, formats.first, formats.last) == (RECIPES["tensorwise"], 1, 1)
    assert read(core(fp4="e2m1")).formats.recipe == RECIPES["nvfp4"]


def test_every_field_is_one_of_megatron_cores_or_its_arguments():
    newer = {"fp8_output_proj", "quant_recipe", "te_precision_config_file", "use_kitchen"}
    assert set(FIELDS) - newer <= set(TransformerConfig.__dataclass_fields__)


# ---- other formats for the same model -----------------------------------------------------------------


def test_the_same_model_in_another_format():
    formats = read(MODEL | {"fp8": "hybrid", "fp8_multi_head_attention": True, "fp8_wgrad": False}).formats
    assert formats.named("fp16") == replace(formats, recipe=None, base="fp16")
    assert formats.named("blockwise") == Formats("bf16", RECIPES["blockwise"])
    assert formats.named("tensorwise") == Formats("bf16", RECIPES["tensorwise"], attention=True)
    with pytest.raises(ConfigError, match="number_format='int8' is not known; choose one of bf16, fp16, fp32, delayed"):
        formats.named("int8")


def test_a_loop_that_quantises_by_itself():
    assert Formats("bf16").on("fp8").name == "fp8"
    assert Formats("bf16", RECIPES["nvfp4"]).on("fp8") == Formats("bf16", RECIPES["nvfp4"])
    assert Formats("fp32", RECIPES["nvfp4"]).on("bf16").base == "bf16"


# ---- published runs -----------------------------------------------------------------------------------

PUBLISHED = Path(__file__).parents[1] / "data" / "published_quantised.csv"


def test_no_published_run_is_faster_than_its_formats_allow():
    """The fastest of each model, recipe and device in NVIDIA's tables: all below the time at the peaks of what runs.

    Where a table names no format, the run is held against the BF16 peak, which is the lowest; ``+`` stands before MTP layers.
    """
    plans, fastest = {}, {}
    with PUBLISHED.open() as lines:
        for row in csv.DictReader(lines):
            name, recipe, length = row["recipe"], row["number_format"], int(row["seq_length"])
            if (name, recipe) not in plans:
                file, _, depths = name.partition("+")
                config = load_recipe(f"recipes/models/{file}.yaml", validate=False)
                if depths:
                    config.model.hybrid_layer_pattern += depths
                model = read(config)
                ends = {"tensorwise": (1, 1), "nvfp4": (0, 14) if "super" in name else (0, 0)}.get(recipe, (0, 0))
                formats = replace(model.formats.or_on("bf16").named(recipe), first=ends[0], last=ends[1])
                plans[name, recipe] = compile_plan(replace(model, formats=formats))
            plan = plans[name, recipe]
            peaks = {one: rate * 1e12 for one, rate in find_peak(row["device"]).tflops.items()}
            peak = mixed_peak(plan.evaluate_formats(plan.measure([length])), peaks)
            mfu = float(row["tflops"]) * 1e12 / peak
            assert mfu < (0.8 if recipe == "bf16" else 0.6), row
            fastest[recipe] = max(fastest.get(recipe, 0), mfu)
    assert fastest.keys() == {"bf16", "tensorwise", "mxfp8", "nvfp4"}


@pytest.mark.parametrize(
    ("row", "heads", "weights", "layers", "ends", "outside", "mfu"),
    [
        # Llama 3 70B: q and o, k and v, three matmuls of the MLP; one layer at either end and 128,256 logits in BF16.
        (("llama3-70b", "tensorwise", 8192, "NVIDIA H100", 734), 64 * 128,
         8192 * (2 * 8192 + 2 * 1024) + 3 * 8192 * 28672, 80, 2, 8192 * 128256, 0.4112),
        (("llama3-70b", "nvfp4", 8192, "NVIDIA GB300", 3321), 64 * 128,
         8192 * (2 * 8192 + 2 * 1024) + 3 * 8192 * 28672, 80, 0, 8192 * 128256, 0.3163),
        (("llama3.1-405b", "mxfp8", 8192, "NVIDIA GB200", 2004), 128 * 128,
         16384 * (2 * 16384 + 2 * 1024) + 3 * 16384 * 53248, 126, 0, 16384 * 128256, 0.4189),
        # Qwen3 30B-A3B: eight of 128 experts per token.
        (("qwen3-30b-a3b", "mxfp8", 4096, "NVIDIA B300", 704), 32 * 128,
         2048 * (2 * 4096 + 2 * 512) + 8 * 3 * 2048 * 768, 48, 0, 2048 * 151936, 0.2020),
    ],
)  # fmt: skip
def test_ideal_times_by_hand(row, heads, weights, layers, ends, outside, mfu):
    """Three passes of each; attention's two products, half of their squares, in BF16."""
    name, recipe, length, device, tflops = row
    model = read(load_recipe(f"recipes/models/{name}.yaml", validate=False))
    formats = replace(model.formats.or_on("bf16").named(recipe), first=ends // 2, last=ends // 2)
    plan = compile_plan(replace(model, formats=formats))
    inside = 6 * length * weights * (layers - ends)
    plain = 6 * length * (weights * ends + outside) + 3 * 2 * heads * length**2 * layers
    low = {"nvfp4": "fp4"}.get(recipe, "fp8")
    assert plan.evaluate_formats(plan.measure([length])) == {low: inside, "bf16": plain}
    peaks = {one: rate * 1e12 for one, rate in find_peak(device).tflops.items()}
    seconds = inside / peaks[low] + plain / peaks["bf16"]
    assert tflops * 1e12 * seconds / (inside + plain) == pytest.approx(mfu, abs=5e-5)
    assert mixed_peak(plan.evaluate_formats(plan.measure([length])), peaks) == pytest.approx((inside + plain) / seconds)
