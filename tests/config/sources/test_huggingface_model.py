"""Adapters are read from live models: what trains, by the plan, is what trains in the model."""

import pytest

pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from oracle import encoder_models  # noqa: E402
from oracle import transformers_models as oracle  # noqa: E402

from bridge.config import from_huggingface  # noqa: E402
from bridge.config.sources.huggingface_model import from_huggingface_model  # noqa: E402
from bridge.flops import ConfigError, compile_plan  # noqa: E402

TARGETS = {
    "llama": "all-linear",
    "gemma2": ["gate_proj", "v_proj"],
    "phi3": ["qkv_proj", "gate_up_proj"],
    "qwen3_moe": r".*layers\.0\.self_attn\.(q|o)_proj",
    "gpt_oss": ["k_proj"],
    "deepseek_v3": ["kv_a_proj_with_mqa", "kv_b_proj", "o_proj"],
}


def model(model_type, **options):
    built = oracle.build(oracle.draw(model_type, 0), device="cpu")
    return peft.get_peft_model(built, peft.LoraConfig(r=3, **options)) if options else built


@pytest.mark.parametrize("model_type", TARGETS)
def test_lora(model_type):
    adapted = model(model_type, target_modules=TARGETS[model_type])
    parameters = compile_plan(from_huggingface_model(adapted), "executed").parameters()
    assert parameters["trainable"] == sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert parameters["total"] == sum(parameter.numel() for parameter in adapted.parameters())


def test_adapters_that_are_off_neither_train_nor_run():
    """Such as the copy of the first adapters that TRL compares with."""
    adapted = model("llama", target_modules=["q_proj", "up_proj"])
    alone = compile_plan(from_huggingface_model(adapted), "executed")
    adapted.add_adapter("ref", peft.LoraConfig(r=3, target_modules=["q_proj", "up_proj"]))
    found = from_huggingface_model(adapted)
    assert found.traced is None
    assert compile_plan(found, "executed").parameters() == alone.parameters()
    assert compile_plan(found, "executed").flops([7]) == alone.flops([7])


def test_latent_attention_with_whole_queries():
    config = oracle.draw("deepseek_v3", 0)
    config.q_lora_rank = None
    adapted = peft.get_peft_model(oracle.build(config, device="cpu"), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    trained = compile_plan(from_huggingface_model(adapted), "executed").parameters()["trainable"]
    assert trained == sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)


def test_all_weights_train_and_nothing_is_recomputed():
    config = from_huggingface_model(model("llama"))
    assert config.peft is None
    assert config.model.recompute_granularity is None


def test_the_door_knows_a_live_model():
    built = model("llama", target_modules=["q_proj"])
    assert from_huggingface(built) == from_huggingface_model(built)
    assert from_huggingface(built).peft.dim == 3


def test_a_table_that_transformers_never_trains_is_no_reason_to_refuse():
    built = encoder_models.build(encoder_models.draw("whisper", 0))
    plan, batch = compile_plan(from_huggingface(built), "executed"), encoder_models.Batch(built, 2, 7, 5)
    assert plan.flops(**batch.lengths) == batch.training()
    trained = sum(parameter.numel() for parameter in built.parameters() if parameter.requires_grad)
    assert plan.parameters()["trainable"] == trained
    assert plan.parameters()["total"] == trained + built.model.encoder.embed_positions.weight.numel()


def test_adapters_outside_the_language_model_are_traced():
    built = encoder_models.build(encoder_models.draw("whisper", 0))
    adapted = peft.get_peft_model(built, peft.LoraConfig(r=3, target_modules=["q_proj"]))
    plan, batch = compile_plan(from_huggingface(adapted), "executed"), encoder_models.Batch(adapted, 2, 7, 5)
    assert plan.flops(**batch.lengths) == batch.training()


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation(reentrant, adapted):
    """Every layer runs again: what the counter sees is what the plan says the hardware does."""
    built = model("llama", target_modules=["q_proj", "up_proj"]) if adapted else model("llama")
    built.enable_input_require_grads()
    built.activation_checkpointing_enable({"use_reentrant": reentrant})
    built.train()
    plan = compile_plan(from_huggingface_model(built), "executed")
    assert plan.flops([9, 9], passes="hardware") == oracle.training(built, 2, 9)
    assert plan.flops([9, 9], passes="hardware") > plan.flops([9, 9])


def test_recomputing_some_layers_is_not_described():
    built = model("llama")
    built.model.layers[0].gradient_checkpointing = True
    with pytest.raises(ConfigError, match="layers are recomputed"):
        from_huggingface_model(built)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 5}},
        {"target_modules": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=["ranks", "head", "saved"],
)
def test_what_is_not_described_is_traced(options):
    adapted = model("llama", **options)
    found = from_huggingface_model(adapted)
    plan = compile_plan(found, "executed")
    assert found.source == "traced"
    assert plan.flops([9, 9]) == oracle.training(adapted, 2, 9)
    assert plan.parameters()["trainable"] == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert plan.parameters()["total"] == sum(parameter.numel() for parameter in adapted.parameters())
