"""Configurations as other people have them: megatron-core's, Megatron-LM's, Megatron-Bridge's."""

import argparse
from dataclasses import dataclass

import pytest
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

from bridge.flops import ConfigError, compile_plan
from bridge.flops.reading import read
from bridge.training.utils.flop_utils import num_floating_point_operations

LENGTHS = [4096, 100]
DENSE = {
    "num_layers": 4, "hidden_size": 256, "ffn_hidden_size": 512, "num_attention_heads": 8, "num_query_groups": 2,
    "kv_channels": 48, "gated_linear_unit": True, "num_moe_experts": 8, "moe_router_topk": 3, "moe_ffn_hidden_size": 96,
}  # fmt: skip
LATENT = {
    "num_layers": 3, "hidden_size": 256, "num_attention_heads": 8, "q_lora_rank": 96, "kv_lora_rank": 64,
    "qk_head_dim": 32, "qk_pos_emb_head_dim": 16, "v_head_dim": 24, "ffn_hidden_size": 512,
}  # fmt: skip


@pytest.mark.parametrize("convention", ["megatron", "maxtext", "exact", "executed"])
def test_transformer_config(convention):
    config = TransformerConfig(**DENSE, add_bias_linear=False, normalization="RMSNorm")
    expected = compile_plan(DENSE | {"vocab_size": 1000}, convention)
    for cfg in ({"model": config, "vocab_size": 1000}, argparse.Namespace(model=config, vocab_size=1000)):
        assert compile_plan(cfg, convention).flops(LENGTHS) == expected.flops(LENGTHS)
    config.vocab_size = 1000
    assert compile_plan(config, convention).flops(LENGTHS) == expected.flops(LENGTHS)
    assert compile_plan(config, convention).parameters() == expected.parameters()


def test_latent_transformer_config():
    config = MLATransformerConfig(**LATENT)
    cfg = {"model": config, "vocab_size": 1000, "seq_length": 512}
    expected = {"model": LATENT | {"multi_latent_attention": True, "vocab_size": 1000, "seq_length": 512}}
    assert num_floating_point_operations(cfg, 3) == num_floating_point_operations(expected, 3)


def test_a_transformer_config_alone_has_no_vocabulary():
    with pytest.raises(ConfigError, match="model.vocab_size is missing"):
        compile_plan(TransformerConfig(**DENSE))


def test_arguments_of_megatron_lm():
    args = argparse.Namespace(
        num_layers=4, hidden_size=256, ffn_hidden_size=512, num_attention_heads=8, group_query_attention=True, num_query_groups=2,
        kv_channels=48, swiglu=True, num_experts=8, moe_router_topk=3, moe_ffn_hidden_size=96, moe_layer_freq=1,
        vocab_size=None, padded_vocab_size=1024, make_vocab_size_divisible_by=128, tensor_model_parallel_size=2,
        untie_embeddings_and_output_weights=True, seq_length=4096, mtp_num_layers=None,
    )  # fmt: skip
    expected = compile_plan(DENSE | {"vocab_size": 1000, "tensor_model_parallel_size": 2})
    assert compile_plan(args).flops(LENGTHS) == expected.flops(LENGTHS)
    # Without the flag Megatron-LM leaves num_query_groups at 1 and means every head.
    args.group_query_attention, args.num_query_groups = False, 1
    assert read(args).shape.key_value_heads == 8
    args.untie_embeddings_and_output_weights = False
    assert read(args).shape.share_embeddings_and_output_weights


def test_a_provider_of_megatron_bridge():
    """Its providers are TransformerConfigs with the vocabulary and the length beside the layers."""

    @dataclass
    class Provider(TransformerConfig):
        vocab_size: int = 1000
        seq_length: int = 4096
        make_vocab_size_divisible_by: int = 128
        share_embeddings_and_output_weights: bool = True
        activation_func: object = None

    cfg = argparse.Namespace(model=Provider(**DENSE), peft=None)
    expected = {"model": DENSE | {"vocab_size": 1000, "seq_length": 4096}}
    assert num_floating_point_operations(cfg, 2) == num_floating_point_operations(expected, 2)
    assert num_floating_point_operations(cfg, 2, 5000, 20_000_000) == num_floating_point_operations(expected, 2, 5000, 20_000_000)
