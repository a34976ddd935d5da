"""Properties of plans: additive, integral, consistent among their own views."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.flops import ConfigError, compile_plan
from bridge.flops.moments import Moments
from bridge.flops.reading import Model
from bridge.flops.routed import assignments
from bridge.flops.statistics import FORWARD_PASSES, TOKENS, Statistic
from bridge.flops.terms import Term
from tests.flops.published import MODELS, full_config

NAMES = ["llama3-8b", "gemma3-4b", "deepseek-v3-mtp", "gpt-oss-20b", "qwen3-next-80b-a3b", "nemotron-h-8b", "qwen3-vl-4b"]
PLANS = {(n, c): compile_plan(full_config(MODELS[n]), c) for n in NAMES for c in ("megatron", "exact", "executed")}
LENGTHS = st.lists(st.integers(1, 20000), max_size=8)
PATCHES = st.lists(st.integers(1, 4000).map(lambda n: 4 * n), max_size=4)


@pytest.mark.parametrize("key", PLANS, ids="-".join)
@given(LENGTHS, LENGTHS, PATCHES, PATCHES)
@settings(max_examples=15)
def test_additive_over_sequences_and_images(key, left, right, images, more_images):
    plan = PLANS[key]
    both = plan.measure(left + right, images + more_images)
    parts = [a + b for a, b in zip(plan.measure(left, images), plan.measure(right, more_images), strict=True)]
    assert both == parts
    assert plan.evaluate(both) == plan.flops(left, images) + plan.flops(right, more_images)


@pytest.mark.parametrize("key", PLANS, ids="-".join)
@given(LENGTHS, PATCHES, st.sampled_from(["forward", "training", "hardware"]))
@settings(max_examples=10)
def test_all_views_add_up(key, lengths, images, passes):
    plan = PLANS[key]
    total = plan.flops(lengths, images, passes)
    assert isinstance(total, int) or (isinstance(total, Fraction) and key[1] == "megatron")
    assert sum(plan.breakdown(lengths, images, passes).values()) == total
    odd = {"num_layers_in_last_pipeline_stage": 1} if key[0] == "deepseek-v3-mtp" else {}
    stages = plan.evaluate_stages(plan.measure(lengths, images), 2, passes=passes, **odd)
    assert sum(stages) == total
    if passes == "training":
        rows = plan.table(lengths, images)
        assert sum(row.forward + row.dgrad + row.wgrad for row in rows) == total
        assert not total or sum(row.share for row in rows) == pytest.approx(1.0, abs=1e-9)


def test_stages_by_hand():
    config = {"num_layers": 4, "hidden_size": 4, "ffn_hidden_size": 8, "num_attention_heads": 1, "vocab_size": 10,
              "num_moe_experts": 4, "moe_layer_freq": [0, 0, 0, 1], "moe_router_topk": 3}  # fmt: skip
    plan = compile_plan(config, "exact")
    vector = plan.measure([7])
    attention = 7 * (4 * 12 + 16) + 2 * 28 * 4
    dense, moe, logits = attention + 7 * 64, attention + 7 * (3 * 64 + 16), 7 * 40
    assert plan.evaluate_stages(vector, 2) == [6 * 2 * dense, 6 * (dense + moe + logits)]
    assert plan.evaluate_stages(vector, 2, 2) == [6 * 2 * dense, 6 * (dense + moe + logits)]
    assert plan.evaluate_stages(vector, 4, passes="forward") == [2 * dense, 2 * dense, 2 * dense, 2 * (moe + logits)]
    assert plan.evaluate_stages(vector, 2, num_layers_in_last_pipeline_stage=1) == [6 * 3 * dense, 6 * (moe + logits)]
    with pytest.raises(ConfigError, match="do not split evenly"):
        plan.evaluate_stages(vector, 3)


@pytest.mark.parametrize("name", ["llama3-8b", "gemma3-4b", "gpt-oss-20b"])
@given(LENGTHS.filter(bool), st.integers(0, 5000))
@settings(max_examples=15)
def test_a_window_no_smaller_than_any_sequence_is_no_window(name, lengths, extra):
    config = full_config(MODELS[name]) | {"num_layers": 6}  # one round of every pattern of layers
    unwindowed = compile_plan(config | {"window_size": None}, "exact").flops(lengths)
    for size in (max(lengths) + extra, [max(lengths) - 1 + extra, 0], [-1, -1], (-1, 0)):
        assert compile_plan(config | {"window_size": size}, "exact").flops(lengths) == unwindowed


def test_forms_of_windows():
    config = full_config(MODELS["llama3-8b"])
    base = {"window_size": 128, "num_layers": 6}

    def flops(**fields):
        return compile_plan(config | base | fields, "exact").flops([1000, 50])

    every_second = flops(window_attn_skip_freq=2)
    assert every_second == flops(window_attn_skip_freq=[1, 0, 1, 0, 1, 0])
    assert every_second == flops(window_attn_skip_freq=(True, False, True, False, True, False))
    assert every_second == flops(window_attn_skip_freq=2, window_size=(127, 0))
    assert every_second == flops(interleaved_attn_pattern=(1, 1))
    assert flops() == flops(window_attn_skip_freq=[1] * 6)
    assert flops(window_attn_skip_freq=1) == flops(window_size=None)
    # one local layer more or less is the difference of the pairs, times 2 x 2 FLOPs, head width, heads and three passes
    pairs = sum(s * (s + 1) // 2 - 128 * (s - 128) - 128 * 129 // 2 for s in (1000,))
    assert flops(window_size=None) - every_second == 3 * pairs * 4 * 128 * 32 * 3


def test_frozen_parts_by_hand():
    """Two layers of width 4, MLP 8, vocabulary 10, not gated, one sequence of 3 tokens, in multiply-accumulates."""
    config = {
        "num_layers": 2, "hidden_size": 4, "ffn_hidden_size": 8, "num_attention_heads": 1, "vocab_size": 10,
    }  # fmt: skip
    t, h, f, v, pairs = 3, 4, 8, 10, 6
    qkv, proj, core, fc1, fc2, logits = t * h * 3 * h, t * h * h, pairs * h, t * h * f, t * f * h, t * h * v
    layer = qkv + proj + 2 * core + fc1 + fc2

    def macs(trainable, framework="transformers"):
        return compile_plan(config, "exact", framework=framework, trainable=trainable).flops([t]) // 2

    assert macs(lambda path: True) == 3 * (2 * layer + logits)
    assert macs(lambda path: False) == 2 * layer + logits
    assert macs(lambda path: path == "output_layer") == 2 * layer + 2 * logits
    # megatron-core computes the input's gradient wherever a weight trains
    assert macs(lambda path: path == "output_layer", "megatron") == 2 * layer + 3 * logits
    # a trainable norm in front of it makes the gradient flow, but nothing has a weight gradient
    assert macs(lambda path: path == "decoder.final_layernorm") == 2 * layer + 2 * logits
    assert macs(lambda path: path.startswith("decoder.layers.1.mlp")) == 2 * layer + fc1 + 2 * fc2 + 2 * logits
    assert macs(lambda path: "embedding" in path) == 2 * (2 * layer + logits) + 2 * 2 * core
    assert macs(lambda path: path.endswith("input_layernorm") and ".1." in path) == (
        2 * layer + qkv + 4 * core + proj + fc1 + fc2 + 2 * logits
    )


def test_lora_by_hand():
    config = {
        "num_layers": 1, "hidden_size": 4, "ffn_hidden_size": 8, "num_attention_heads": 1, "vocab_size": 10,
    }  # fmt: skip
    t, h, f, v, pairs, r = 5, 4, 8, 10, 15, 2
    cfg = {"model": config, "peft": {"kind": "lora", "dim": r, "target_modules": ["linear_qkv", "linear_fc2"]}}
    plan = compile_plan(cfg, "exact")
    linears = t * (h * 3 * h + h * h + 2 * h * f)
    adapters = t * r * ((h + 3 * h) + (f + h))
    # dgrad: not into the embedding (layer 0's linear_qkv and its adapter), everywhere above; wgrad: adapters only
    dgrad = t * (h * h + 2 * h * f) + t * h * v
    adapter_dgrad = t * r * 3 * h + t * r * (f + h)
    forward = linears + 2 * pairs * h + t * h * v + adapters
    adapter_dgrad_megatron = adapter_dgrad + t * r * h  # linear_in of layer 0: its weight trains
    expected = forward + dgrad + 4 * pairs * h + adapters + adapter_dgrad_megatron
    assert plan.flops([t]) == 2 * expected
    # transformers projects queries, keys and values apart: three adapters, and no gradient into the embedding at all
    apart = t * r * (3 * (h + h) + (f + h))
    expected = forward - adapters + apart + dgrad + 4 * pairs * h + apart + adapter_dgrad
    assert compile_plan(cfg, "exact", framework="transformers").flops([t]) == 2 * expected
    assert plan.breakdown([t], passes="forward")["adapters"] == 2 * adapters
    assert plan.parameters()["trainable"] == r * (h + 3 * h + f + h)


def test_recompute_adds_forward_passes_to_hardware_flops_only():
    # Three layers as measured with FlopCounterMode on megatron-core's checkpointing: 2 x 32 tokens, dense squares.
    config = {
        "num_layers": 3, "hidden_size": 64, "ffn_hidden_size": 160, "num_attention_heads": 4, "num_query_groups": 2,
        "kv_channels": 16, "vocab_size": 256, "gated_linear_unit": True,
    }  # fmt: skip
    lengths = [32, 32]
    forward, training = 20185088, 60555264
    assert compile_plan(config, "executed").flops(lengths, passes="forward") == forward
    assert compile_plan(config, "executed").flops(lengths) == training
    backward = {
        ("full", "uniform", 1, None): 58458112,
        ("full", "block", 2, None): 52428800,
        ("selective", None, None, ("core_attn",)): 41943040,
        ("selective", None, None, ("mlp",)): 52166656,
        ("selective", None, None, ("layernorm",)): training - forward,  # no matmul runs again
        ("selective", None, None, ("moe_act",)): training - forward,
    }
    for (granularity, method, layers, modules), expected in backward.items():
        settings = {
            "recompute_granularity": granularity,
            "recompute_method": method,
            "recompute_num_layers": layers,
            "recompute_modules": modules,
        }
        plan = compile_plan(config | settings, "executed")
        assert plan.flops(lengths, passes="hardware") == forward + expected
        assert plan.flops(lengths) == training


@pytest.mark.parametrize("convention", ["megatron", "exact", "executed"])
def test_a_batch_of_nothing_costs_nothing(convention):
    plan = compile_plan(full_config(MODELS["qwen3-vl-4b"]), convention)
    assert plan.flops([]) == 0
    assert plan.flops([0, 0], [0]) == 0


def test_unknown_attention_is_named_and_not_priced():
    config = full_config(MODELS["llama3-8b"]) | {"experimental_attention_variant": "psychic"}
    plan = compile_plan(config, "exact")
    assert plan.not_counted == ("experimental_attention_variant='psychic': this attention is not counted",)
    assert set(plan.breakdown([10])) == {"mlp", "output_layer"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "model.hidden_size is missing"),
        ({"num_layers": None}, "model.num_layers is missing"),
        ({"vocab_size": None}, "model.vocab_size is missing"),
        ({"num_attention_heads": None}, "model.num_attention_heads is missing"),
        ({"num_layers": -1}, "model.num_layers=-1 must be a positive integer"),
        ({"hidden_size": 4096.0}, "model.hidden_size=4096.0 must be a positive integer"),
        ({"num_query_groups": 5}, "model.num_query_groups=5 does not divide model.num_attention_heads=32"),
        ({"window_size": [1, 2, 3]}, "model.window_size"),
        ({"num_moe_experts": 4, "moe_layer_freq": [1, 0]}, "model.moe_layer_freq has 2 entries, but model.num_layers=32"),
        ({"num_moe_experts": 4, "moe_layer_freq": "often"}, "model.moe_layer_freq='often' must be an integer or a list"),
        ({"num_moe_experts": 4, "moe_router_topk": 8}, "model.moe_router_topk=8 is larger than model.num_moe_experts=4"),
        ({"experimental_attention_variant": "dsa", "multi_latent_attention": True}, "model.dsa_indexer_n_heads is missing"),
        ({"experimental_attention_variant": "gdn"}, "model.linear_attention_freq is missing"),
        ({"experimental_attention_variant": "dsv4_hybrid"}, "model.csa_compress_ratios is missing"),
        ({"experimental_attention_variant": "dsv4_hybrid", "csa_compress_ratios": [4]}, "has 1 entries, but"),
        ({"experimental_attention_variant": "dsv4_hybrid", "csa_compress_ratios": [8] * 32}, "has the ratio 8"),
        ({"hybrid_layer_pattern": "M*Q", "num_layers": 3}, "has the symbol 'Q'"),
        ({"hybrid_layer_pattern": "M*", "num_layers": 3}, "has 2 layers, but model.num_layers=3"),
        ({"recompute_granularity": "full"}, "model.recompute_method=None must be 'uniform' or 'block'"),
    ],
)
def test_errors_name_the_field(change, message):
    with pytest.raises(ConfigError) as caught:
        compile_plan(full_config(MODELS["llama3-8b"]) | change)
    assert message in str(caught.value)


def of_rows(*rows):
    """The plan of one product of 2 x 3 for each unit of these, which runs forward, as traces have them."""
    return compile_plan(Model(traced=tuple(Term("linear", "mlp", 2, 3, each, weight=False) for each in rows)), "exact")


def test_what_moments_say_and_what_they_leave_open():
    once = of_rows(TOKENS, FORWARD_PASSES)
    assert once.measure_moments(Moments.of(2, 20)) == [20, 1]
    assert once.measure_moments(Moments.of(2, 20), micro_batches=Moments(4, 4, 4, 1)) == [20, 4]
    shared = of_rows(TOKENS, Statistic("length", "longest"))
    with pytest.raises(ConfigError, match="depends on the longest sequence of a batch: give the lengths, not their sums"):
        shared.measure_moments(Moments.of(2, 20))
    assert shared.measure_moments(Moments.of(2, 20, 208), longest=Moments.of(1, 12)) == shared.measure([8, 12]) == [20, 12]
    assert shared.measure_moments(Moments.of(0, 0)) == shared.measure([]) == [0, 0]
    with pytest.raises(ConfigError, match="routers count the tokens of experts, lengths do not"):
        of_rows(TOKENS, assignments(0)).measure_moments(Moments.of(2, 20))


def test_parameters_by_module_are_those_of_all_terms():
    plan = compile_plan({"num_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "ffn_hidden_size": 12, "vocab_size": 16})
    found = plan.parameters_by_module()
    assert found["output_layer"] == found["embedding.word_embeddings"] == 8 * 16
    assert sum(found.values()) == plan.parameters()["total"]
    assert all(found.values())
