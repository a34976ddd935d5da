"""The rule of thumb to the digit; prefill and decode as growth of the plan; caches, bytes and the roofline by hand."""

from __future__ import annotations

import pytest

from bridge.flops import ConfigError, compile_plan
from bridge.hardware import compute_mbu, compute_mfu
from bridge.planning.inference import (
    MODELS,
    InferencePlan,
    MemoryTraffic,
    estimate_flops,
    estimate_flops_no_kv_cache,
    find_parameters,
    prefill_and_decode,
)

LLAMA = {
    "num_layers": 32, "hidden_size": 4096, "ffn_hidden_size": 14336, "num_attention_heads": 32, "num_query_groups": 8,
    "vocab_size": 128256, "gated_linear_unit": True,
}  # fmt: skip
SMALL = {
    "num_layers": 3, "hidden_size": 64, "ffn_hidden_size": 96, "num_attention_heads": 4, "num_query_groups": 2, "vocab_size": 100,
    "gated_linear_unit": True,
}  # fmt: skip
MLA = SMALL | {
    "num_query_groups": None, "multi_latent_attention": True, "q_lora_rank": 12, "kv_lora_rank": 20, "qk_head_dim": 8,
    "qk_pos_emb_head_dim": 4, "v_head_dim": 6,
}  # fmt: skip
DELTA = {"experimental_attention_variant": "gdn", "linear_attention_freq": 3, "linear_key_head_dim": 8,
         "linear_value_head_dim": 10, "linear_num_key_heads": 2, "linear_num_value_heads": 4}  # fmt: skip
#: Every way of looking back: the cost of a token depends on how it looks.
ARCHITECTURES = {
    "full": SMALL,
    "window": SMALL | {"window_size": (4, 0), "window_attn_skip_freq": 3},
    "chunk": SMALL | {"attention_chunk_size": 6, "no_rope_freq": 3},
    "experts": SMALL | {"num_moe_experts": 8, "moe_router_topk": 2, "moe_ffn_hidden_size": 16},
    "mla": MLA,
    "dsa": MLA | {"experimental_attention_variant": "dsa", "dsa_indexer_n_heads": 2, "dsa_indexer_head_dim": 8,
                  "dsa_indexer_topk": 5, "dsa_indexer_loss_coeff": 0.1},
    "delta": SMALL | DELTA,
    "mamba": SMALL | {"hybrid_layer_pattern": "M*-", "mamba_state_dim": 16, "mamba_head_dim": 8, "mamba_num_groups": 2},
    "compressed": MLA | {"experimental_attention_variant": "dsv4_hybrid", "csa_compress_ratios": [0, 4, 128],
                         "csa_window_size": 4, "o_groups": 2, "o_lora_rank": 8, "dsa_indexer_n_heads": 2,
                         "dsa_indexer_head_dim": 8, "dsa_indexer_topk": 2},
}  # fmt: skip


# ---- the rule of thumb -----------------------------------------------------------------------------------------------


def test_estimates():
    assert estimate_flops("qwen3:8b", 100, 50) == (2.4e12, 1.6e10)
    assert estimate_flops("qwen3:8b", 0, 0) == (0.0, 0.0)
    assert estimate_flops("a model nobody knows", 100, 50) == (0.0, 0.0)
    for name, parameters in MODELS.items():
        total, each = estimate_flops(name, 30, 12)
        assert (total, each) == (2 * parameters.total * 42, 2 * parameters.total)
        assert estimate_flops_no_kv_cache(name, 30, 12) == (parameters.total * 42 * 43, parameters.total * 43)
    assert estimate_flops_no_kv_cache("qwen3:8b", 0, 0) == (0.0, 0.0)
    assert estimate_flops_no_kv_cache("a model nobody knows", 1, 1) == (0.0, 0.0)


def test_parameters_by_name():
    nominal = {
        "qwen3:8b": 8, "qwen3:0.6b": 0.6, "qwen3:4b": 4, "llama-3.1-70b": 70, "llama-3.1-8b": 8, "mistral-7b": 7,
        "mixtral-8x7b": 47,
    }  # fmt: skip
    assert {name: parameters.total for name, parameters in MODELS.items()} == {name: n * 1e9 for name, n in nominal.items()}
    for name, known in (
        ("Qwen/Qwen3-0.6B", "qwen3:0.6b"),
        ("qwen3:8b-q4_K_M", "qwen3:8b"),
        ("meta-llama/Llama-3.1-70B-Instruct", "llama-3.1-70b"),
        ("mistralai/Mixtral-8x7B-v0.1", "mixtral-8x7b"),
    ):
        assert find_parameters(name) is MODELS[known]
    for name in ("qwen3:14b", "qwen3", "llama-3.1-405b", "llama-3.1-8", "mixtral-8x22b", "qwen3:30b-a3b", ""):
        assert find_parameters(name) is None


def test_active_parameters():
    assert estimate_flops("mixtral-8x7b", 1, 0) == (94e9, 94e9)
    assert estimate_flops("mixtral-8x7b", 1, 0, active=True) == (26e9, 26e9)
    assert estimate_flops_no_kv_cache("mixtral-8x7b", 1, 1, active=True) == (78e9, 39e9)
    assert estimate_flops("qwen3:8b", 3, 4, active=True) == estimate_flops("qwen3:8b", 3, 4)


def test_utilisation_in_percent():
    assert f"{compute_mfu(989e12, 1.0, 'NVIDIA H100 SXM'):.1f}" == "100.0"
    assert compute_mbu(3.35e12, 2.0, "NVIDIA H100 80GB HBM3") == 50.0
    assert compute_mbu(4.8e12, 0.5, "NVIDIA H200", num_gpus=4) == 50.0
    assert compute_mbu(1e12, 1.0, "abacus") == compute_mbu(1e12, 0.0, "NVIDIA H200") == 0.0
    with pytest.raises(ValueError, match="num_gpus=0 must be positive"):
        compute_mbu(1e12, 1.0, "NVIDIA H200", num_gpus=0)


# ---- FLOPs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_step_is_what_one_more_token_adds(name):
    config = ARCHITECTURES[name]
    plan = compile_plan(config | {"dsa_indexer_loss_coeff": None}, "exact")
    found = prefill_and_decode(config, 7, 9)
    assert found.prefill == plan.flops([7], passes="forward")
    lengths = range(7, 15)
    assert found.steps == tuple(plan.flops([n + 1], passes="forward") - plan.flops([n], passes="forward") for n in lengths)
    assert found.total == found.prefill + found.decode == plan.flops([15], passes="forward")
    assert found.per_step == found.decode / 8
    again = prefill_and_decode(config, 7, 9, kv_cache=False)
    assert (again.prefill, *again.steps) == tuple(plan.flops([n], passes="forward") for n in range(7, 16))
    assert again.cache_bytes == 0


def test_a_step_of_llama_by_hand():
    """Two per weight but the embedding's, and per layer two products of 32 heads of 128 with 901 keys."""
    found = prefill_and_decode(LLAMA, 900, 2)
    weights = compile_plan(LLAMA, "exact").parameters()["total"] - 128256 * 4096 - 65 * 4096
    assert found.steps == (2 * weights + 32 * 2 * 2 * 901 * 32 * 128,)


def test_batch_and_short_requests():
    one, four = prefill_and_decode(LLAMA, 10, 3), prefill_and_decode(LLAMA, 10, 3, batch_size=4)
    assert (four.prefill, four.decode) == (4 * one.prefill, 4 * one.decode)
    for generated in (0, 1):
        found = prefill_and_decode(LLAMA, 10, generated)
        assert (found.steps, found.decode, found.per_step, found.prefill) == ((), 0, 0, one.prefill)


def test_the_output_layer_on_the_last_position_only():
    found = prefill_and_decode(LLAMA, 900, 1, logits_to_keep=1)
    assert prefill_and_decode(LLAMA, 900, 1).prefill - found.prefill == 899 * 2 * 4096 * 128256


def test_nothing_of_training_runs():
    config = MLA | {"mtp_num_layers": 2, "num_moe_experts": 4, "recompute_granularity": "selective"}
    assert prefill_and_decode(config, 9, 4).total == compile_plan(config | {"mtp_num_layers": None}, "exact").flops(
        [12], passes="forward"
    )


def test_images_are_read_once():
    vision = {"depth": 2, "hidden_size": 32, "out_hidden_size": 64, "patch_size": 2}
    config = SMALL | {"vision_config": vision}
    found = prefill_and_decode(config, 20, 4, image_patches=[16])
    assert found.prefill == compile_plan(config, "exact").flops([20], [16], passes="forward")
    assert found.steps == prefill_and_decode(SMALL, 20, 4).steps
    assert found.step_bytes == prefill_and_decode(SMALL, 20, 4).step_bytes
    assert prefill_and_decode(config, 20, 4).prefill_bytes == prefill_and_decode(SMALL, 20, 4).prefill_bytes
    assert found.prefill_bytes - prefill_and_decode(SMALL, 20, 4).prefill_bytes == 2 * (
        compile_plan(config).parameters()["total"] - compile_plan(SMALL).parameters()["total"]
    )


def test_an_encoder_is_read_once():
    config = SMALL | {"encoder_num_layers": 2}
    plan = compile_plan(config, "exact")
    found = prefill_and_decode(config, 1, 6, encoder_tokens=20)
    assert found.prefill == plan.flops([1], passes="forward", encoder_lengths=[20])
    assert found.total == plan.flops([6], passes="forward", encoder_lengths=[20])
    # Six own tokens and twenty of the encoder in each of three layers, whose weights for its states run once too.
    assert found.cache_bytes == 2 * 3 * (6 + 20) * 64
    once = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96 + 2 * 64) + 64 + 3 * 64 * 64
    read = plan.parameters()["total"] - 100 * 64 + 64 - once
    assert found.step_bytes[0] == 2 * (read + 3 * (2 + 20) * 64 + 3 * 64)
    assert found.prefill_bytes == 2 * (read + once + 3 * (1 + 20) * 64)


def test_latents():
    once, expanded, absorbed = (InferencePlan(MLA, latents=name) for name in ("once", "expanded", "absorbed"))
    up, heads = 20 * 4 * (8 + 6), 4
    for cached in (5, 6, 40):
        step = once.decode(cached)
        assert expanded.decode(cached) - step == 3 * 2 * cached * up
        assert absorbed.decode(cached) - step == 3 * 2 * (cached + 1) * heads * ((20 + 4 - 12) + (20 - 6))
    assert once.prefill(30) == expanded.prefill(30) == absorbed.prefill(30)
    with pytest.raises(ConfigError, match="latents='lost' is not known; choose one of once, expanded, absorbed"):
        InferencePlan(MLA, latents="lost")


# ---- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tokens", "bytes_held"),
    [
        ("full", 10, 2 * 3 * 10 * 2 * 2 * 16),
        ("window", 10, 2 * (2 * 5 + 10) * 2 * 2 * 16),
        ("window", 3, 2 * 3 * 3 * 2 * 2 * 16),
        ("chunk", 10, 2 * (2 * 4 + 10) * 2 * 2 * 16),
        ("mla", 10, 2 * 3 * 10 * (20 + 4)),
        ("dsa", 10, 2 * 3 * 10 * (20 + 4 + 8)),
        # Two linear layers with float32 states and three inputs of the convolution, one layer of attention.
        ("delta", 10, 2 * (4 * 8 * 40 + 2 * 3 * (2 * 16 + 40)) + 2 * 10 * 2 * 2 * 16),
        ("mamba", 10, 4 * 128 * 16 + 2 * 3 * (128 + 2 * 2 * 16) + 2 * 10 * 2 * 2 * 16),
        # Windows of 4; every 4th token a compressed key and an indexer's key in one layer, none yet of 128 in another.
        ("compressed", 10, 2 * (3 * 4 * 6 + 2 * (6 + 8))),
    ],
)
def test_what_a_cache_holds(name, tokens, bytes_held):
    assert InferencePlan(ARCHITECTURES[name]).cache_bytes(tokens) == bytes_held
    assert prefill_and_decode(ARCHITECTURES[name], tokens, 1, batch_size=3).cache_bytes == 3 * bytes_held


def test_published_cache_sizes():
    """128 KiB a token for Llama 3 8B in bfloat16; 70 272 bytes for DeepSeek-V3 (61 layers of 576)."""
    assert InferencePlan(LLAMA).cache_bytes(1) == 128 * 1024
    deepseek = {"num_layers": 61, "hidden_size": 7168, "num_attention_heads": 128, "vocab_size": 129280,
                "multi_latent_attention": True, "q_lora_rank": 1536}  # fmt: skip
    assert InferencePlan(deepseek).cache_bytes(1) == 70272


def test_layers_that_share_keys_read_but_do_not_hold_them():
    shared = InferencePlan(SMALL | {"num_kv_shared_layers": 1})
    assert shared.cache_bytes(10) == 2 * 2 * 10 * 64
    assert shared.step_cache_bytes(10) == 2 * (3 * 10 + 2) * 64


def test_sparse_attention_reads_its_choice_and_all_indexer_keys():
    plan = InferencePlan(ARCHITECTURES["dsa"])
    assert plan.step_cache_bytes(10) == 2 * 3 * ((5 + 1) * 24 + (10 + 1) * 8)


def test_a_compressed_key_is_written_once_its_tokens_are_there():
    plan = InferencePlan(ARCHITECTURES["compressed"])
    windows, write = 3 * 4 * 6, 3 * 6
    # Of the keys that stand for 4 tokens each, 2 are read, and all of the indexer's.
    assert plan.step_cache_bytes(11) == 2 * (windows + write + 2 * 6 + 2 * 8)
    assert plan.step_cache_bytes(12) == 2 * (windows + write + 2 * 6 + 3 * 8 + 6 + 8)


def test_weights_that_are_read():
    plan, parameters = InferencePlan(SMALL), compile_plan(SMALL).parameters()
    assert plan.weight_entries() == parameters["total"]
    assert plan.weight_entries(7) == parameters["total"] - 100 * 64 + 7 * 64
    tied = InferencePlan(SMALL | {"share_embeddings_and_output_weights": True})
    assert tied.weight_entries() == parameters["total"] - 100 * 64
    assert tied.weight_entries(7) == plan.weight_entries(7)


def test_experts_that_are_read():
    plan = InferencePlan(ARCHITECTURES["experts"])
    expert, rest = 3 * 3 * 64 * 16, InferencePlan(ARCHITECTURES["experts"]).weight_entries() - 8 * 3 * 3 * 64 * 16 - 100 * 64
    assert plan.weight_entries(1) == rest + 64 + 2 * expert
    assert plan.weight_entries(3) == pytest.approx(rest + 3 * 64 + 8 * (1 - 0.75**3) * expert)
    assert plan.weight_entries(10000) == pytest.approx(plan.weight_entries())


def test_bytes_of_a_request():
    memory = MemoryTraffic(weight=1, cache=2)
    found = prefill_and_decode(SMALL, 5, 3, batch_size=2, memory=memory)
    plan = InferencePlan(SMALL)
    held = 2 * 3 * 2 * 2 * 16
    assert found.weight_bytes == plan.weight_entries()
    assert found.prefill_bytes == plan.weight_entries(10) + 2 * 5 * held
    # Each step reads all keys, its own included, and writes one token's.
    assert found.step_bytes == tuple(plan.weight_entries(2) + 2 * (n + 1) * held for n in (6, 7))
    assert found.decode_bytes == sum(found.step_bytes)


# ---- the roofline ----------------------------------------------------------------------------------------------------


def test_roofline():
    found = prefill_and_decode(LLAMA, 900, 294)
    bound = found.roofline("NVIDIA H100 80GB HBM3")
    assert bound.time_to_first_token == found.prefill / 989.4e12
    assert (bound.prefill_bound, bound.decode_bound) == ("compute", "memory")
    assert bound.decode_time == pytest.approx(found.decode_bytes / 3.35e12)
    assert bound.tokens_per_second == pytest.approx(293 / bound.decode_time)
    assert bound.mfu[0] == bound.mbu[1] == 1.0
    assert bound.mfu[2] == pytest.approx(found.total / 989.4e12 / bound.total_time)
    assert bound.mbu[0] == pytest.approx(found.prefill_bytes / 3.35e12 / bound.time_to_first_token)
    two = found.roofline("NVIDIA H100 80GB HBM3", num_devices=2)
    assert two.total_time == pytest.approx(bound.total_time / 2)
    eight_bit = found.roofline("NVIDIA H100 80GB HBM3", "fp8")
    assert eight_bit.time_to_first_token == found.prefill / 1978.9e12
    assert found.roofline("my own", peak_flops=1e12, bandwidth=1e15).decode_bound == "compute"


def test_a_batch_shares_the_reading_of_the_weights():
    one, many = (prefill_and_decode(LLAMA, 900, 294, batch_size=n).roofline("NVIDIA H200") for n in (1, 32))
    assert many.tokens_per_second > 20 * one.tokens_per_second


def test_no_step_no_rate():
    assert prefill_and_decode(LLAMA, 900, 1).roofline("NVIDIA H200").tokens_per_second is None


@pytest.mark.parametrize(
    ("device", "arguments", "message"),
    [
        ("abacus", {}, "device_name='abacus': its bf16 peak is not known; give peak_flops"),
        ("NVIDIA A100", {}, "its memory bandwidth is not known; give bandwidth"),
        ("NVIDIA A100-SXM4-80GB", {"number_format": "fp8"}, "its fp8 peak is not known"),
        ("NVIDIA H200", {"num_devices": 0}, "num_devices=0 must be positive"),
    ],
)
def test_unknown_devices(device, arguments, message):
    with pytest.raises(ConfigError, match=message):
        prefill_and_decode(SMALL, 5, 3).roofline(device, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt_tokens": 0}, "prompt_tokens=0 must be a positive integer"),
        ({"generated_tokens": -1}, "generated_tokens=-1 must be an integer of at least 0"),
        ({"generated_tokens": 2**17 + 1}, "generated_tokens=131073 must be at most 131072: each token is counted by itself"),
        ({"batch_size": 1.5}, r"batch_size=1\.5 must be a positive integer"),
        ({"convention": "mine"}, "convention='mine' is not known"),
        ({"cfg": SMALL | {"is_causal": False}}, "is_causal=False: a model whose tokens see later tokens"),
    ],
)
def test_impossible_requests(arguments, message):
    with pytest.raises(ConfigError, match=message):
        prefill_and_decode(**({"cfg": SMALL, "prompt_tokens": 5, "generated_tokens": 3} | arguments))


# ---- prefix caching, and drafts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_cached_prefix_is_not_run_again(name):
    whole = prefill_and_decode(ARCHITECTURES[name], 24, 3)
    behind = prefill_and_decode(ARCHITECTURES[name], 24, 3, cached_tokens=16)
    plan = InferencePlan(ARCHITECTURES[name])
    assert behind.prefill == plan.prefill(24) - plan.prefill(16)
    assert (behind.steps, behind.step_bytes) == (whole.steps, whole.step_bytes)


def test_a_cached_prefix_by_hand():
    """8 of 24 tokens run: their linear layers, their logits or the last one's, and what they see; all of the cache moves."""
    generation = prefill_and_decode(SMALL, 24, 1, cached_tokens=16)
    h, f, kv, vocabulary = 64, 96, 32, 100
    layer = h * (h + 2 * kv) + h * h + 3 * h * f
    pairs = sum(range(17, 25))
    assert generation.prefill == 2 * (8 * (3 * layer + h * vocabulary) + 3 * pairs * 2 * h)
    last = prefill_and_decode(SMALL, 24, 1, cached_tokens=16, logits_to_keep=1)
    assert generation.prefill - last.prefill == 2 * 7 * h * vocabulary
    assert generation.prefill_bytes == 2 * (InferencePlan(SMALL).weight_entries(8) + 24 * 3 * 2 * kv)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cached_tokens": 24}, "cached_tokens=24 must be fewer than prompt_tokens=24"),
        ({"cached_tokens": -1}, "cached_tokens=-1"),
        ({"cached_tokens": 4, "kv_cache": False}, "needs a KV cache"),
    ],
)
def test_prefixes_that_cannot_be(options, words):
    with pytest.raises(ConfigError, match=words):
        prefill_and_decode(SMALL, 24, 1, **options)
