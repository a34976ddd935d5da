"""What the tabs show is what the plan, the inference functions and the published comparison say."""

import csv
import io
import json
from fractions import Fraction

import pytest

from bridge.cli.main import main
from bridge.config import ConfigError, list_recipes, load_recipe
from bridge.explorer.controls import accept, defaults
from bridge.explorer.sources import OWN_MODEL, Source, Training, compiled
from bridge.explorer.tabs import byte_latent, check, compare, fine_tune, inference, model, plan
from bridge.flops import compile_plan
from bridge.flops.pipeline import PipelineLayout
from bridge.planning.communication import communication
from bridge.planning.exhibits.byte_latent import compare as compare_bytes
from bridge.planning.inference import MemoryTraffic, prefill_and_decode
from bridge.planning.layouts import Layout
from bridge.planning.memory import memory
from bridge.planning.search import OPTIMIZER

LLAMA = Source("llama3-8b")
TINY = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "vocab_size": 100}  # fmt: skip


def values(tab, **changes):
    controls = [control for part in tab.SECTIONS.values() for control in part]
    return accept(controls, {**defaults(controls), **changes})


def facts(view):
    return {fact.key: fact.value for fact in view.facts}


def by_key(view, key):
    return {row[key]: row for row in view.table.as_records()}


def command(capsys, *arguments):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("tab", [model, compare, check, fine_tune, inference, plan, byte_latent], ids=lambda tab: tab.KEY)
def test_every_tab_has_as_many_figures_as_it_declares(tab):
    assert len(tab.view(LLAMA, values(tab)).figures) == tab.NUM_FIGURES


# ---- model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["llama3-8b", "deepseek-v3", "gpt-oss-20b", "nemotron-h-8b", "gemma3-4b", "deepseek-v3.2"])
@pytest.mark.parametrize("convention", ["megatron", "exact"])
def test_model_equals_the_command_line(capsys, recipe, convention):
    shown = model.view(Source(recipe), values(model, length=2176, batch=6, convention=convention, pp=2, first=11))
    said = command(capsys, "flops", recipe, "model.seq_length=2176", "parallel.pipeline_model_parallel_size=2",
                   "parallel.num_layers_in_first_pipeline_stage=11", "--batch-size", "6", "--convention", convention)  # fmt: skip
    numbers = facts(shown)
    assert numbers["flops"] == said["flops"]
    assert float(numbers["flops_per_token"]) == said["flops_per_token"]
    assert numbers["parameters"] == said["parameters"]["total"]
    assert {name: row["flops"] for name, row in by_key(shown, "component").items()} == said["components"]
    stages = shown.figures[2].data[0].y
    assert list(stages) == pytest.approx(said["stages"], rel=1e-12)  # a figure has floats


def test_training_recipes_equal_the_plan():
    """They set a layout of their own, which the page leaves to its sliders."""
    for path in (path for path in list_recipes() if path.parent.name != "models"):
        source = Source(path.stem)
        recipe = load_recipe(path, validate=False)
        plan = compile_plan(recipe)
        shown = compiled(source, "megatron", recipe.parallel.tensor_model_parallel_size)
        assert shown.flops([4096, 4096]) == plan.flops([4096, 4096])


def test_components_add_up():
    shown = model.view(Source("qwen2.5-vl-7b"), values(model, patches=1024, batch=3))
    rows = shown.table.as_records()
    assert sum(row["flops"] for row in rows) == facts(shown)["flops"]
    assert float(sum(row["share"] for row in rows)) == pytest.approx(1)
    plan = compile_plan(load_recipe("qwen2.5-vl-7b", validate=False))
    assert facts(shown)["flops"] == plan.flops([4096] * 3, [1024] * 3)


@pytest.mark.parametrize("recipe", ["llama3-8b", "qwen3-30b-a3b", "deepseek-v3", "llama4-scout-17b-16e"])
def test_attention_takes_over_where_the_core_outgrows_the_rest(recipe):
    plan = compiled(Source(recipe), "exact")
    crossing = model.cross_over(plan)

    def core_share(length):
        parts = plan.breakdown([length])
        return Fraction(parts["core_attention"], sum(parts.values()))

    assert core_share(crossing - 1) < Fraction(1, 2) <= core_share(crossing)


def test_cross_over_in_closed_form():
    """Weights a token passes against multiply-accumulates per token of context, for Llama 3 8B under the megatron convention."""
    hidden, ffn, layers, vocabulary, groups, head = 4096, 14336, 32, 128256, 8, 128
    weights = layers * (2 * hidden * hidden + 2 * hidden * groups * head + 3 * hidden * ffn) + hidden * vocabulary
    pairs_per_length = layers * hidden  # q r: half of the square, for QK and for AV
    assert model.cross_over(compiled(LLAMA, "megatron")) == -(-weights // pairs_per_length)


def test_attention_never_takes_over_without_global_layers():
    plan = compiled(Source("mistral-7b-v0.1"), "exact")  # a window of 4096 everywhere
    assert model.cross_over(plan) is None
    assert facts(model.view(Source("mistral-7b-v0.1"), values(model, convention="exact")))["cross_over"] is None


def test_layout():
    shown = facts(model.view(LLAMA, values(model, tp=2, pp=4, dp=2, batch=32)))
    plan = compiled(LLAMA, "megatron", 2)
    vector = [32 * value for value in plan.measure([4096])]
    stages = plan.evaluate_stages(vector, 4)
    assert shown["flops_per_device"] == Fraction(max(stages), 4)
    assert shown["imbalance"] == pytest.approx(float(max(stages) * 4 / sum(stages)))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"dp": 3, "batch": 4}, "train.global_batch_size=4 is not divisible"),
        ({"vpp": 2}, "virtual pipeline chunks need a pipeline"),
        ({"pp": 5, "batch": 5}, "pipeline_model_parallel_size"),
    ],
)
def test_impossible_layouts_are_refused(changes, word):
    with pytest.raises(ConfigError, match=word):
        model.view(LLAMA, values(model, **changes))


def test_values_out_of_range_are_refused():
    for changes in ({"length": 10**9}, {"length": None}, {"length": 4096.5}, {"length": float("nan")}, {"convention": "x"}):
        with pytest.raises(ConfigError):
            values(model, **changes)


# ---- compare ------------------------------------------------------------------------------------------------------


def test_compare_equals_the_plans():
    chosen = values(
        compare, models=["llama3-8b", "mixtral-8x7b"], conventions=["exact", "executed"], length=1024, passes="forward"
    )
    rows = compare.view(LLAMA, chosen).table.as_records()
    assert [(row["model"], row["convention"], row["flops_per_sequence"]) for row in rows] == [
        (name, convention, compile_plan(load_recipe(name, validate=False), convention).flops([1024], passes="forward"))
        for name in ("llama3-8b", "mixtral-8x7b")
        for convention in ("exact", "executed")
    ]


def test_compare_with_a_model_of_ones_own():
    source = Source("llama3-8b", json.dumps(TINY))
    rows = compare.view(source, values(compare, models=[OWN_MODEL, "llama3-8b"])).table.as_records()
    assert rows[0]["flops_per_sequence"] == compiled(source, "megatron").flops([4096])
    assert rows[0]["model"] == "llama"
    with pytest.raises(ConfigError, match="config.json"):
        compare.view(LLAMA, values(compare, models=[OWN_MODEL]))
    with pytest.raises(ConfigError, match="at least one"):
        compare.view(LLAMA, values(compare, models=[]))


# ---- fine-tune ----------------------------------------------------------------------------------------------------


def test_lora_against_full_training_and_6nd():
    shown = fine_tune.view(LLAMA, values(fine_tune, rank=4, targets=["linear_qkv"], length=1024))
    rows = by_key(shown, "case")
    config = load_recipe("llama3-8b", ["peft.dim=4", "peft.target_modules=[linear_qkv]"], validate=False)
    plan = compile_plan(config, "exact")
    assert rows["LoRA rank 4"]["flops_per_token"] * 1024 == plan.flops([1024])
    assert rows["full training"]["flops_per_token"] * 1024 == compile_plan(
        load_recipe("llama3-8b", validate=False), "exact"
    ).flops([1024])
    assert rows["6ND"]["flops_per_token"] == 6 * 8_030_261_248
    assert facts(shown)["trainable"] == plan.parameters()["trainable"]


def test_qlora_computes_what_lora_does_in_less_memory():
    lora, qlora = (fine_tune.view(LLAMA, values(fine_tune, method=method, rank=16)) for method in ("LoRA", "QLoRA"))
    rows = by_key(qlora, "case")["QLoRA rank 16"], by_key(lora, "case")["LoRA rank 16"]
    assert rows[0]["flops_per_token"] == rows[1]["flops_per_token"]
    linear = 32 * (4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336)
    stored = linear // 2 + linear // 64 + linear // 64 // 256 * 4  # a byte for 64 of them, and fp32 for 256 of these bytes
    saved = 2 * linear - stored
    assert facts(lora)["state_bytes"] - facts(qlora)["state_bytes"] == saved


@pytest.mark.parametrize("rank", [1, 64, 512])
def test_cost_is_linear_in_the_rank(rank):
    chosen = values(fine_tune, rank=16)
    curve = fine_tune.by_rank(compiled(LLAMA, "exact", 1, fine_tune.training(LLAMA, chosen)), 16, 4096, [])
    part = compiled(LLAMA, "exact", 1, fine_tune.training(LLAMA, {**chosen, "rank": rank}))
    assert curve[rank] == part.flops([4096])


def test_frozen_parts():
    chosen = values(fine_tune, method="freeze parts", layers=32, parts=["embedding"])
    shown = by_key(fine_tune.view(LLAMA, chosen), "case")["frozen parts"]
    plan = compiled(LLAMA, "exact")
    head = plan.breakdown([4096])["output_layer"]
    forward = plan.flops([4096], passes="forward")
    # Only the output layer (and the last norm) trains: forward everywhere, backward in the head.
    assert shown["flops_per_token"] * 4096 == forward + head * 2 // 3
    everything = compiled(LLAMA, "exact", 1, Training(freeze=("embedding", "decoder", "output_layer")))
    assert everything.flops([4096]) == forward


def test_lora_needs_a_layer():
    with pytest.raises(ConfigError, match="at least one layer"):
        fine_tune.view(LLAMA, values(fine_tune, targets=[]))
    with pytest.raises(ConfigError, match="matches no linear layer"):
        fine_tune.view(LLAMA, values(fine_tune, targets=["in_proj, out_proj"]))


# ---- inference ----------------------------------------------------------------------------------------------------


def test_inference_equals_the_api():
    chosen = values(
        inference, prompt=300, generate=20, batch=8, device="H200", devices=2, weights="8 bit", format="fp8", last=True
    )
    shown = facts(inference.view(LLAMA, chosen))
    config = load_recipe("llama3-8b", validate=False)
    request = prefill_and_decode(config, 300, 20, batch_size=8, logits_to_keep=1, memory=MemoryTraffic(weight=1))
    bound = request.roofline("NVIDIA H200", "fp8", 2)
    assert shown["flops"] == request.total
    assert shown["cache_bytes"] == request.cache_bytes
    assert shown["time_to_first_token"] == bound.time_to_first_token
    assert shown["tokens_per_second"] == bound.tokens_per_second
    assert (shown["mfu"], shown["mbu"]) == (bound.mfu[-1], bound.mbu[-1])


def test_sweep_equals_single_requests():
    chosen = values(inference, prompt=256, generate=2)
    peak, rate = inference.rates(chosen)
    for step in inference.sweep(Source("olmoe-1b-7b"), chosen, peak, rate):
        config = load_recipe("olmoe-1b-7b", validate=False)
        request = prefill_and_decode(config, 256, 2, batch_size=step.batch)
        assert step.flops == request.decode
        assert step.size == pytest.approx(request.decode_bytes, abs=1)
        assert step.seconds == pytest.approx(request.roofline("H100").decode_time)


def test_formats_that_a_device_lacks_are_refused():
    with pytest.raises(ConfigError, match="A10 has no fp8 matmuls; it has bf16, fp16"):
        inference.view(LLAMA, values(inference, device="A10", format="fp8"))


def test_without_a_cache_there_is_no_sweep():
    shown = inference.view(LLAMA, values(inference, cache=False, prompt=10, generate=5))
    assert facts(shown)["flops"] == prefill_and_decode(load_recipe("llama3-8b", validate=False), 10, 5, kv_cache=False).total
    assert len(shown.figures[1].data[0].x) == 0


# ---- BLT ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sliders", "total", "percent"),
    [
        ((4.4, 2560, 10), 1345145576.73, "+18.5 %"),
        ((10.0, 2560, 10), 777936896, "-31.4 %"),
        ((8.0, 4096, 10), 1692432384, "-37.4 %"),
    ],
)
def test_published_comparison(sliders, total, percent):
    chosen = values(byte_latent, **dict(zip(("patch_size", "d_model", "local_layers"), sliders, strict=True)))
    shown = byte_latent.view(LLAMA, chosen)
    assert facts(shown)["blt_total"] == compare_bytes(*sliders).blt_total == pytest.approx(total, abs=0.01)
    texts = {fact.key: fact.text for fact in shown.facts}
    assert texts["advantage"] == percent
    assert texts["blt_total"] == f"{total:.2e}"


def test_narrowed_attention_is_reported():
    assert any("512" in note and "500" in note for note in byte_latent.view(LLAMA, values(byte_latent, d_model=512)).notes)
    assert len(byte_latent.view(LLAMA, values(byte_latent, d_model=2560)).notes) == 1


def test_points_on_the_line_of_equal_cost_cost_the_same():
    figure = byte_latent.view(LLAMA, values(byte_latent, patch_size=6.0)).figures[1]
    cost = compare_bytes(6.0, 2560, 10).blt_total
    line = figure.data[0]
    assert line.name == "as much as this BLT"
    for size, width in zip(line.x, line.y, strict=True):
        near = compare_bytes(size, 20 * round(width / 20), 10).blt_total  # a width that the heads divide
        assert near == pytest.approx(cost, rel=0.02)


# ---- taking values along ------------------------------------------------------------------------------------------


def test_exports_keep_every_digit():
    shown = model.view(Source("llama3.1-405b"), values(model, length=131072, batch=4096))
    assert facts(shown)["flops"] > 2**63
    parsed = json.loads(shown.as_json())
    assert parsed["facts"]["flops"] == facts(shown)["flops"]
    assert parsed["inputs"]["model"] == "llama3.1-405b"
    rows = list(csv.DictReader(io.StringIO(shown.table.as_csv())))
    assert sum(int(row["flops"]) for row in rows) == facts(shown)["flops"]


# ---- plan ---------------------------------------------------------------------------------------------------------


def test_a_layout_equals_the_api():
    shown = plan.view(LLAMA, values(plan, devices="16", pp="2", cp="2", batch=64))
    compiled_plan = compile_plan(load_recipe("llama3-8b", validate=False))
    layout = Layout(devices=16, tensor_model_parallel_size=2, sequence_parallel=True, context_parallel_size=2,
                    pipeline=PipelineLayout(pipeline_model_parallel_size=2), global_batch_size=64)  # fmt: skip
    stages = memory(compiled_plan, layout, OPTIMIZER)
    assert facts(shown)["bytes"] == max(stage.total for stage in stages)
    assert facts(shown)["micro_batches"] == 32
    assert {fact.key: fact.detail for fact in shown.facts}["bytes"].startswith("fits in 74.4 GiB")
    carried = {(row["dimension"], row["operation"]): row["bytes"] for row in shown.table.as_records()}
    found = communication(compiled_plan, layout, OPTIMIZER, sequence_length=8192, stage=1)
    assert carried == {(one.dimension, one.operation): one.bytes for one in found}


def test_sizes_that_do_not_fit_together_are_told():
    with pytest.raises(ConfigError, match="devices=8 do not hold a replica of 16 ranks"):
        plan.view(LLAMA, values(plan, tp="16"))


# ---- check --------------------------------------------------------------------------------------------------------


def test_check_equals_the_command_line(capsys):
    shown = check.view(LLAMA, values(check, length=8192, speed=13812.0, reported=800.0, devices=8, device="H100"))
    said = command(capsys, "check", "llama3-8b", "--sequence-length", "8k", "--devices", "8", "--device-name", "H100",
                   "--tokens-per-second", "13812", "--reported", "800TFLOP/s")  # fmt: skip
    assert shown.notes == [said["verdict"]]
    rows = {row["convention"]: row for row in shown.table.as_records() if not row["difference"]}
    assert {name: row["ratio"] for name, row in rows.items()} == {row["name"]: row["ratio"] for row in said["conventions"]}
    assert facts(shown)["nearest"] == pytest.approx(1, abs=2e-4)
    by_share = check.view(LLAMA, values(check, length=8192, speed=13812.0, reported=71.85, unit="% of the peak"))
    assert "71.85% is what megatron counts" in by_share.notes[0]


def test_windows_shorter_than_sequences_are_counted_as_on_the_command_line(capsys):
    shown = model.view(Source("gemma3-4b"), values(model, length=512))
    assert facts(shown)["flops"] == command(capsys, "flops", "gemma3-4b", "model.seq_length=512")["flops"]
    compared = compare.view(LLAMA, values(compare, models=["gemma3-4b"], length=512))
    said = command(capsys, "compare", "gemma3-4b", "--sequence-length", "512")
    assert float(facts(compared)["least"]) == said[0]["flops_per_token"]
