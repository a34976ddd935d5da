"""Which reader a source gets, and what stands beside the model."""

from types import SimpleNamespace

import pytest

from bridge.config import from_huggingface
from bridge.flops import ConfigError, compile_plan
from bridge.flops.reading import Model, read

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "vocab_size": 500, "max_position_embeddings": 128, "tie_word_embeddings": False,
}  # fmt: skip
MAXTEXT = {
    "decoder_block": "llama2", "num_decoder_layers": 2, "emb_dim": 64, "num_query_heads": 4, "num_kv_heads": 2, "head_dim": 16,
    "mlp_dim": 128, "vocab_size": 500,
}  # fmt: skip
OURS = {
    "num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_query_groups": 2, "ffn_hidden_size": 128,
    "gated_linear_unit": True, "vocab_size": 500,
}  # fmt: skip
ADAPTERS = {"kind": "lora", "dim": 4, "target_modules": ["linear_fc2"]}


@pytest.mark.parametrize("model", [LLAMA, MAXTEXT, OURS], ids=["Hugging Face", "MaxText", "megatron-core"])
def test_one_model_from_three_sources(model):
    plan = compile_plan(model, "exact")
    # 2 x (64 x (64 + 2 x 32) + 64^2 + 3 x 64 x 128) + 64 x 500 multiply-accumulates a token, and the pairs.
    token = 2 * (64 * 128 + 64 * 64 + 3 * 64 * 128) + 64 * 500
    assert plan.flops([10]) == 6 * (10 * token + 2 * 2 * 64 * 55)
    assert plan.not_counted == ()


@pytest.mark.parametrize("model", [LLAMA, MAXTEXT, OURS], ids=["Hugging Face", "MaxText", "megatron-core"])
@pytest.mark.parametrize("wrap", [dict, lambda **fields: SimpleNamespace(**fields)], ids=["mapping", "object"])
def test_sections_beside_the_model_count_whatever_it_is(model, wrap):
    found = read(wrap(model=model, peft=ADAPTERS, reference_model=True, not_counted=["a sentence"]))
    assert (found.adapters.dim, found.reference, found.not_counted) == (4, True, ("a sentence",))
    assert compile_plan(found, "exact").parameters()["trainable"] == 2 * 4 * (128 + 64)
    assert read(wrap(model=model, teacher=LLAMA)).teacher == read(LLAMA)


def test_number_formats_and_a_trace_are_kept_beside_sections():
    quantized = LLAMA | {"quantization_config": {"quant_method": "fp8"}}
    assert read({"model": quantized}).formats == read(quantized).formats != read(LLAMA).formats
    unread = {"model_type": "openai-gpt", "n_layer": 2, "n_embd": 48, "n_head": 3, "n_positions": 64, "vocab_size": 100}
    alone, beside = read(unread), read({"model": unread, "not_counted": ["a sentence"]})
    assert beside.traced == alone.traced != ()
    assert beside.not_counted == (*alone.not_counted, "a sentence")
    with pytest.raises(ConfigError, match="^peft=.*: beside a traced model it is not counted; trace the module with it$"):
        read({"model": unread, "peft": ADAPTERS})


def test_what_was_read_is_taken_as_it_is():
    model = read(from_huggingface(LLAMA))
    assert isinstance(model, Model)
    assert read(model) is model
    assert compile_plan(model).flops([7]) == compile_plan(LLAMA).flops([7])
