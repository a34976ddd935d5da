"""transformers' names of modules, as built models have them, beside the plan's."""

from __future__ import annotations

import pytest
import torch

from bridge.config.sources.huggingface_names import LINEAR_LAYERS, plan_path
from bridge.flops import compile_plan
from bridge.flops.transforms import DEFAULT_TARGETS, PARTS

transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 64, "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "moe_intermediate_size": 24, "num_experts_per_tok": 2}
LATENT = {
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16, "num_experts_per_tok": 2,
}  # fmt: skip


def built(model_type, **options):
    config = transformers.AutoConfig.for_model(model_type, **SIZES, **options)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("qwen3", {"head_dim": 16}),
        ("phi3", {}),
        ("qwen3_moe", EXPERTS),
        ("deepseek_v3", LATENT),
    ],
)
def test_a_built_models_modules_are_the_plans_with_their_sizes(model_type, options):
    model = built(model_type, **options)
    found: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        # The experts' matrices are parameters of the block itself.
        module = name if ".experts." in name and "shared" not in name else name.rpartition(".")[0]
        path = plan_path(module)
        found[path] = found.get(path, 0) + parameter.numel()
    assert found == compile_plan(model.config, "exact").parameters_by_module()


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("model.embed_tokens", "embedding.word_embeddings"),
        ("lm_head", "output_layer"),
        ("model.norm", "decoder.final_layernorm"),
        ("model.language_model.norm", "decoder.final_layernorm"),
        ("model.language_model.layers.11.mlp.gate_proj", "decoder.layers.11.mlp.linear_fc1_gate"),
        ("model.layers.3.self_attn.q_norm", "decoder.layers.3.self_attention.q_layernorm"),
        ("model.layers.3.self_attn.kv_a_layernorm", "decoder.layers.3.self_attention.kv_layernorm"),
        ("model.layers.3.post_attention_layernorm", "decoder.layers.3.pre_mlp_layernorm"),
        ("model.layers.3.mlp.gate", "decoder.layers.3.mlp.router"),
        ("model.layers.3.mlp.shared_expert.gate_proj", "decoder.layers.3.mlp.shared_experts.linear_fc1_gate"),
        ("model.layers.3.mlp.shared_experts.down_proj", "decoder.layers.3.mlp.shared_experts.linear_fc2"),
        # peft's adapters and the layer that they wrap.
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default",
         "decoder.layers.0.self_attention.linear_q.adapter.linear_in"),
        ("base_model.model.model.layers.0.mlp.down_proj.lora_B.other", "decoder.layers.0.mlp.linear_fc2.adapter.linear_out"),
        ("base_model.model.model.layers.0.mlp.down_proj.base_layer", "decoder.layers.0.mlp.linear_fc2"),
        # What is not the language model's keeps its place; what is not known its name.
        ("model.visual.blocks.0.attn.qkv", "model.visual.blocks.0.attn.qkv"),
        ("model.vision_tower.layers.0.norm", "model.vision_tower.layers.0.norm"),
        ("model.layers.0.self_attn.rotary_emb", "decoder.layers.0.self_attn.rotary_emb"),
        ("score", "score"),
        ("", ""),
    ],
)  # fmt: skip
def test_single_names(theirs, ours):
    assert plan_path(theirs) == ours


def test_a_name_of_the_plans_stays():
    plan = compile_plan(built("llama").config, "exact")
    assert [path for path in plan.parameters_by_module() if plan_path(path) != path] == []


def test_adapters_go_on_linear_layers_of_their_own():
    """No two of transformers' layers are one of the plan's, and each is one that an adapter can be asked for on."""
    assert len(set(LINEAR_LAYERS.values())) == len(LINEAR_LAYERS)
    targets = {path.rpartition(".")[2] for path in LINEAR_LAYERS.values()}
    assert targets >= {*DEFAULT_TARGETS, *(part for parts in PARTS.values() for part in parts)} - {"output_layer"}
    for theirs, ours in LINEAR_LAYERS.items():
        assert plan_path(f"model.layers.7.{theirs}") == f"decoder.layers.7.{ours}"
